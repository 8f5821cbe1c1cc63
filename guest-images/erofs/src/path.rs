//! Paths of tar entries.

/// Linux's `NAME_MAX`, and the longest name an EROFS directory holds.
const NAME_MAX: usize = 255;

/// Linux's `PATH_MAX`: nothing longer can be named, so nothing longer is kept.
const PATH_MAX: usize = 4096;

/// Why a path in a tar stream is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// There is no path.
    #[error("it is empty")]
    Empty,
    /// A NUL byte cannot be part of a path.
    #[error("it contains a NUL byte")]
    Nul,
    /// `..` could lead out of the layer.
    #[error("it contains \"..\"")]
    ParentDirectory,
    /// A component exceeds 255 bytes.
    #[error("a component is longer than {NAME_MAX} bytes")]
    NameTooLong,
    /// The whole exceeds 4096 bytes.
    #[error("it is longer than {PATH_MAX} bytes")]
    PathTooLong,
}

/// Splits a path into its components below the root of the layer.
///
/// `/a`, `./a` and `a//.` are `a`, as every container engine reads them: a
/// layer has one root and everything in it is below. None is left for `.` and
/// `/`: the root itself. `..` has no honest use in a layer and is refused.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>, PathProblem> {
    if path.is_empty() {
        return Err(PathProblem::Empty);
    }
    if path.len() > PATH_MAX {
        return Err(PathProblem::PathTooLong);
    }
    if path.contains(&0) {
        return Err(PathProblem::Nul);
    }
    let mut found = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(PathProblem::ParentDirectory),
            long if long.len() > NAME_MAX => return Err(PathProblem::NameTooLong),
            name => found.push(name),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_and_dots_that_change_nothing_are_removed() {
        let a_b: Vec<&[u8]> = vec![b"a", b"b"];
        for path in ["a/b", "/a/b", "./a//b/", "//./a/./b/."] {
            assert_eq!(components(path.as_bytes()).unwrap(), a_b, "{path}");
        }
        for root in [".", "/", "./", "//."] {
            assert!(components(root.as_bytes()).unwrap().is_empty(), "{root}");
        }
    }

    #[test]
    fn names_that_only_look_like_parent_directories_are_kept() {
        let kept: Vec<&[u8]> = vec![b"...", b"..a", b"a.."];
        assert_eq!(components(b".../..a/a..").unwrap(), kept);
    }

    #[test]
    fn what_cannot_be_named_on_linux_is_refused() {
        assert_eq!(components(b""), Err(PathProblem::Empty));
        assert_eq!(components(b"a/../b"), Err(PathProblem::ParentDirectory));
        assert_eq!(components(b".."), Err(PathProblem::ParentDirectory));
        assert_eq!(components(b"a\0b"), Err(PathProblem::Nul));
        assert_eq!(components(&[b'n'; 256]), Err(PathProblem::NameTooLong));
        assert_eq!(components(&[b'n'; 255]).unwrap(), [[b'n'; 255]]);
        assert_eq!(
            components(&b"a/".repeat(2049)),
            Err(PathProblem::PathTooLong)
        );
    }
}
