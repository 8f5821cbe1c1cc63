//! What a peer says, and the pieces of blobs that it sends.
#![no_main]

use hostagent::peer::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 3 {
        0 => fuzzing::request(rest),
        1 => fuzzing::answer(rest),
        _ => {
            let Some((head, sent)) = rest.split_at_checked(24) else {
                return;
            };
            let number = |at: usize| head[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
            fuzzing::piece(number(0), number(8)..number(16), sent);
        }
    }
});
