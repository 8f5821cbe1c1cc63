//! How work on an image reports itself, and how it is told to stop.

/// Receives what happens while an image is read and converted. Every method has
/// a default, so that `()` is a silent observer.
pub trait Progress {
    /// A layer is about to be read: the `number`-th of `count`, of `bytes` bytes
    /// as it is stored at its source.
    fn layer(&self, number: usize, count: usize, bytes: u64) {
        let _ = (number, count, bytes);
    }

    /// This many more bytes of the layer's source have been read.
    fn advance(&self, bytes: u64) {
        let _ = bytes;
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

impl Progress for () {}
