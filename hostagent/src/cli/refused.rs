//! What becomes of an image that was refused.

use hostagent::store::{ImportError, Store};

/// Has the store keep nothing of an image whose import ended with this error because it is
/// not what it should be. Whoever calls has given up their lease. Of one that could not be
/// fetched now, what has arrived stays for the next try.
pub fn forget(store: &Store, error: &anyhow::Error) {
    if error.downcast_ref().is_some_and(ImportError::is_refusal) {
        // What stays now, the next collection removes.
        let _ = store.collect();
    }
}
