//! Image names as Docker reads them: `[domain/]path[:tag][@digest]`.
//!
//! Source: the grammar and the defaults of the distribution project's
//! "reference" package, which Docker, containerd and Podman follow.

use std::fmt;
use std::str::FromStr;

use super::digest::{Digest, DigestError};

/// The registry a name without a domain belongs to.
const DEFAULT_DOMAIN: &str = "docker.io";
/// The path prefix of a name of one component on the default registry.
const OFFICIAL_PREFIX: &str = "library/";
/// The tag of a name without tag and digest.
const DEFAULT_TAG: &str = "latest";
/// The longest repository name, domain included.
const MAX_REPOSITORY_BYTES: usize = 255;
/// The longest tag.
const MAX_TAG_BYTES: usize = 128;

/// The name of an image, with Docker's defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    /// Domain and path, such as `docker.io/library/debian`.
    repository: String,
    /// Present unless only a digest was given.
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No repository is left once tag and digest are taken away.
    #[error("the image name {0:?} has no repository")]
    Empty(String),
    /// Docker allows upper case in domains and tags only.
    #[error(
        "the image name {0:?} has an upper-case letter in its repository; write it in lower case"
    )]
    UpperCase(String),
    /// A character or a sequence of separators the grammar does not have.
    #[error(
        "the image name {0:?} is malformed; a name is [domain/]path[:tag][@digest], such as debian:bookworm"
    )]
    Malformed(String),
    /// The tag is empty, too long or has characters a tag cannot have.
    #[error(
        "the image name {0:?} has a malformed tag; a tag has up to 128 letters, digits, '_', '.' and '-'"
    )]
    Tag(String),
    /// What follows `@` is not a digest.
    #[error("the image name {name:?} has a malformed digest")]
    Digest {
        /// The name.
        name: String,
        /// What is wrong with the digest.
        source: DigestError,
    },
    /// The repository is longer than 255 bytes.
    #[error("the image name {0:?} is longer than {MAX_REPOSITORY_BYTES} bytes")]
    TooLong(String),
}

impl ImageName {
    /// Domain and path, such as `docker.io/library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, unless the name has only a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the name has one.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same image by this digest, whatever tag it has now.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest),
        }
    }

    /// The same name without the digest it may have, for whoever has seen to it.
    pub fn without_digest(&self) -> Self {
        Self {
            digest: None,
            ..self.clone()
        }
    }

    /// `repository@digest` in full, if it has a digest.
    pub fn pinned(&self) -> Option<String> {
        Some(format!("{}@{}", self.repository, self.digest?))
    }

    /// `repository:tag` in full, the key under which a tagged image is recorded.
    pub fn tagged(&self) -> Option<String> {
        Some(format!("{}:{}", self.repository, self.tag.as_deref()?))
    }

    /// The repository as people write it: `debian`, not `docker.io/library/debian`.
    /// It stays as it is where less of it would mean another one.
    pub fn familiar_repository(&self) -> &str {
        let path = match self.repository.split_once('/') {
            Some((DEFAULT_DOMAIN, path)) => path,
            _ => return &self.repository,
        };
        let familiar = match path.strip_prefix(OFFICIAL_PREFIX) {
            Some(name) if !name.contains('/') => name,
            _ => path,
        };
        // A path may begin as a domain does, and a name may look like an image id.
        let is_itself = split_domain(familiar) == (DEFAULT_DOMAIN, familiar)
            && Digest::from_hex(familiar).is_none();
        if is_itself {
            familiar
        } else {
            &self.repository
        }
    }
}

/// The name as people write it, tag included.
impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.familiar_repository())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let shown = || text.chars().take(300).collect::<String>();
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|source| NameError::Digest {
                    name: shown(),
                    source,
                })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon before the last slash belongs to a port.
        let tag_at = rest.rfind(':').filter(|at| !rest[*at..].contains('/'));
        let (repository, tag) = match tag_at {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        if repository.is_empty() {
            return Err(NameError::Empty(shown()));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(NameError::Tag(shown()));
        }

        let (domain, path) = split_domain(repository);
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(NameError::UpperCase(shown()));
        }
        // 64 hexadecimal digits are an image id, never a name.
        if !is_domain(domain)
            || !path.split('/').all(is_path_component)
            || (repository == path && Digest::from_hex(path).is_some())
        {
            return Err(NameError::Malformed(shown()));
        }
        let official = domain == DEFAULT_DOMAIN && !path.contains('/');
        let prefix = if official { OFFICIAL_PREFIX } else { "" };
        let repository = format!("{domain}/{prefix}{path}");
        if repository.len() > MAX_REPOSITORY_BYTES {
            return Err(NameError::TooLong(shown()));
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self {
            repository,
            tag,
            digest,
        })
    }
}

/// The first component is a domain if nothing else can look like it.
fn split_domain(repository: &str) -> (&str, &str) {
    match repository.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            let domain = if first == "index.docker.io" {
                DEFAULT_DOMAIN
            } else {
                first
            };
            (domain, rest)
        }
        _ => (DEFAULT_DOMAIN, repository),
    }
}

/// `host[:port]`, where host is DNS labels or an address in brackets.
fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (domain, None),
    };
    let port_is_good =
        port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    let host_is_good = match host.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        }),
    };
    port_is_good && host_is_good
}

/// Runs of lower-case letters and digits, parted by `.`, `_`, `__` or any
/// number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_well = |b: Option<&u8>| b.is_some_and(alphanumeric);
    ends_well(bytes.first())
        && ends_well(bytes.last())
        && bytes.split(alphanumeric).all(|separator| match separator {
            [] | b"." | b"_" | b"__" => true,
            dashes => dashes.iter().all(|b| *b == b'-'),
        })
}

/// A letter, digit or `_`, then up to 127 of those, `.` and `-`.
fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG_BYTES
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> ImageName {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn defaults_are_those_of_docker() {
        for (text, repository, tag) in [
            ("debian", "docker.io/library/debian", "latest"),
            ("debian:bookworm", "docker.io/library/debian", "bookworm"),
            ("user/app", "docker.io/user/app", "latest"),
            ("docker.io/debian", "docker.io/library/debian", "latest"),
            ("index.docker.io/a/b:1", "docker.io/a/b", "1"),
            ("localhost/app", "localhost/app", "latest"),
            ("localhost:5000/app:v1", "localhost:5000/app", "v1"),
            ("ghcr.io/a/b/c:V1.0-rc_1", "ghcr.io/a/b/c", "V1.0-rc_1"),
            ("[::1]:5000/app", "[::1]:5000/app", "latest"),
        ] {
            let name = name(text);
            assert_eq!(name.repository(), repository, "{text}");
            assert_eq!(name.tag(), Some(tag), "{text}");
        }
    }

    #[test]
    fn a_digest_alone_brings_no_tag() {
        let digest = Digest::of(b"manifest");
        let with_digest = name(&format!("debian@{digest}"));
        assert_eq!(with_digest.tag(), None);
        assert_eq!(with_digest.digest(), Some(digest));
        let with_both = name(&format!("debian:12@{digest}"));
        assert_eq!(with_both.tag(), Some("12"));
    }

    #[test]
    fn names_are_shown_as_people_write_them() {
        for text in ["debian:12", "user/app:1", "localhost:5000/app:v1"] {
            assert_eq!(name(text).to_string(), text);
        }
        assert_eq!(
            name("docker.io/library/debian").to_string(),
            "debian:latest"
        );
    }

    #[test]
    fn a_name_that_would_mean_another_when_shortened_is_shown_in_full() {
        let id = Digest::of(b"config").hex();
        for repository in [
            "docker.io/evil.example/library/redis",
            "docker.io/localhost/app",
            "docker.io/index.docker.io/app",
            &format!("docker.io/library/{id}"),
        ] {
            let name = name(repository);
            assert_eq!(name.familiar_repository(), repository);
            assert_eq!(name.to_string().parse(), Ok(name));
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        let long = "a".repeat(300);
        for text in [
            "",
            ":tag",
            "@sha256:00",
            "Debian",
            "deb ian",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a:",
            "a:b c",
            "a:-b",
            "a/../b",
            "a\0b",
            "ä",
            "host.:5000/a",
            "host:port/a",
            &long,
        ] {
            assert!(text.parse::<ImageName>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn an_image_id_is_not_a_name() {
        let id = Digest::of(b"config").hex();
        assert!(id.parse::<ImageName>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_reads_back_the_same(text in "(docker.io/)?(a.b/|localhost/)?[a-zA-Z0-9:/@._\\[\\]-]{0,40}|\\PC{0,20}") {
            if let Ok(name) = text.parse::<ImageName>() {
                prop_assert_eq!(name.to_string().parse::<ImageName>(), Ok(name));
            }
        }
    }
}
