//! A [`Tree`](crate::tree::Tree) as inodes and directories on disk.
//!
//! The size has to be known before the first byte is written, since the blocks
//! of an image's layers come after its metadata and every file names some. So
//! [`Layout`] places everything, and [`write()`] then writes it in one go.

mod directory;
mod layout;
mod write;

pub(crate) use layout::Layout;
pub(crate) use write::{Target, write};
