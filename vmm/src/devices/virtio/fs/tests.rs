//! The device between a driver and a backend, of which either may do what it must not.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::super::mmio::register;
use super::super::mock::hostile::{any_acts, play};
use super::super::mock::{DRIVER_OK, EVENT_INDEX, MEMORY_BYTES, MockDriver, VERSION_1};
use super::backend::Patience;
use super::script::{self, Act, Got};
use super::*;
use crate::memory::{self, GuestMemory};

/// With backends that answer, so that no slow machine makes them late.
const PATIENT: Patience = Patience {
    handshake: Duration::from_secs(60),
    start: Duration::from_secs(60),
    stop: Duration::from_secs(60),
};
/// With backends that do not.
const IMPATIENT: Patience = Patience {
    handshake: Duration::from_millis(200),
    start: Duration::from_millis(200),
    stop: Duration::from_millis(200),
};

const HANDSHAKE: [Request; 4] = [
    Request::GetFeatures,
    Request::GetProtocolFeatures,
    Request::GetQueueNum,
    Request::SetMemTable,
];
const START: [Request; 7] = [
    Request::SetFeatures,
    Request::SetVringNum,
    Request::SetVringBase,
    Request::SetVringAddr,
    Request::SetVringCall,
    Request::SetVringKick,
    Request::SetVringEnable,
];
/// What each queue is told of: the requests after the first.
const EACH_QUEUE: usize = START.len() - 1;

fn connect(
    act: Option<(Request, usize, Act)>,
    patience: Patience,
) -> (Result<Backend, BackendError>, GuestMemory, Receiver<Got>) {
    let (socket, log) = script::backend(act);
    let memory = memory::create_shared(MEMORY_BYTES).unwrap();
    (Backend::new(socket, &memory, patience), memory, log)
}

/// A driver that has not started, and what the backend has got since the handshake.
fn driver(act: Option<(Request, usize, Act)>, patience: Patience) -> (MockDriver, Receiver<Got>) {
    let (backend, memory, log) = connect(act, patience);
    let mut tag = [0; TAG_BYTES];
    tag[..4].copy_from_slice(b"home");
    let device = Filesystem::new("fs0".to_owned(), tag, backend.unwrap()).unwrap();
    let driver = MockDriver::in_memory(memory, |_| device);
    while let Ok(got) = log.recv() {
        if got.request == Request::SetMemTable as u32 {
            break;
        }
    }
    (driver, log)
}

/// Lets the device work until the backend has got all that starts it.
fn wait_for_start(driver: &MockDriver, log: &Receiver<Got>) -> Vec<Got> {
    // The device's own event.
    driver.wait_for_event();
    let count = 1 + QUEUES * EACH_QUEUE;
    (0..count).map(|_| log.recv().unwrap()).collect()
}

fn requests(got: &[Got]) -> Vec<u32> {
    got.iter().map(|got| got.request).collect()
}

fn wait_for_fault(driver: &mut MockDriver) -> String {
    while !driver.needs_reset() {
        driver.wait_for_event();
    }
    let faults = driver.faults();
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults[0].clone()
}

#[test]
fn the_configuration_is_a_tag_and_one_request_queue() {
    let (driver, _log) = driver(None, PATIENT);
    assert_eq!(driver.read(register::DEVICE_ID), 26);
    let mut config = [0xff; 44];
    let words = config.chunks_mut(4).zip((0..).step_by(4));
    for (place, offset) in words {
        place.copy_from_slice(&driver.read(register::CONFIG + offset).to_le_bytes());
    }
    assert_eq!(&config[..5], b"home\0");
    assert_eq!(config[5..36], [0; 31]);
    assert_eq!(config[36..], [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_backend_gets_all_of_guest_memory_by_the_guests_addresses() {
    let (socket, log) = script::backend(None);
    let memory = memory::create_shared(5 << 30).unwrap();
    let _backend = Backend::new(socket, &memory, PATIENT).unwrap();
    let got: Vec<Got> = (0..6).map(|_| log.recv().unwrap()).collect();
    assert_eq!(requests(&got), [1, 15, 16, 17, 3, 5]);
    // MQ and REPLY_ACK.
    assert_eq!(got[2].numbers(), [9]);
    let high = 4 << 30;
    let low_bytes = memory.iter().next().unwrap().len();
    let high_bytes = (5 << 30) - low_bytes;
    let table = [
        [2].as_slice(),
        &[0, low_bytes, 0, 0],
        &[high, high_bytes, high, low_bytes],
    ];
    assert_eq!(got[5].numbers(), table.concat());
    memory.write_obj(7_u8, GuestAddress(high + 1)).unwrap();
    let file = File::from(got[5].files[1].try_clone().unwrap());
    let mut found = [0];
    file.read_exact_at(&mut found, low_bytes + 1).unwrap();
    assert_eq!(found, [7]);
}

#[test]
fn private_memory_is_given_to_nobody() {
    let (socket, _log) = script::backend(None);
    let memory = memory::create(MEMORY_BYTES).unwrap();
    let result = Backend::new(socket, &memory, PATIENT);
    assert!(matches!(result, Err(BackendError::PrivateMemory)));
}

#[test]
fn a_backend_is_told_of_the_queues_and_raises_the_interrupt() {
    let (mut driver, log) = driver(None, PATIENT);
    driver.start(VERSION_1 | EVENT_INDEX);
    let got = wait_for_start(&driver, &log);
    let each = [8, 10, 9, 13, 12, 18];
    assert_eq!(requests(&got), [[2].as_slice(), &each, &each].concat());
    // Those of the driver, and those of the protocol.
    assert_eq!(got[0].numbers(), [VERSION_1 | EVENT_INDEX | 1 << 30]);
    for (got, index) in got[1..].chunks(each.len()).zip(0_u32..) {
        let [descriptors, available, used] = MockDriver::queue_addresses(index as usize);
        assert_eq!(got[0].words, [index, 16]);
        assert_eq!(got[1].words, [index, 0]);
        let addresses = [index.into(), descriptors, used, available, 0];
        assert_eq!(got[2].numbers(), addresses);
        assert_eq!(got[3].numbers(), [u64::from(index)]);
        assert_eq!(got[5].words, [index, 1]);
        got[3].file().write_all(&1_u64.to_ne_bytes()).unwrap();
        assert_eq!(driver.transport.interrupt_line().read().unwrap(), 1);
        driver.transport.doorbells()[index as usize]
            .write(3)
            .unwrap();
        let mut count = [0; 8];
        got[4].file().read_exact(&mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 3);
    }
    assert!(!driver.needs_reset());
}

#[test]
fn a_reset_takes_the_queues_back_and_another_start_gives_them_again() {
    let (mut driver, log) = driver(None, PATIENT);
    for _ in 0..3 {
        driver.start(VERSION_1);
        wait_for_start(&driver, &log);
        driver.reset();
        // When that has returned, the backend has heard of it.
        let got: Vec<Got> = log.try_iter().collect();
        assert_eq!(requests(&got), [11, 11]);
        assert_eq!([&got[0].words[..], &got[1].words[..]], [[0, 0], [1, 0]]);
    }
    assert_eq!(driver.faults(), [""; 0]);
}

#[test]
fn a_queue_that_is_taken_away_is_taken_from_the_backend_alone() {
    let (mut driver, log) = driver(None, PATIENT);
    driver.start(VERSION_1);
    wait_for_start(&driver, &log);
    for _ in 0..2 {
        driver.write(register::QUEUE_SEL, 1);
        driver.write(register::QUEUE_READY, 0);
    }
    let got: Vec<Got> = log.try_iter().collect();
    assert_eq!(requests(&got), [11]);
    assert_eq!(got[0].words, [1, 0]);
    driver.reset();
    let got: Vec<Got> = log.try_iter().collect();
    assert_eq!(got[0].words, [0, 0]);
}

#[test]
fn a_backend_is_not_told_of_a_driver_that_is_gone_already() {
    let (mut driver, log) = driver(None, PATIENT);
    driver.start(VERSION_1);
    driver.reset();
    driver.wait_for_event();
    assert_eq!(log.try_iter().count(), 0);
}

#[test]
fn queues_that_are_not_ready_are_kept_from_the_backend() {
    let (mut driver, log) = driver(None, PATIENT);
    driver.reset();
    assert!(driver.negotiate(VERSION_1));
    driver.place_queue(1, 16, MockDriver::queue_addresses(1));
    driver.add_status(DRIVER_OK);
    driver.wait_for_event();
    let got: Vec<Got> = (0..=EACH_QUEUE).map(|_| log.recv().unwrap()).collect();
    assert!(got[1..].iter().all(|got| got.words[0] == 1));
    driver.reset();
    assert_eq!(log.try_iter().count(), 1);
}

#[test]
fn a_reset_before_the_backend_has_answered_waits_for_its_answers() {
    let (let_go, waits) = channel();
    let act = (Request::SetVringAddr, 0, Act::WaitFor(waits));
    let (mut driver, log) = driver(Some(act), PATIENT);
    driver.start(VERSION_1);
    driver.wait_for_event();
    let first: Vec<Got> = (0..4).map(|_| log.recv().unwrap()).collect();
    assert_eq!(requests(&first), [2, 8, 10, 9]);
    let_go.send(()).unwrap();
    driver.reset();
    let rest: Vec<Got> = log.try_iter().collect();
    assert_eq!(rest.len(), 1 + QUEUES * EACH_QUEUE - 4 + QUEUES);
    driver.start(VERSION_1);
    wait_for_start(&driver, &log);
    assert_eq!(driver.faults(), [""; 0]);
}

/// A name for failures, and what is done.
type Harm = (&'static str, fn(Request) -> Act);

/// What no answer is, and what the error must say.
const HARMS: [Harm; 8] = [
    ("has closed the connection", |_| Act::Close),
    ("has closed the connection", |_| Act::Break),
    ("is no answer", |request| {
        Act::Send(script::reply(request as u32 + 1, 0))
    }),
    ("is no answer", |_| Act::Send(vec![0xff; 64])),
    ("is no answer", |request| {
        // Not a reply, and of the wrong size.
        let mut bytes = script::reply(request as u32, 0);
        bytes[4] = 1;
        Act::Send(bytes)
    }),
    ("is no answer", |request| {
        let mut bytes = script::reply(request as u32, 0);
        bytes[8] = 12;
        Act::Send(bytes)
    }),
    ("is no answer", |_| Act::Send(vec![0; 1 << 16])),
    ("has not answered", |_| Act::Hang),
];

fn patience(says: &str) -> Patience {
    match says.contains("has not answered") {
        true => IMPATIENT,
        false => PATIENT,
    }
}

#[test]
fn harm_during_the_handshake_is_an_error_of_the_start() {
    for request in HANDSHAKE {
        for (says, harm) in HARMS {
            let (result, ..) = connect(Some((request, 0, harm(request))), patience(says));
            let error = result.unwrap_err().to_string();
            assert!(error.contains(says), "{request}: {error}");
        }
    }
}

#[test]
fn a_backend_that_lacks_something_is_an_error_of_the_start() {
    let lacking = [
        (
            Request::GetFeatures,
            script::FEATURES & !(1 << 30),
            "PROTOCOL_FEATURES",
        ),
        (
            Request::GetFeatures,
            script::FEATURES & !(1 << 32),
            "VERSION_1",
        ),
        (
            Request::GetFeatures,
            script::FEATURES & !(1 << 29),
            "EVENT_IDX",
        ),
        (
            Request::GetFeatures,
            script::FEATURES & !(1 << 28),
            "INDIRECT_DESC",
        ),
        (Request::GetFeatures, 0, "PROTOCOL_FEATURES"),
        (Request::GetProtocolFeatures, !(1 << 3), "REPLY_ACK"),
        (Request::GetQueueNum, 1, "two queues"),
        (Request::SetMemTable, 1, "refused VHOST_USER_SET_MEM_TABLE"),
    ];
    for (request, answer, says) in lacking {
        let (result, ..) = connect(Some((request, 0, Act::Answer(answer))), PATIENT);
        let error = result.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn harm_during_the_start_of_the_queues_asks_for_reset_and_says_so_once() {
    let refused: Harm = ("has refused", |_| Act::Answer(u64::MAX));
    for request in START {
        for (says, harm) in HARMS.into_iter().chain([refused]) {
            let act = (request, 0, harm(request));
            let (mut driver, _log) = driver(Some(act), patience(says));
            driver.start(VERSION_1);
            let fault = wait_for_fault(&mut driver);
            assert!(fault.contains("serve a file system"), "{fault}");
            assert!(fault.contains(says), "{request}: {fault}");
            // It is over, and each start says why.
            driver.start(VERSION_1);
            assert!(driver.needs_reset());
            assert_eq!(driver.faults(), [fault.as_str(); 2]);
        }
    }
}

#[test]
fn harm_while_a_queue_is_taken_back_ends_the_connection() {
    for (says, harm) in HARMS {
        let act = (Request::GetVringBase, 0, harm(Request::GetVringBase));
        let (mut driver, log) = driver(Some(act), patience(says));
        driver.start(VERSION_1);
        // A backend that has answered: else it may be late with that, too.
        wait_for_start(&driver, &log);
        driver.reset();
        assert!(!driver.needs_reset());
        driver.start(VERSION_1);
        assert!(driver.needs_reset());
        let faults = driver.faults();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains(says), "{faults:?}");
    }
}

#[test]
fn a_backend_that_speaks_out_of_turn_is_heard_no_more() {
    for request in [Request::SetMemTable, Request::SetVringEnable] {
        let skip = match request {
            Request::SetVringEnable => QUEUES - 1,
            _ => 0,
        };
        let (mut driver, _log) = driver(Some((request, skip, Act::Chatter)), PATIENT);
        driver.start(VERSION_1);
        let fault = wait_for_fault(&mut driver);
        assert!(fault.contains("is no answer"), "{request}: {fault}");
    }
}

#[test]
fn a_backend_that_dies_without_a_driver_is_told_at_the_start() {
    let (mut driver, log) = driver(Some((Request::GetVringBase, 1, Act::Close)), PATIENT);
    driver.start(VERSION_1);
    wait_for_start(&driver, &log);
    driver.reset();
    assert_eq!(driver.faults(), [""; 0]);
    driver.start(VERSION_1);
    let fault = wait_for_fault(&mut driver);
    assert!(fault.contains("closed the connection"), "{fault}");
}

#[test]
fn an_answer_that_comes_after_all_patience_changes_nothing() {
    let (let_go, waits) = channel();
    let act = (Request::SetVringKick, 0, Act::WaitFor(waits));
    let (mut driver, log) = driver(Some(act), IMPATIENT);
    driver.start(VERSION_1);
    let fault = wait_for_fault(&mut driver);
    assert!(fault.contains("has not answered"), "{fault}");
    let_go.send(()).unwrap();
    // Until the backend has found out.
    while log.recv().is_ok() {}
    driver.start(VERSION_1);
    assert!(driver.needs_reset());
    assert_eq!(driver.faults().len(), 2);
}

#[test]
fn descriptors_that_a_backend_attaches_are_closed() {
    for request in HANDSHAKE
        .into_iter()
        .chain(START)
        .chain([Request::GetVringBase])
    {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let act = (request, 0, Act::Attach(writer.into()));
        let (mut driver, log) = driver(Some(act), PATIENT);
        driver.start(VERSION_1);
        wait_for_start(&driver, &log);
        driver.reset();
        // Its end comes when nobody has the other end any more.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        assert_eq!(driver.faults(), [""; 0]);
    }
}

#[test]
fn rings_outside_memory_are_kept_from_the_backend() {
    let (mut driver, log) = driver(None, PATIENT);
    driver.reset();
    assert!(driver.negotiate(VERSION_1));
    driver.place_queue(0, 16, [MEMORY_BYTES, 0x1000, 0x2000]);
    driver.add_status(DRIVER_OK);
    assert!(driver.needs_reset());
    driver.reset();
    assert_eq!(log.try_iter().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_driver_leaves_a_backend_that_works(acts in any_acts(QUEUES)) {
        let (mut driver, log) = driver(None, PATIENT);
        driver.start(VERSION_1);
        play(&mut driver, &acts)?;
        driver.reset();
        while log.try_recv().is_ok() {}
        driver.start(VERSION_1);
        wait_for_start(&driver, &log);
        prop_assert!(!driver.needs_reset());
    }
}

/// What a backend may send at any time: whole answers, right and wrong, and pieces.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let reply =
        (0_u32..20, any::<u64>()).prop_map(|(request, number)| script::reply(request, number));
    let piece = proptest::collection::vec(any::<u8>(), 0..40);
    let pieces = proptest::collection::vec(prop_oneof![2 => reply, 1 => piece], 1..8);
    pieces.prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_answer_is_borne(bytes in any_bytes(), step in 0..HANDSHAKE.len() + START.len() + 1) {
        let stop = [Request::GetVringBase];
        let mut steps = HANDSHAKE.into_iter().chain(START).chain(stop);
        let request = steps.nth(step).unwrap();
        let (backend, memory, log) = connect(Some((request, 0, Act::Send(bytes))), IMPATIENT);
        let Ok(backend) = backend else { return Ok(()) };
        let device = Filesystem::new("fs0".to_owned(), [b'a'; TAG_BYTES], backend).unwrap();
        let mut driver = MockDriver::in_memory(memory, |_| device);
        driver.start(VERSION_1);
        driver.wait_for_event();
        driver.reset();
        drop(log);
    }
}
