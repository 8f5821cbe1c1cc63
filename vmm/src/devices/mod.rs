//! What a guest finds besides its processors and memory.

pub mod generation_id;
pub mod power;
pub mod serial;
pub mod virtio;
