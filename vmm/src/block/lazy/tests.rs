//! An agent that answers when and as it likes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use outboard::{Builder, SPAN_BYTES, Tree};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::block::buffers::Buffers;
use crate::block::extents::{Extent, ExtentDisk};
use crate::block::open;
use crate::block::verified::Blob;
use crate::memory::{self, GuestMemory};

/// A disk of two blobs, the second of which is not there, and what its agent has.
struct Setup {
    disk: LazyDisk,
    agent: File,
    content: Vec<u8>,
    missing: Arc<File>,
    memory: GuestMemory,
}

const FIRST: usize = 40 << 10;
const SECOND: usize = 3 << 20;

fn file() -> File {
    let fd = rustix::fs::memfd_create("blob", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    File::from(fd)
}

fn blob(content: &[u8], file: &Arc<File>, partial: bool) -> Extent {
    let outboard = self::file();
    let mut builder = Builder::new(outboard.try_clone().unwrap());
    for span in content.chunks(SPAN_BYTES as usize) {
        builder.push(span).unwrap();
    }
    let built = builder.finish().unwrap();
    Extent {
        file: Arc::clone(file),
        offset_bytes: 0,
        length_bytes: content.len() as u64,
        blob: Some(Blob {
            tree: Tree::new(built.hash, built.blob_bytes),
            outboard: Arc::new(outboard),
            blocks: None,
            partial,
        }),
    }
}

fn setup() -> Setup {
    let content: Vec<u8> = (0..FIRST + SECOND)
        .map(|n| (n / 97 + n % 251) as u8)
        .collect();
    let present = Arc::new(file());
    present.write_all_at(&content[..FIRST], 0).unwrap();
    let missing = Arc::new(file());
    missing.set_len(SECOND as u64).unwrap();
    let extents = vec![
        blob(&content[..FIRST], &present, false),
        blob(&content[FIRST..], &missing, true),
    ];
    let disk = ExtentDisk::new(extents, true).unwrap();
    let pieces = disk.presence();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, agents) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    Setup {
        disk: LazyDisk::new(open(disk), pieces, ours).unwrap(),
        agent: File::from(agents),
        content,
        missing,
        memory: memory::create(16 << 20).unwrap(),
    }
}

impl Setup {
    fn start(&mut self, head: u16, offset: usize, length: usize) -> Option<io::Result<()>> {
        let mut buffers = Buffers::default();
        let address = GuestAddress(u64::from(head) << 20);
        buffers.push(&self.memory, address, length).unwrap();
        let ticket = Ticket {
            head,
            status: GuestAddress(0),
            written: 0,
            writes: false,
        };
        self.disk
            .start(ticket, Operation::Read(offset as u64, buffers))
    }

    fn bytes(&self, head: u16, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let address = GuestAddress(u64::from(head) << 20);
        self.memory.read_slice(&mut bytes, address).unwrap();
        bytes
    }

    fn asked(&mut self) -> Vec<Request> {
        use std::io::Read;
        let mut requests = Vec::new();
        let mut bytes = [0; 64];
        while let Ok(count @ 1..) = self.agent.read(&mut bytes) {
            requests.push(Request::decode(&bytes[..count]).unwrap());
        }
        requests
    }

    /// Puts what a request asks for in its place, and says so.
    fn answer(&mut self, request: Request) {
        let start = (request.first_group * GROUP_BYTES) as usize;
        let end = SECOND.min(start + (u64::from(request.groups) * GROUP_BYTES) as usize);
        let bytes = &self.content[FIRST..][start..end];
        self.missing.write_all_at(bytes, start as u64).unwrap();
        self.reply(request.id, true);
    }

    fn reply(&mut self, id: u32, present: bool) {
        use std::io::Write;
        self.agent
            .write_all(&Reply { id, present }.encode())
            .unwrap();
    }

    fn completed(&mut self) -> Vec<(u16, bool)> {
        self.disk.acknowledge();
        let mut completed = Vec::new();
        while let Some((ticket, result)) = self.disk.complete() {
            completed.push((ticket.head, result.is_ok()));
        }
        completed
    }
}

#[test]
fn what_is_there_is_read_without_asking() {
    let mut setup = setup();
    assert!(setup.start(1, 512, 8192).unwrap().is_ok());
    assert!(setup.bytes(1, 8192) == setup.content[512..512 + 8192]);
    assert_eq!(setup.asked(), []);
}

#[test]
fn what_is_missing_is_asked_for_once_and_read_when_it_is_there() {
    let mut setup = setup();
    let offset = FIRST + 100 * 1024;
    assert!(setup.start(1, offset, 20_480).is_none());
    let asked = setup.asked();
    let [request] = asked[..] else {
        panic!("{asked:?}")
    };
    let expected = (1, 100 * 1024 / GROUP_BYTES, 2);
    assert_eq!(
        (request.extent, request.first_group, request.groups),
        expected
    );
    assert_eq!(setup.completed(), []);
    setup.answer(request);
    assert_eq!(setup.completed(), [(1, true)]);
    assert!(setup.bytes(1, 20_480) == setup.content[offset..offset + 20_480]);
    // From now on it is known to be there.
    assert!(setup.start(2, offset, 512).unwrap().is_ok());
    assert_eq!(setup.asked(), []);
}

#[test]
fn a_read_of_both_waits_for_what_is_missing_alone() {
    let mut setup = setup();
    assert!(setup.start(1, FIRST - 4096, 8192).is_none());
    let asked = setup.asked();
    assert_eq!(asked.len(), 1);
    setup.answer(asked[0]);
    assert_eq!(setup.completed(), [(1, true)]);
    assert!(setup.bytes(1, 8192) == setup.content[FIRST - 4096..FIRST + 4096]);
}

#[test]
fn answers_may_come_in_any_order_and_some_may_be_failures() {
    let mut setup = setup();
    for head in 1..=3 {
        let offset = FIRST + usize::from(head) * (64 << 10);
        assert!(setup.start(head, offset, 4096).is_none());
    }
    let asked = setup.asked();
    setup.answer(asked[2]);
    setup.reply(asked[0].id, false);
    let mut completed = setup.completed();
    completed.sort_unstable();
    assert_eq!(completed, [(1, false), (3, true)]);
    setup.reply(9999, true);
    setup.answer(asked[1]);
    assert_eq!(setup.completed(), [(2, true)]);
    // A failure is not for ever.
    assert!(setup.start(1, FIRST + (64 << 10), 4096).is_none());
    let again = setup.asked()[0];
    setup.answer(again);
    assert_eq!(setup.completed(), [(1, true)]);
}

#[test]
fn an_agent_that_lies_gives_no_wrong_data() {
    let mut setup = setup();
    assert!(setup.start(1, FIRST, 4096).is_none());
    let id = setup.asked()[0].id;
    setup.reply(id, true);
    assert_eq!(setup.completed(), [(1, false)]);
}

#[test]
fn without_its_agent_what_is_missing_is_an_error_and_the_rest_is_read() {
    for last_words in [&b""[..], b"no reply"] {
        let mut setup = setup();
        assert!(setup.start(1, FIRST, 4096).is_none());
        if !last_words.is_empty() {
            use std::io::Write;
            setup.agent.write_all(&[7; 9]).unwrap();
        }
        setup.agent = file();
        assert_eq!(setup.completed(), [(1, false)]);
        assert!(setup.start(2, FIRST, 4096).unwrap().is_err());
        assert!(setup.start(3, 0, 4096).unwrap().is_ok());
    }
}

#[test]
fn a_reset_forgets_what_waits_and_its_answers_do_no_harm() {
    let mut setup = setup();
    assert!(setup.start(1, FIRST, 4096).is_none());
    let before = setup.asked();
    assert!(setup.disk.wait(Duration::from_secs(10)));
    // The same chain again, for something else.
    assert!(setup.start(1, FIRST + (1 << 20), 4096).is_none());
    let after = setup.asked();
    setup.answer(before[0]);
    assert_eq!(setup.completed(), []);
    setup.answer(after[0]);
    assert_eq!(setup.completed(), [(1, true)]);
    assert!(setup.start(2, FIRST, 4096).unwrap().is_ok());
}

#[test]
fn no_more_is_asked_for_at_a_time_than_the_agent_expects() {
    let mut setup = setup();
    let mut started = 0;
    while setup.disk.has_room() {
        let offset = FIRST + usize::from(started) * (32 << 10);
        assert!(setup.start(started % 15, offset, 512).is_none());
        started += 1;
    }
    assert_eq!(usize::from(started), MAX_REQUESTS);
    let asked = setup.asked();
    assert_eq!(asked.len(), MAX_REQUESTS);
    for request in asked {
        setup.answer(request);
    }
    assert_eq!(setup.completed().len(), MAX_REQUESTS);
    assert!(setup.disk.has_room());
}
