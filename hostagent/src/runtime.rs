//! Where asynchronous code runs for callers that wait.

use std::io;
use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

/// Threads that drive connections, and do their cryptography.
const WORKERS: usize = 2;
/// Threads for what blocks: reading files, waiting for credential helpers.
const MAX_BLOCKING_THREADS: usize = 32;
/// How often a waiting caller is asked whether it still waits.
const POLL: Duration = Duration::from_millis(100);

/// Nobody wants the outcome any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cancelled;

/// A small runtime of its own. Dropping it waits for nothing.
pub(crate) struct Runtime {
    /// Taken only by `drop`.
    tokio: Option<tokio::runtime::Runtime>,
}

impl Runtime {
    /// Starts its threads, under this name.
    pub fn new(name: &str) -> io::Result<Self> {
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(MAX_BLOCKING_THREADS)
            .thread_name(name)
            .enable_all()
            .build()?;
        Ok(Self { tokio: Some(tokio) })
    }

    /// Runs `work` on its threads, whoever waits for it.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(tokio) = &self.tokio {
            tokio.spawn(work);
        }
    }

    /// Does what does not wait and needs a runtime around it.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        let _entered = self.tokio.as_ref().map(tokio::runtime::Runtime::enter);
        work()
    }

    /// Runs `work` on the calling thread until it ends, or `cancelled` says that
    /// nobody wants its outcome any more.
    pub fn run<T, E: From<Cancelled>>(
        &self,
        cancelled: &dyn Fn() -> bool,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let Some(tokio) = &self.tokio else {
            return Err(Cancelled.into());
        };
        tokio.block_on(async {
            let mut work = pin!(work);
            loop {
                if cancelled() {
                    return Err(Cancelled.into());
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
