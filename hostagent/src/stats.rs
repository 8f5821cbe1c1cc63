//! What the microVMs that run use and do: from their pages of metrics and from `/proc`,
//! without asking anybody.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use vmm::metrics::reader::{ReadError, Reader, Snapshot};

use crate::open;

const PAGE_BYTES: u64 = 4096;

/// Why a page cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The agent that has it is gone, or someone else's.
    #[error("cannot open the metrics at {}", path.display())]
    Open {
        /// Where they should be.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is something, but no metrics.
    #[error("cannot read the metrics at {}", path.display())]
    Read {
        /// Where they should be.
        path: PathBuf,
        /// What is wrong.
        source: ReadError,
    },
}

/// Reads the page at `path`, which is in the descriptor table of the microVM's agent.
pub fn metrics(path: &Path) -> Result<Snapshot, MetricsError> {
    let open = |source| MetricsError::Open {
        path: path.to_owned(),
        source,
    };
    // Where the agent has ended meanwhile, the number may be another's, of any kind:
    // only what is called so is opened.
    let target = fs::read_link(path).map_err(open)?;
    let name = format!("/memfd:{} (deleted)", vmm::metrics::FILE_NAME);
    if target != Path::new(&name) {
        return Err(open(io::ErrorKind::NotFound.into()));
    }
    let file = open::at_once(path).map_err(open)?;
    let read = Reader::new(&file).and_then(|reader| reader.snapshot());
    read.map_err(|source| MetricsError::Read {
        path: path.to_owned(),
        source,
    })
}

/// What a process uses of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// How long its threads have run on processors.
    pub cpu_ns: u64,
    /// Memory that it has mapped and that is there: its guest's, mostly.
    pub resident_bytes: u64,
}

impl Usage {
    /// Of process `pid` (proc(5): `schedstat` of each thread, `statm`).
    pub fn of_process(pid: u32) -> io::Result<Self> {
        let mut cpu_ns = 0_u64;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread that ends meanwhile has no file any more.
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            cpu_ns = cpu_ns.saturating_add(number(&text, 0));
        }
        let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
        Ok(Self {
            cpu_ns,
            resident_bytes: number(&statm, 1).saturating_mul(PAGE_BYTES),
        })
    }

    /// The processors it has kept busy since `earlier`, `elapsed` ago, in percent of
    /// one.
    pub fn cpu_percent_since(&self, earlier: &Self, elapsed: Duration) -> f64 {
        let used = self.cpu_ns.saturating_sub(earlier.cpu_ns);
        used as f64 * 100.0 / elapsed.as_nanos().max(1) as f64
    }
}

/// The number that is word `index` of `text`, 0 if there is none.
fn number(text: &str, index: usize) -> u64 {
    let word = text.split_ascii_whitespace().nth(index);
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use vmm::metrics::create;

    use super::*;

    fn path_of(file: &File) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
    }

    #[test]
    fn only_a_page_of_metrics_is_opened() {
        let page = create().unwrap();
        let error = metrics(&path_of(&page)).unwrap_err();
        let MetricsError::Read { source, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(matches!(source, ReadError::NotReady));
        let (fifo, _writer) = io::pipe().unwrap();
        let fifo = File::from(std::os::fd::OwnedFd::from(fifo));
        for other in [File::open("/dev/null").unwrap(), fifo] {
            let error = metrics(&path_of(&other)).unwrap_err();
            assert!(matches!(error, MetricsError::Open { .. }), "{error:?}");
        }
        assert!(metrics(Path::new("/proc/self/fd/1000000")).is_err());
    }

    #[test]
    fn a_process_that_works_uses_memory_and_time() {
        let before = Usage::of_process(std::process::id()).unwrap();
        assert!(before.resident_bytes > 0);
        let later = Usage {
            cpu_ns: before.cpu_ns + 50_000_000,
            ..before
        };
        let elapsed = Duration::from_millis(100);
        assert_eq!(later.cpu_percent_since(&before, elapsed), 50.0);
        assert_eq!(before.cpu_percent_since(&later, elapsed), 0.0);
        assert!(Usage::of_process(u32::MAX).is_err());
    }
}
