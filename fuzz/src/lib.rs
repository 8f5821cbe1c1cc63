//! What the fuzz targets share. A target is a function of its input alone: it keeps
//! nothing from one execution to the next but memory and files that it fills anew.

pub mod acts;
pub mod files;
pub mod memory;
pub mod signals;
pub mod vsock;
