//! The command line: the scenario's name, then `key=value` pairs.

/// The parsed command line.
pub struct Arguments<'a> {
    /// The first word.
    pub scenario: &'a str,
    rest: &'a str,
}

impl<'a> Arguments<'a> {
    /// Parses `line`.
    pub fn parse(line: &'a str) -> Self {
        let (scenario, rest) = line.split_once(' ').unwrap_or((line, ""));
        Self { scenario, rest }
    }

    /// The value of `key`.
    pub fn text(&self, key: &str) -> &'a str {
        let mut pairs = self.rest.split(' ').filter_map(|pair| pair.split_once('='));
        match pairs.find(|(name, _)| *name == key) {
            Some((_, value)) => value,
            None => panic!("the command line has no {key}"),
        }
    }

    /// The value of `key` as a number.
    pub fn number(&self, key: &str) -> u64 {
        let text = self.text(key);
        match text.parse() {
            Ok(number) => number,
            Err(_) => panic!("{key}={text} is not a number"),
        }
    }
}
