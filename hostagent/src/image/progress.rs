//! How work on images reports itself, and how it is told to stop.

/// Receives what happens while images are read and converted, from several threads at a
/// time. Every method has a default, so that `()` is a silent observer.
pub trait Progress: Sync {
    /// A piece of work begins, such as a layer: what to call it, and how many bytes it
    /// has to go through. It ends when what is returned is dropped.
    fn begin(&self, what: &str, bytes: u64) -> Box<dyn Task + '_> {
        let _ = (what, bytes);
        Box::new(())
    }

    /// Something the user may wonder about, such as waiting for another process.
    fn note(&self, message: &str) {
        let _ = message;
    }

    /// Whether the user asked to stop. Work ends at the next opportunity and
    /// leaves nothing behind.
    fn cancelled(&self) -> bool {
        false
    }
}

/// A piece of work.
pub trait Task: Sync {
    /// It has gone through so many bytes more.
    fn advance(&self, bytes: u64) {
        let _ = bytes;
    }

    /// Whether the user asked to stop, as [`Progress::cancelled`] has it.
    fn cancelled(&self) -> bool {
        false
    }
}

impl Progress for () {}
impl Task for () {}
