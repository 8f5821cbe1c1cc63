//! Where asynchronous code runs for callers that wait.

use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

use super::error::RegistryError;

/// Threads that drive connections; TLS of a few downloads at a time.
const WORKERS: usize = 2;
/// Threads that read what is pushed, and wait for credential helpers.
const MAX_BLOCKING_THREADS: usize = 32;
/// How often a waiting caller is asked whether it still waits.
const POLL: Duration = Duration::from_millis(100);

/// A small runtime of its own. Dropping it waits for nothing.
pub(super) struct Runtime {
    /// Taken only by `drop`.
    tokio: Option<tokio::runtime::Runtime>,
}

impl Runtime {
    pub fn new() -> Result<Self, RegistryError> {
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(MAX_BLOCKING_THREADS)
            .thread_name("registry")
            .enable_all()
            .build()
            .map_err(|source| RegistryError::Runtime { source })?;
        Ok(Self { tokio: Some(tokio) })
    }

    /// Runs `work` on the calling thread until it ends, or `cancelled` says that
    /// nobody wants its outcome any more.
    pub fn run<T>(
        &self,
        cancelled: &dyn Fn() -> bool,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let Some(tokio) = &self.tokio else {
            return Err(RegistryError::Cancelled);
        };
        tokio.block_on(async {
            let mut work = pin!(work);
            loop {
                if cancelled() {
                    return Err(RegistryError::Cancelled);
                }
                if let Ok(outcome) = timeout(POLL, work.as_mut()).await {
                    return outcome;
                }
            }
        })
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(tokio) = self.tokio.take() {
            tokio.shutdown_background();
        }
    }
}
