//! Which images are accepted: the administrator's `policy.toml`.
//!
//! The file is in the directory `$MOTE_CONFIG`, or in `/etc/mote`. Without it, every
//! image is accepted. Fields that are not listed here are refused.
//!
//! ```toml
//! default = "accept"                  # accept | digest | reject
//!
//! [[repository]]
//! match = "registry.example/team/*"
//! require = "signature"               # accept | digest | signature | reject
//! keys = ["keys/team.pub"]
//! require_signed_tag = true           # default: false
//!
//! [[repository]]
//! match = "docker.io/library/debian"
//! require = "digest"
//! ```
//!
//! - `default` is what is required where nothing matches, and of images without a name.
//!   It must be there: an empty file, such as one that was cut short, is an error.
//! - `match` is a repository in full, or a path and `/*` for all that is under it. The
//!   most specific match is the one that counts, alone and wherever it stands in the
//!   file; two rules of the same repositories are an error. Names are compared as they
//!   are in references, so mirrors change nothing.
//! - `require` is `accept` for no condition, `digest` for references with a digest
//!   only, `signature` for a signature by one of `keys`, or `reject`.
//! - `keys` are files, each with a public key in PEM; a relative path starts at the
//!   directory of `policy.toml`. They are read with the policy: a key that is missing
//!   or cannot be used is an error.
//! - `require_signed_tag` is for `signature`: one that names no tag is for references with
//!   a digest only. One that names another tag than the reference is never good.
//!
//! Whoever cannot load the policy must refuse every image.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::key::{KeyError, TrustedKey};
use super::pattern::{Pattern, PatternProblem};
use crate::config_file::{self, FileError};
use crate::image::name::ImageName;
use crate::registry::Repository;

/// The name of the file.
pub const FILE_NAME: &str = "policy.toml";

/// What `policy.toml` says.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Nothing is required of what no rule matches, unless there is a file.
    default: Rule,
    rules: Vec<(Pattern, Rule)>,
}

/// What is required of some repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub demand: Demand,
    pub place: RulePlace,
}

/// What is required.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Demand {
    Accept,
    Digest,
    Signature(Signers),
    Reject,
}

/// Whose signatures count, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signers {
    /// One of these must have signed.
    pub keys: Vec<TrustedKey>,
    /// Whether a signature that names no tag is none for an image that was asked for by
    /// one.
    pub must_name_tag: bool,
}

/// Where a rule is written, for errors: `/etc/mote/policy.toml:7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RulePlace {
    /// The file, or none where there is none.
    pub path: Option<PathBuf>,
    /// The line of `match` or `default`, counted from 1.
    pub line: usize,
}

impl fmt::Display for RulePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}:{}", path.display(), self.line),
            None => f.write_str("there is no policy"),
        }
    }
}

/// Why `policy.toml` cannot be used. No image may be accepted then.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It cannot be read, or is none.
    #[error(transparent)]
    File(#[from] FileError),
    /// A rule that cannot be applied.
    #[error("{}:{line}: {problem}", path.display())]
    Rule {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: RuleProblem,
    },
    /// A key that cannot be used.
    #[error("{}:{line}: a key cannot be used, so no image is accepted", path.display())]
    Key {
        /// The file of the policy.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Which key, and why.
        source: KeyError,
    },
}

/// What is wrong with a rule of `policy.toml`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleProblem {
    /// `match` is no pattern.
    #[error(transparent)]
    Pattern(#[from] PatternProblem),
    /// Nobody could say which of the two counts.
    #[error("line {first} has a rule for {pattern} already")]
    Duplicate {
        /// What both match.
        pattern: String,
        /// The line of the other.
        first: usize,
    },
    /// Nothing could be accepted; `reject` says that.
    #[error("require = \"signature\" needs keys = [\"FILE\", …]")]
    NoKeys,
    /// Keys that would not be asked for.
    #[error("keys are used with require = \"signature\" only")]
    IdleKeys,
    /// A demand on signatures that are not asked for.
    #[error("require_signed_tag is used with require = \"signature\" only")]
    IdleSignedTag,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Spanned<DefaultRequire>,
    #[serde(default)]
    repository: Vec<RuleTable>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum DefaultRequire {
    Accept,
    Digest,
    Reject,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleTable {
    r#match: Spanned<String>,
    require: Spanned<Require>,
    keys: Option<Spanned<Vec<Spanned<PathBuf>>>>,
    require_signed_tag: Option<Spanned<bool>>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Require {
    Accept,
    Digest,
    Signature,
    Reject,
}

impl Policy {
    /// What holds without a file: everything is accepted.
    pub fn accept_everything() -> Self {
        Self {
            default: Rule {
                demand: Demand::Accept,
                place: RulePlace {
                    path: None,
                    line: 0,
                },
            },
            rules: Vec::new(),
        }
    }

    /// The policy of this machine: that of `$MOTE_CONFIG` or `/etc/mote`.
    pub fn of_this_machine() -> Result<Self, PolicyError> {
        Self::load(&config_file::directory())
    }

    /// Reads `policy.toml` in `directory` and the keys it names; if there is none,
    /// everything is accepted.
    pub fn load(directory: &Path) -> Result<Self, PolicyError> {
        let path = directory.join(FILE_NAME);
        match config_file::read(&path)? {
            Some(text) => Self::parse(&path, &text),
            None => Ok(Self::accept_everything()),
        }
    }

    /// Reads the text of a policy and the keys it names.
    fn parse(path: &Path, text: &str) -> Result<Self, PolicyError> {
        let line = |at: usize| config_file::line(text, at);
        let file: File = config_file::parse(path, text)?;
        let place = |at: usize| RulePlace {
            path: Some(path.to_owned()),
            line: line(at),
        };
        let default = match file.default.get_ref() {
            DefaultRequire::Accept => Demand::Accept,
            DefaultRequire::Digest => Demand::Digest,
            DefaultRequire::Reject => Demand::Reject,
        };
        let mut policy = Self {
            default: Rule {
                demand: default,
                place: place(file.default.span().start),
            },
            rules: Vec::new(),
        };
        for table in &file.repository {
            let at = table.r#match.span().start;
            let refuse = |problem| PolicyError::Rule {
                path: path.to_owned(),
                line: line(at),
                problem,
            };
            let pattern = Pattern::parse(table.r#match.get_ref()).map_err(|p| refuse(p.into()))?;
            if let Some((_, first)) = policy.rules.iter().find(|(known, _)| *known == pattern) {
                return Err(refuse(RuleProblem::Duplicate {
                    pattern: pattern.to_string(),
                    first: first.place.line,
                }));
            }
            let rule = Rule {
                demand: demand(path, table, &line)?,
                place: place(at),
            };
            policy.rules.push((pattern, rule));
        }
        Ok(policy)
    }

    /// What is required of an image that no rule matches.
    pub(super) fn default_rule(&self) -> &Rule {
        &self.default
    }

    /// The rule that counts for an image.
    pub(super) fn rule(&self, name: &ImageName) -> &Rule {
        let repository = Repository::of(name).canonical();
        let matching = self
            .rules
            .iter()
            .filter(|(pattern, _)| pattern.matches(&repository));
        matching
            .max_by_key(|(pattern, _)| pattern.specificity())
            .map_or(&self.default, |(_, rule)| rule)
    }
}

/// What a rule requires; its keys are read.
fn demand(
    path: &Path,
    table: &RuleTable,
    line: &dyn Fn(usize) -> usize,
) -> Result<Demand, PolicyError> {
    let refuse = |at: usize, problem| PolicyError::Rule {
        path: path.to_owned(),
        line: line(at),
        problem,
    };
    let require = *table.require.get_ref();
    if let Some(keys) = &table.keys
        && require != Require::Signature
    {
        return Err(refuse(keys.span().start, RuleProblem::IdleKeys));
    }
    let signed_tag = table.require_signed_tag.as_ref();
    if let Some(signed_tag) = signed_tag
        && require != Require::Signature
    {
        let at = signed_tag.span().start;
        return Err(refuse(at, RuleProblem::IdleSignedTag));
    }
    match require {
        Require::Accept => Ok(Demand::Accept),
        Require::Digest => Ok(Demand::Digest),
        Require::Reject => Ok(Demand::Reject),
        Require::Signature => {
            let files = table.keys.as_ref().map(Spanned::get_ref);
            let files = files.map(Vec::as_slice).unwrap_or_default();
            if files.is_empty() {
                return Err(refuse(table.require.span().start, RuleProblem::NoKeys));
            }
            let directory = path.parent().unwrap_or(Path::new(""));
            let read = |file: &Spanned<PathBuf>| {
                TrustedKey::read(&directory.join(file.get_ref())).map_err(|source| {
                    PolicyError::Key {
                        path: path.to_owned(),
                        line: line(file.span().start),
                        source,
                    }
                })
            };
            Ok(Demand::Signature(Signers {
                keys: files.iter().map(read).collect::<Result<_, _>>()?,
                must_name_tag: signed_tag.is_some_and(|required| *required.get_ref()),
            }))
        }
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
