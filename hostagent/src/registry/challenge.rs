//! `WWW-Authenticate`: how a server wants to be convinced.
//!
//! Source: RFC 9110, sections 5.6 and 11.6.1. A header has a list of challenges,
//! each with a list of parameters, both parted by commas; a comma in front of
//! `token "="` continues a challenge, any other begins the next one.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// Longer headers are not looked at.
const MAX_HEADER_BYTES: usize = 8 << 10;
/// More challenges or parameters than any server has reason to send.
const MAX_ITEMS: usize = 32;

/// One way to authenticate that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// The scheme, in lower case.
    pub scheme: String,
    /// Parameters, their names in lower case.
    pub parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The first parameter of that name.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// The challenges of all `WWW-Authenticate` headers, in order. A header that is
/// malformed contributes what comes before the place where it is.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut found = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE).iter().take(MAX_ITEMS) {
        if value.len() <= MAX_HEADER_BYTES {
            Scanner(value.as_bytes()).challenges(&mut found);
        }
    }
    found
}

/// What is left of a header.
#[derive(Clone, Copy)]
struct Scanner<'a>(&'a [u8]);

impl<'a> Scanner<'a> {
    fn challenges(mut self, found: &mut Vec<Challenge>) {
        while found.len() < MAX_ITEMS {
            self.skip(b" \t,");
            let Some(scheme) = self.token() else { return };
            let mut challenge = Challenge {
                scheme: scheme.to_ascii_lowercase(),
                parameters: Vec::new(),
            };
            let spaced = self.skip(b" \t");
            let well_formed = !spaced || self.parameters(&mut challenge);
            found.push(challenge);
            if !well_formed {
                return;
            }
        }
    }

    /// Reads the parameters of a challenge, up to the next one's scheme. `false`
    /// if it is malformed.
    fn parameters(&mut self, challenge: &mut Challenge) -> bool {
        loop {
            let mut ahead = *self;
            ahead.skip(b" \t,");
            if ahead.0.is_empty() {
                *self = ahead;
                return true;
            }
            let Some(name) = ahead.token() else {
                return false;
            };
            ahead.skip(b" \t");
            if !ahead.take(b'=') {
                // A token68, or the scheme of the next challenge.
                let is_token68 = challenge.parameters.is_empty() && self.is_token68();
                if is_token68 {
                    self.skip_token68();
                }
                return true;
            }
            if challenge.parameters.is_empty() && self.is_token68() {
                self.skip_token68();
                return true;
            }
            ahead.skip(b" \t");
            let Some(value) = ahead.value() else {
                return false;
            };
            if challenge.parameters.len() >= MAX_ITEMS {
                return false;
            }
            challenge
                .parameters
                .push((name.to_ascii_lowercase(), value));
            *self = ahead;
            // Parameters are parted by commas.
            self.skip(b" \t");
            if !self.0.is_empty() && !self.0.starts_with(b",") {
                return false;
            }
        }
    }

    /// Whether what follows is a `token68` alone: base64 that ends the challenge.
    fn is_token68(self) -> bool {
        let mut rest = self;
        rest.skip_token68();
        let taken = self.0.len() - rest.0.len();
        rest.skip(b" \t");
        taken > 0 && (rest.0.is_empty() || rest.0.starts_with(b","))
    }

    fn skip_token68(&mut self) {
        let length = self
            .0
            .iter()
            .take_while(|b| b.is_ascii_alphanumeric() || b"-._~+/".contains(b))
            .count();
        self.0 = &self.0[length..];
        self.skip(b"=");
    }

    fn skip(&mut self, any: &[u8]) -> bool {
        let length = self.0.iter().take_while(|b| any.contains(b)).count();
        self.0 = &self.0[length..];
        length > 0
    }

    fn take(&mut self, byte: u8) -> bool {
        match self.0.split_first() {
            Some((first, rest)) if *first == byte => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    fn token(&mut self) -> Option<&'a str> {
        let is_token = |b: &&u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
        let length = self.0.iter().take_while(is_token).count();
        let (token, rest) = self.0.split_at(length);
        self.0 = rest;
        std::str::from_utf8(token).ok().filter(|t| !t.is_empty())
    }

    /// A token or a quoted string.
    fn value(&mut self) -> Option<String> {
        if !self.take(b'"') {
            return self.token().map(str::to_owned);
        }
        let mut value = Vec::new();
        loop {
            let (first, rest) = self.0.split_first()?;
            self.0 = rest;
            match first {
                b'"' => return String::from_utf8(value).ok(),
                b'\\' => {
                    let (escaped, rest) = self.0.split_first()?;
                    self.0 = rest;
                    value.push(*escaped);
                }
                byte => value.push(*byte),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    use super::*;

    fn parse(headers: &[&str]) -> Vec<Challenge> {
        let mut map = HeaderMap::new();
        for header in headers {
            map.append(WWW_AUTHENTICATE, HeaderValue::from_str(header).unwrap());
        }
        challenges(&map)
    }

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        let own = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        Challenge {
            scheme: scheme.to_owned(),
            parameters: parameters.iter().map(own).collect(),
        }
    }

    #[test]
    fn the_challenge_of_a_registry_is_read() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let expected = challenge(
            "bearer",
            &[
                ("realm", "https://auth.docker.io/token"),
                ("service", "registry.docker.io"),
                ("scope", "repository:a/b:pull,push"),
            ],
        );
        assert_eq!(parse(&[header]), [expected]);
    }

    #[test]
    fn several_challenges_are_told_apart_in_one_header_and_in_several() {
        let basic = challenge("basic", &[("realm", "simple")]);
        let newer = challenge(
            "newauth",
            &[
                ("realm", "apps"),
                ("type", "1"),
                ("title", "Login to \"apps\""),
            ],
        );
        // The example of RFC 9110, section 11.6.1.
        let rfc =
            r#"Basic realm="simple", Newauth realm="apps", type=1, title="Login to \"apps\"""#;
        assert_eq!(parse(&[rfc]), [basic.clone(), newer.clone()]);
        let second = r#" , newauth REALM = "apps" ,, type=1 , title="Login to \"apps\"","#;
        assert_eq!(parse(&["Basic realm=simple", second]), [basic, newer]);
    }

    #[test]
    fn schemes_with_base64_or_nothing_are_passed_over() {
        let basic = challenge("basic", &[("realm", "a")]);
        let negotiate = challenge("negotiate", &[]);
        for header in [
            "Negotiate, Basic realm=a",
            "Negotiate YWJj/+==, Basic realm=a",
            "Negotiate YWJj, Basic realm=a",
            "Negotiate YWJj=, Basic realm=a",
        ] {
            assert_eq!(
                parse(&[header]),
                [negotiate.clone(), basic.clone()],
                "{header}"
            );
        }
    }

    #[test]
    fn what_is_malformed_ends_the_header_without_its_parameter() {
        let expected = [challenge("bearer", &[("realm", "a")])];
        for header in [
            r#"Bearer realm="a",scope="never closed"#,
            r#"Bearer realm="a",scope="escape\"#,
            r#"Bearer realm="a" scope="b""#,
            r#"Bearer realm="a",="b""#,
        ] {
            assert_eq!(parse(&[header]), expected, "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_to_an_end(text in "[ -~\t]{0,200}") {
            let found = parse(&[&text]);
            prop_assert!(found.len() <= MAX_ITEMS);
        }

        #[test]
        fn what_is_quoted_is_read_back(value in "[ -~]{0,50}", other in "[!-~]{0,20}") {
            let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let header = format!("Bearer realm=\"{}\", scope=\"{}\", Basic realm=x", quote(&value), quote(&other));
            let expected = [
                challenge("bearer", &[("realm", &value), ("scope", &other)]),
                challenge("basic", &[("realm", "x")]),
            ];
            prop_assert_eq!(parse(&[&header]), expected);
        }
    }
}
