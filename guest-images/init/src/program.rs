//! From the first word of a command to the file that is executed, with Docker's
//! distinction: 127 for what is not there, 126 for what cannot be executed.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use guest_protocol::{StartFailure, StartFailureKind};
use rustix::fs::{Access, AtFlags, CWD, FileType};
use rustix::io::Errno;

/// The longest `#!` line the kernel reads (`BINPRM_BUF_SIZE`).
const MAX_INTERPRETER_LINE: usize = 256;

/// Finds the program that the calling process would execute.
///
/// A name with a slash is itself the path; any other is searched for in
/// `search_path`, in which an empty component is the working directory.
pub fn find(name: &str, search_path: &str) -> Result<PathBuf, StartFailure> {
    if name.is_empty() {
        return Err(not_found("the command is an empty string".into()));
    }
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match executable(&path) {
            Ok(()) => Ok(path),
            Err(errno) => Err(refused(&path, errno)),
        };
    }
    let mut unusable = None;
    for directory in search_path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let path = Path::new(directory).join(name);
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(Errno::ACCESS) => unusable = unusable.or(Some(path)),
            Err(_) => {}
        }
    }
    let also = unusable.map_or_else(String::new, |path| {
        format!("; {} is there, but not executable", path.display())
    });
    Err(not_found(format!(
        "{name}: executable file not found in $PATH ({search_path}){also}"
    )))
}

/// Whether the calling process may execute `path`, as far as its type and
/// permissions tell.
fn executable(path: &Path) -> Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

/// Why `execve(2)` of `path` failed, in words and with its exit code.
pub fn refused(path: &Path, errno: Errno) -> StartFailure {
    let shown = path.display();
    match errno {
        Errno::NOENT if path.exists() => not_found(match interpreter(path) {
            Some(interpreter) => {
                format!("{shown}: its interpreter {interpreter} is not in the image")
            }
            None => format!("{shown}: the dynamic loader it asks for is not in the image"),
        }),
        Errno::NOENT | Errno::NOTDIR => not_found(format!("{shown}: no such file or directory")),
        Errno::ISDIR => not_executable(format!("{shown}: is a directory")),
        Errno::ACCESS => not_executable(format!("{shown}: permission denied")),
        Errno::NOEXEC => not_executable(format!(
            "{shown}: exec format error: neither a program for this architecture nor a script \
             that starts with #!"
        )),
        other => not_executable(format!("{shown}: {}", std::io::Error::from(other))),
    }
}

/// The interpreter that a script's first line names.
fn interpreter(path: &Path) -> Option<String> {
    let mut line = Vec::new();
    let file = File::open(path).ok()?;
    file.take(MAX_INTERPRETER_LINE as u64)
        .read_to_end(&mut line)
        .ok()?;
    let line = line.strip_prefix(b"#!")?;
    let line = line.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    Some(line.split_whitespace().next()?.to_owned())
}

fn not_found(message: String) -> StartFailure {
    StartFailure {
        kind: StartFailureKind::NotFound,
        message,
    }
}

fn not_executable(message: String) -> StartFailure {
    StartFailure {
        kind: StartFailureKind::NotExecutable,
        message,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Directory(tempfile::TempDir);

    impl Directory {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn file(&self, name: &str, contents: &str, mode: u32) -> String {
            let path = self.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, contents).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path.to_str().unwrap().to_owned()
        }

        fn search_path(&self, parts: &[&str]) -> String {
            let parts: Vec<String> = parts
                .iter()
                .map(|part| self.path(part).to_str().unwrap().to_owned())
                .collect();
            parts.join(":")
        }
    }

    fn kind(result: Result<PathBuf, StartFailure>) -> StartFailureKind {
        result.unwrap_err().kind
    }

    #[test]
    fn the_first_executable_in_the_path_is_found() {
        let dir = Directory::new();
        dir.file("a/tool", "", 0o644);
        dir.file("b/tool", "", 0o755);
        dir.file("c/tool", "", 0o755);
        fs::create_dir_all(dir.path("x/tool")).unwrap();
        let search = dir.search_path(&["missing", "x", "a", "b", "c"]);
        assert_eq!(find("tool", &search).unwrap(), dir.path("b/tool"));
    }

    #[test]
    fn a_name_that_is_in_no_directory_is_not_found() {
        let dir = Directory::new();
        assert_eq!(
            kind(find("tool", &dir.search_path(&["a", "b"]))),
            StartFailureKind::NotFound
        );
        assert_eq!(kind(find("", "/bin")), StartFailureKind::NotFound);
    }

    #[test]
    fn a_file_in_the_path_without_the_execute_bit_is_not_found_but_mentioned() {
        let dir = Directory::new();
        let file = dir.file("a/tool", "", 0o644);
        let failure = find("tool", &dir.search_path(&["a"])).unwrap_err();
        assert_eq!(failure.kind, StartFailureKind::NotFound);
        assert!(failure.message.contains(&file), "{}", failure.message);
    }

    #[test]
    fn a_path_with_a_slash_is_not_searched_for() {
        let dir = Directory::new();
        let file = dir.file("a/tool", "", 0o755);
        assert_eq!(find(&file, "/nowhere").unwrap(), PathBuf::from(&file));
        assert_eq!(
            kind(find("./tool", &dir.search_path(&["a"]))),
            StartFailureKind::NotFound
        );
    }

    #[test]
    fn what_is_there_and_cannot_be_executed_is_not_executable() {
        let dir = Directory::new();
        let plain = dir.file("plain", "", 0o644);
        assert_eq!(kind(find(&plain, "")), StartFailureKind::NotExecutable);
        let directory = dir.0.path().to_str().unwrap();
        assert_eq!(kind(find(directory, "")), StartFailureKind::NotExecutable);
    }

    #[test]
    fn a_missing_interpreter_is_named() {
        let dir = Directory::new();
        let script = dir.file("script", "#! /no/such/python3 -u\nprint()\n", 0o755);
        let failure = refused(Path::new(&script), Errno::NOENT);
        assert_eq!(failure.kind, StartFailureKind::NotFound);
        assert!(failure.message.contains("interpreter /no/such/python3 is"));
        let program = dir.file("program", "\x7fELF", 0o755);
        let failure = refused(Path::new(&program), Errno::NOENT);
        assert!(failure.message.contains("dynamic loader"));
    }
}
