//! Resource limits (`setrlimit(2)`).

use rustix::process::{Resource, Rlimit, setrlimit};

/// What a jailed process may use. Everything that is not named here is 0: core
/// dumps, message queues, real-time priority and signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Address space, in bytes (`RLIMIT_AS`).
    pub address_space_bytes: u64,
    /// Memory that stays where it is, io_uring's included (`RLIMIT_MEMLOCK`).
    pub locked_memory_bytes: u64,
    /// The largest file it may write to, in bytes (`RLIMIT_FSIZE`).
    pub file_size_bytes: u64,
    /// Open descriptors, and so one more than the greatest number of one
    /// (`RLIMIT_NOFILE`).
    pub descriptors: u64,
    /// Threads, the kernel's for it included (`RLIMIT_NPROC`).
    pub threads: u64,
}

impl Limits {
    pub(crate) fn apply(&self) -> rustix::io::Result<()> {
        let limits = [
            (Resource::As, self.address_space_bytes),
            (Resource::Fsize, self.file_size_bytes),
            (Resource::Memlock, self.locked_memory_bytes),
            (Resource::Nofile, self.descriptors),
            (Resource::Nproc, self.threads),
            (Resource::Sigpending, 0),
            (Resource::Core, 0),
            (Resource::Msgqueue, 0),
            (Resource::Nice, 0),
            (Resource::Rtprio, 0),
        ];
        for (resource, limit) in limits {
            let both = Rlimit {
                current: Some(limit),
                maximum: Some(limit),
            };
            setrlimit(resource, both)?;
        }
        Ok(())
    }
}
