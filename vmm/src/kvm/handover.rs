//! What one thread hands to another.

use std::sync::{Condvar, Mutex, PoisonError};

/// Empty until it is given something, once. Takes `futex(2)` and nothing else, so that
/// threads behind their filters may use it.
#[derive(Debug)]
pub struct Handover<T> {
    value: Mutex<Option<T>>,
    given: Condvar,
}

impl<T> Default for Handover<T> {
    fn default() -> Self {
        Self {
            value: Mutex::new(None),
            given: Condvar::new(),
        }
    }
}

impl<T> Handover<T> {
    /// Lets who waits have it.
    pub fn give(&self, value: T) {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        self.given.notify_one();
    }

    /// Waits for it.
    pub fn take(&self) -> T {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match value.take() {
                Some(value) => return value,
                None => {
                    value = self
                        .given
                        .wait(value)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_given_before_or_after_someone_waits_arrives() {
        let early = Handover::default();
        early.give(1);
        assert_eq!(early.take(), 1);
        let late = Arc::new(Handover::default());
        let waits = std::thread::spawn({
            let late = Arc::clone(&late);
            move || late.take()
        });
        late.give(2);
        assert_eq!(waits.join().unwrap(), 2);
    }
}
