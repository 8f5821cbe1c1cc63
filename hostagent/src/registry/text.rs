//! What servers and programs say, made fit for an error message.

use serde::Deserialize;

/// The most characters of a server's words that an error repeats.
const MAX_DETAIL: usize = 400;
/// The most errors of one answer that are repeated.
const MAX_ERRORS: usize = 3;

/// The first `limit` characters of what is mostly text, on one line: whatever
/// could move a terminal's cursor becomes a space.
pub(super) fn printable(bytes: &[u8], limit: usize) -> String {
    let start = &bytes[..bytes.len().min(4 * limit)];
    let text: String = String::from_utf8_lossy(start)
        .chars()
        .map(|c| if is_plain(c) { c } else { ' ' })
        .take(limit)
        .collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Neither a control character nor one that turns the direction of text.
fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// What a registry or token server says in the body of an error: `errors[].code`
/// and `.message` (distribution specification 1.1, "Error Codes"), or the fields
/// that token servers use. Nothing, if it says nothing that is known.
pub(super) fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        errors: Option<Vec<Entry>>,
        message: Option<String>,
        details: Option<String>,
        error_description: Option<String>,
        error: Option<String>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        message: Option<String>,
    }
    let Ok(body) = serde_json::from_slice::<Body>(body) else {
        return String::new();
    };
    let entry = |entry: Entry| match (entry.code, entry.message) {
        (code, Some(message)) if !message.is_empty() && !code.is_empty() => {
            format!("{code}: {message}")
        }
        (code, message) => message.filter(|m| !m.is_empty()).unwrap_or(code),
    };
    let errors = body.errors.unwrap_or_default().into_iter().take(MAX_ERRORS);
    let mut texts: Vec<String> = errors.map(entry).collect();
    if texts.is_empty() {
        let single = [
            body.error_description,
            body.details,
            body.message,
            body.error,
        ];
        texts.extend(single.into_iter().flatten().next());
    }
    printable(texts.join("; ").as_bytes(), MAX_DETAIL)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_words_of_registries_and_token_servers_are_found() {
        for (body, words) in [
            (
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{}}]}"#,
                "MANIFEST_UNKNOWN: manifest unknown",
            ),
            (r#"{"errors":[{"code":"A"},{"message":"b"}]}"#, "A; b"),
            (
                r#"{"details":"incorrect username or password"}"#,
                "incorrect username or password",
            ),
            (
                r#"{"error":"invalid_grant","error_description":"expired"}"#,
                "expired",
            ),
            (r#"{"errors":[]}"#, ""),
            (r#"{"errors":[{"co"#, ""),
            ("<html>", ""),
        ] {
            assert_eq!(said(body.as_bytes()), words, "{body}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_short_and_printable(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let text = printable(&bytes, 100);
            prop_assert!(text.chars().count() <= 100);
            prop_assert!(text.chars().all(is_plain));
        }
    }
}
