//! The VMM's events, one JSON document a line.

use vmm::event::Event;

/// The longest line that is read. An event's longest part is the reason of a
/// fault, one sentence.
const MAX_LINE_BYTES: usize = 16 << 10;

/// Finds events in the bytes of a pipe.
#[derive(Debug, Default)]
pub struct EventDecoder {
    line: Vec<u8>,
    /// The line that is being read is too long to be an event.
    skipping: bool,
}

impl EventDecoder {
    /// The events that `bytes` complete. Kinds that this version does not know
    /// are skipped.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + piece.len() > MAX_LINE_BYTES {
                self.skipping = true;
                self.line.clear();
            }
            if !self.skipping {
                self.line.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                if !self.skipping {
                    events.extend(serde_json::from_slice::<Event>(&self.line));
                }
                self.line.clear();
                self.skipping = false;
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmm::event::EventKind;

    use super::*;

    const LINES: &str = concat!(
        "{\"monotonic_ns\":1,\"event\":\"process_started\"}\n",
        "{\"monotonic_ns\":2,\"event\":\"from_the_future\",\"x\":[]}\n",
        "not an event\n",
        "{\"monotonic_ns\":3,\"event\":\"guest_fault\",\"reason\":\"triple fault\"}\n",
    );

    proptest! {
        #[test]
        fn known_events_are_read_however_the_pipe_cuts_them(cut in 1usize..200) {
            let mut decoder = EventDecoder::default();
            let events: Vec<Event> = LINES
                .as_bytes()
                .chunks(cut)
                .flat_map(|piece| decoder.push(piece))
                .collect();
            prop_assert_eq!(
                events,
                [
                    Event { monotonic_ns: 1, kind: EventKind::ProcessStarted },
                    Event {
                        monotonic_ns: 3,
                        kind: EventKind::GuestFault { reason: "triple fault".into() },
                    },
                ]
            );
        }
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let mut decoder = EventDecoder::default();
        for _ in 0..100 {
            assert_eq!(decoder.push(&[b'x'; 4096]), []);
            assert!(decoder.line.len() <= MAX_LINE_BYTES);
        }
        let events = decoder.push(format!("\n{LINES}").as_bytes());
        assert_eq!(events.len(), 2);
    }
}
