//! Discard and write zeroes (section 5.2.6.2).

use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES};

use super::super::super::mock::VERSION_1;
use super::super::super::queues::BYTES_PER_TURN;
use super::*;

const BOTH: u64 = VERSION_1 | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
const UNMAP: u32 = 1;

type Segment = (u64, u32, u32);

fn started(backend: Backend) -> (MockDriver, Arc<File>) {
    let (mut driver, file) = driver_on(backend, false, Limits::default());
    driver.start(BOTH);
    (driver, file)
}

fn put_segments(driver: &MockDriver, segments: &[Segment]) -> u32 {
    let mut bytes = Vec::new();
    for (sector, sectors, flags) in segments {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    driver.put(DATA, &bytes);
    bytes.len() as u32
}

fn ask(driver: &mut MockDriver, kind: u32, segments: &[Segment]) -> u8 {
    let length = put_segments(driver, segments);
    let (status, used) = request(driver, kind, 0, length, 0);
    assert_eq!(used, 1);
    status
}

fn zeroed(expected: &mut [u8], segment: Segment) {
    let start = segment.0 as usize * 512;
    expected[start..start + segment.1 as usize * 512].fill(0);
}

#[test]
fn the_limits_of_both_are_told_where_the_disk_can_be_written() {
    let (driver, _) = driver(false);
    let numbers: Vec<u32> = (36..60)
        .step_by(4)
        .map(|at| driver.read(0x100 + at))
        .collect();
    assert_eq!(
        numbers,
        [
            MAX_DISCARD_SECTORS,
            MAX_DISCARD_SEGMENTS,
            DISCARD_ALIGNMENT,
            MAX_WRITE_ZEROES_SECTORS,
            MAX_WRITE_ZEROES_SEGMENTS,
            1
        ]
    );
    let offered = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    assert_eq!(features(false) & offered, offered);
    assert_eq!(features(true) & offered, 0);
    // As large as the chunks that drivers cut their requests into.
    assert!(u64::from(MAX_WRITE_ZEROES_SECTORS) * SECTOR_BYTES <= REQUEST_MAX_BYTES);
}

#[test]
fn a_read_only_disk_and_an_unasked_one_know_neither() {
    for read_only in [true, false] {
        let (mut driver, file) = driver(read_only);
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            assert_eq!(ask(&mut driver, kind, &[(0, 8, 0)]), UNSUPPORTED);
        }
        assert!(disk_content(&file) == content());
    }
}

#[test]
fn a_discard_frees_what_it_names_and_nothing_else() {
    for backend in [Backend::Plain, Backend::Ring, Backend::RingOnly] {
        let (mut driver, file) = started(backend);
        let segments = [(8, 8, 0), (32, 16, 0), (63, 1, 0)];
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_DISCARD, &segments), OK);
        let mut expected = content();
        for segment in segments {
            zeroed(&mut expected, segment);
        }
        assert!(disk_content(&file) == expected);
        // Three pages of eight.
        use std::os::unix::fs::MetadataExt;
        assert_eq!(file.metadata().unwrap().blocks(), 5 * 8);
    }
}

#[test]
fn segments_that_are_none_are_errors_and_touch_nothing() {
    let too_many = vec![(0, 1, 0); MAX_DISCARD_SEGMENTS as usize + 1];
    let cases: [(&[Segment], u8); 10] = [
        (&[], IO_ERROR),
        (&too_many, IO_ERROR),
        (&[(64, 1, 0)], IO_ERROR),
        (&[(63, 2, 0)], IO_ERROR),
        (&[(0, MAX_DISCARD_SECTORS + 1, 0)], IO_ERROR),
        (&[(0, u32::MAX, 0)], IO_ERROR),
        (&[(u64::MAX, 1, 0)], IO_ERROR),
        (&[(u64::MAX / 512, 1, 0)], IO_ERROR),
        // The good one before it is not done either.
        (&[(0, 8, 0), (u64::MAX - 7, 8, 0)], IO_ERROR),
        (&[(0, 8, 2)], UNSUPPORTED),
    ];
    let (mut driver, file) = started(Backend::Plain);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        for (segments, status) in cases {
            assert_eq!(ask(&mut driver, kind, segments), status, "{segments:?}");
        }
    }
    assert_eq!(
        ask(&mut driver, VIRTIO_BLK_T_DISCARD, &[(0, 8, UNMAP)]),
        UNSUPPORTED
    );
    let two = [(0, 1, 0), (8, 1, 0)];
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, &two), IO_ERROR);
    // Half a segment, and one in the wrong direction.
    put_segments(&driver, &[(0, 8, 0)]);
    assert_eq!(
        request(&mut driver, VIRTIO_BLK_T_DISCARD, 0, 8, 0).0,
        IO_ERROR
    );
    assert_eq!(
        request(&mut driver, VIRTIO_BLK_T_DISCARD, 0, 16, WRITE).0,
        IO_ERROR
    );
    assert!(disk_content(&file) == content());
    assert_eq!(driver.faults(), [""; 0]);
}

#[test]
fn nothing_at_the_end_is_nothing() {
    let (mut driver, file) = started(Backend::Plain);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(ask(&mut driver, kind, &[(64, 0, 0)]), OK);
    }
    assert!(disk_content(&file) == content());
}

/// Does nothing, at once.
struct Idle;

impl BlockBackend for Idle {
    fn size_bytes(&self) -> u64 {
        64 << 20
    }

    fn read_only(&self) -> bool {
        false
    }

    fn start(&mut self, _: Ticket, _: Operation) -> Option<io::Result<()>> {
        Some(Ok(()))
    }
}

#[test]
fn a_disk_that_writes_many_zeroes_gives_others_their_turn() {
    let mut driver = driver_of(Box::new(Idle), Limits::default());
    driver.reset();
    driver.start(BOTH);
    put_header(&driver, VIRTIO_BLK_T_WRITE_ZEROES, 0);
    let length = put_segments(&driver, &[(0, MAX_WRITE_ZEROES_SECTORS, 0)]);
    let pieces = [(HEADER, 16, 0), (DATA, length, 0), (STATUS, 1, WRITE)];
    for request in 0..4 {
        driver.submit_at(0, 3 * request, &pieces);
    }
    let bytes = u64::from(MAX_WRITE_ZEROES_SECTORS) * SECTOR_BYTES;
    let in_a_turn = BYTES_PER_TURN.div_ceil(bytes) as usize;
    assert!(in_a_turn < 4);
    driver.transport.process_queue(0);
    assert_eq!(driver.take_used(0).len(), in_a_turn);
    assert_eq!(status(&driver), OK);
}

proptest! {
    #[test]
    fn zeroes_are_where_they_were_asked_for(
        backend in any_backend(),
        sector in 0_u64..64,
        sectors in 0_u32..64,
        flags in 0..2_u32,
    ) {
        let sectors = sectors.min(64 - sector as u32);
        let (mut driver, file) = started(backend);
        let segment = (sector, sectors, flags);
        prop_assert_eq!(ask(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, &[segment]), OK);
        let mut expected = content();
        zeroed(&mut expected, segment);
        prop_assert!(disk_content(&file) == expected);
    }

    /// Whatever bytes are said to be segments: an answer, never a fault, and
    /// nothing past the disk.
    #[test]
    fn any_bytes_are_borne_as_segments(
        backend in any_backend(),
        kind in prop_oneof![Just(VIRTIO_BLK_T_DISCARD), Just(VIRTIO_BLK_T_WRITE_ZEROES)],
        segments in proptest::collection::vec(
            (
                prop_oneof![0_u64..70, any::<u64>()],
                prop_oneof![0_u32..70, any::<u32>()],
                prop_oneof![4 => Just(0_u32), 1 => 0..4_u32, 1 => any::<u32>()],
            ),
            0..20,
        ),
    ) {
        let (mut driver, file) = started(backend);
        let status = ask(&mut driver, kind, &segments);
        prop_assert!([OK, IO_ERROR, UNSUPPORTED].contains(&status));
        prop_assert_eq!(driver.faults(), [""; 0]);
        prop_assert_eq!(file.metadata().unwrap().len(), DISK_BYTES as u64);
    }
}
