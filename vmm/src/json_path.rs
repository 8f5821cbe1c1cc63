//! Which field of a JSON document (RFC 8259) an error is about.

use std::fmt::Write;

/// A value that is not complete yet.
enum Open {
    /// Where its last key is, from quote to quote; empty before the first one.
    Object {
        key: std::ops::Range<usize>,
        keyed: bool,
    },
    Array {
        index: usize,
    },
}

/// The path of what ends at `line` and `column`, as [`serde_json::Error`] counts them, such
/// as `disks[0].extents[2].file`; empty for the whole document. `text` is as it came: where
/// it is no JSON, the path ends there.
pub fn of_position(text: &[u8], line: usize, column: usize) -> String {
    let mut before = text.split_inclusive(|byte| *byte == b'\n');
    let lines: usize = before
        .by_ref()
        .take(line.saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    let end = lines.saturating_add(column).min(text.len());
    let text = &text[..end];

    let mut open: Vec<Open> = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let start = at;
        at += 1;
        match byte {
            b'{' => open.push(Open::Object {
                key: 0..0,
                keyed: false,
            }),
            b'[' => open.push(Open::Array { index: 0 }),
            b'}' | b']' => {
                open.pop();
            }
            b',' => match open.last_mut() {
                Some(Open::Object { keyed, .. }) => *keyed = false,
                Some(Open::Array { index }) => *index += 1,
                None => {}
            },
            b'"' => {
                while let Some(byte) = text.get(at).filter(|byte| **byte != b'"') {
                    at += 1 + usize::from(*byte == b'\\');
                }
                if let Some(Open::Object { key, keyed }) = open.last_mut()
                    && !*keyed
                {
                    (*key, *keyed) = (start + 1..at.min(text.len()), true);
                }
                at += 1;
            }
            _ => {}
        }
    }

    let mut path = String::new();
    for value in &open {
        match value {
            Open::Object { key, .. } => {
                let key = String::from_utf8_lossy(&text[key.clone()]);
                if !path.is_empty() && !key.is_empty() {
                    path.push('.');
                }
                path.push_str(&key);
            }
            Open::Array { index } => {
                // Memory is all that could be missing.
                let _ = write!(path, "[{index}]");
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only read")]
    struct Outer {
        name: String,
        list: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only read")]
    struct Inner {
        number: u8,
        other: Option<u8>,
    }

    #[test]
    fn an_error_is_found_by_the_path_to_its_field() {
        for (text, path) in [
            (r#"{"name": 7, "list": []}"#, "name"),
            (
                r#"{"name": "a\"{[\\", "list": [{"number": 1}, {"number": 256}]}"#,
                "list[1].number",
            ),
            (
                "{\"name\": \"\",\n \"list\": [\n{\"number\":\n -1}]}",
                "list[0].number",
            ),
            (
                r#"{"list": [{"number": 1, "unknown": 2}], "name": ""}"#,
                "list[0].unknown",
            ),
            (
                r#"{"list": [{"number": 1}, {"other": 2}], "name": ""}"#,
                "list[1]",
            ),
            (r#"{"list": [{"number": 1}, 5], "name": ""}"#, "list[1]"),
            (r#"{"list": []}"#, ""),
            (r#"[]"#, ""),
            (r#""{""#, ""),
        ] {
            let error = serde_json::from_str::<Outer>(text).unwrap_err();
            let found = of_position(text.as_bytes(), error.line(), error.column());
            assert_eq!(found, path, "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_has_a_path_at_any_position(
            text in r#"[\[\]{},:"\\a1 \n]{0,40}"#,
            line in 0..5_usize,
            column in prop_oneof![0..50_usize, Just(usize::MAX)],
        ) {
            let path = of_position(text.as_bytes(), line, column);
            prop_assert!(path.len() <= 3 * text.len());
        }
    }
}
