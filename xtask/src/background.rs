//! Work that goes on while something else is done.

use std::thread::{self, JoinHandle};

use anyhow::{Result, bail};

/// Work under way in a thread. If it is dropped before its end, it goes on until
/// this process ends; programs it runs must see to it that they end then.
#[must_use = "work that nobody waits for may end with this process"]
#[derive(Debug)]
pub struct Background<T>(JoinHandle<Result<T>>);

impl<T: Send + 'static> Background<T> {
    /// Starts `work`.
    pub fn start(work: impl FnOnce() -> Result<T> + Send + 'static) -> Self {
        Self(thread::spawn(work))
    }

    /// What the work came to.
    pub fn wait(self) -> Result<T> {
        match self.0.join() {
            Ok(result) => result,
            Err(_) => bail!("work in the background panicked"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_work_came_to_is_told_once_it_is_waited_for() {
        assert_eq!(Background::start(|| Ok(1)).wait().unwrap(), 1);
        let failed = Background::<()>::start(|| bail!("the disk is full"));
        assert_eq!(failed.wait().unwrap_err().to_string(), "the disk is full");
    }
}
