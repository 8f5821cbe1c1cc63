//! The headers of a registry's answers, and what they say of a manifest.
#![no_main]

use hostagent::registry::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 4 {
        0 => fuzzing::challenges(rest),
        1 => fuzzing::content_range(rest),
        2 => fuzzing::next_page(rest),
        _ => fuzzing::media_type(rest),
    }
});
