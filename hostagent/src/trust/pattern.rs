//! Which repositories a rule is for.

use std::fmt;

use crate::image::name::ImageName;
use crate::registry::Repository;

/// The repositories of a rule: one, or all that are under a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// Domain and path, as [`Repository::canonical`] has them; without `/*`.
    path: String,
    is_prefix: bool,
}

/// Why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternProblem {
    /// Neither a repository nor a prefix.
    #[error(
        "{0:?} matches no repository; write one in full, such as docker.io/library/debian, or all under a path as registry.example/team/*"
    )]
    Malformed(String),
    /// Rules are for repositories, whatever the tag.
    #[error("{0:?} has a tag or a digest; a rule is for all of a repository")]
    Tag(String),
    /// A short name, which Docker fills up.
    #[error("{written:?} is not written in full; write {full:?}")]
    Short {
        /// What is in the file.
        written: String,
        /// What it would mean.
        full: String,
    },
}

impl Pattern {
    /// Reads a repository in full, or a prefix of components and `/*`.
    pub fn parse(text: &str) -> Result<Self, PatternProblem> {
        let malformed = || PatternProblem::Malformed(text.to_owned());
        let (path, is_prefix) = match text.strip_suffix("/*") {
            Some(path) => (path, true),
            None => (text, false),
        };
        // Two components more are a repository, also under a registry alone.
        let filling = if is_prefix { "/x/x" } else { "" };
        let example: ImageName = format!("{path}{filling}")
            .parse()
            .map_err(|_| malformed())?;
        if example.digest().is_some() || example.tag() != Some("latest") || has_tag(path) {
            return Err(PatternProblem::Tag(text.to_owned()));
        }
        let domain = path.split('/').next().unwrap_or_default();
        if !example.repository().starts_with(&format!("{domain}/"))
            || (!is_prefix && example.repository() != path)
        {
            let full = example.repository().strip_suffix(filling);
            return Err(PatternProblem::Short {
                written: text.to_owned(),
                full: full.unwrap_or_default().to_owned() + if is_prefix { "/*" } else { "" },
            });
        }
        let canonical = Repository::of(&example).canonical();
        let path = canonical.strip_suffix(filling).ok_or_else(malformed)?;
        Ok(Self {
            path: path.to_owned(),
            is_prefix,
        })
    }

    /// Whether a repository, in its canonical form, is one of them.
    pub fn matches(&self, repository: &str) -> bool {
        match repository.strip_prefix(&self.path) {
            Some(rest) if self.is_prefix => rest.starts_with('/'),
            rest => rest == Some(""),
        }
    }

    /// What makes the most specific of the patterns that match the greatest: of two
    /// prefixes of a repository, one is a prefix of the other.
    pub fn specificity(&self) -> (bool, usize) {
        (!self.is_prefix, self.path.len())
    }
}

/// As it is written in the file.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        f.write_str(if self.is_prefix { "/*" } else { "" })
    }
}

/// Whether the last component has a colon; one in the first belongs to a port.
fn has_tag(path: &str) -> bool {
    let last = path.rsplit_once('/').map(|(_, last)| last);
    last.is_some_and(|last| last.contains(':'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        let name: ImageName = name.parse().unwrap();
        let pattern = Pattern::parse(pattern).unwrap();
        pattern.matches(&Repository::of(&name).canonical())
    }

    #[test]
    fn a_pattern_matches_by_whole_components() {
        for (pattern, name, expected) in [
            ("registry.example/team/*", "registry.example/team/app", true),
            (
                "registry.example/team/*",
                "registry.example/team/a/b:1",
                true,
            ),
            ("registry.example/team/*", "registry.example/team", false),
            (
                "registry.example/team/*",
                "registry.example/team-2/app",
                false,
            ),
            ("registry.example/*", "registry.example/app", true),
            ("registry.example/*", "registry.example.evil/app", false),
            ("registry.example/*", "registry.example:5000/app", false),
            ("registry.example:5000/*", "registry.example:5000/app", true),
            ("docker.io/library/debian", "debian:12", true),
            ("docker.io/library/debian", "index.docker.io/debian", true),
            (
                "docker.io/library/debian",
                "docker.io/library/debian-x",
                false,
            ),
            ("docker.io/*", "debian", true),
            ("docker.io/*", "ghcr.io/debian", false),
            ("[::1]:5000/*", "[0::1]:5000/app", true),
            ("localhost/*", "localhost/app", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn another_spelling_of_the_registry_does_not_evade_a_pattern() {
        for name in [
            "Registry.Example/team/app",
            "registry.example:443/team/app",
            "REGISTRY.example:443/team/app",
        ] {
            assert!(matches("registry.example/team/*", name), "{name}");
        }
        assert!(matches("Registry.example:443/*", "registry.example/app"));
        assert!(matches(
            "docker.io/library/debian",
            "registry-1.docker.io/library/debian"
        ));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in [
            "",
            "*",
            "/*",
            "registry.example",
            "registry.example/",
            "registry.example/te*",
            "registry.example/*/app",
            "registry.example/**",
            "registry.example//*",
            "https://registry.example/*",
            "registry.example/Team/*",
        ] {
            let problem = Pattern::parse(text).unwrap_err();
            let is_expected = matches!(
                problem,
                PatternProblem::Malformed(_) | PatternProblem::Short { .. }
            );
            assert!(is_expected, "{text:?}: {problem:?}");
        }
        for text in ["a.example/b:1", "a.example/b:latest", "a.example/b:1/*"] {
            let problem = Pattern::parse(text).unwrap_err();
            let is_expected = matches!(
                problem,
                PatternProblem::Malformed(_) | PatternProblem::Tag(_)
            );
            assert!(is_expected, "{text:?}: {problem:?}");
        }
    }

    #[test]
    fn a_short_name_is_refused_with_the_full_one() {
        for (text, full) in [
            ("debian", "docker.io/library/debian"),
            ("team/app", "docker.io/team/app"),
            ("team/*", "docker.io/team/*"),
            ("docker.io/debian", "docker.io/library/debian"),
            ("index.docker.io/library/debian", "docker.io/library/debian"),
            ("index.docker.io/*", "docker.io/*"),
        ] {
            let message = Pattern::parse(text).unwrap_err().to_string();
            assert!(message.contains(&format!("write {full:?}")), "{message}");
        }
    }

    #[test]
    fn a_repository_is_more_specific_than_a_prefix_and_a_longer_prefix_than_a_shorter() {
        let texts = ["a.b/*", "a.b/c/*", "a.b/c/d/*", "a.b/c/d"];
        let patterns: Vec<_> = texts.iter().map(|t| Pattern::parse(t).unwrap()).collect();
        assert!(patterns.is_sorted_by_key(Pattern::specificity));
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_matches_what_it_names(text in "([a-zA-Z0-9.]{1,8}(:[0-9]{1,5})?/)?[a-z0-9/._:@*-]{0,20}(/\\*)?|\\PC{0,20}") {
            if let Ok(pattern) = Pattern::parse(&text) {
                let name: ImageName = text.replace('*', "x/x").parse().unwrap();
                prop_assert!(pattern.matches(&Repository::of(&name).canonical()));
            }
        }
    }
}
