//! What the tests of this crate share, and the mount test of the end-to-end
//! package with them. No test uses all of it.
#![allow(dead_code)]

pub mod random_layer;
pub mod random_stream;
pub mod random_tree;
pub mod snapshot;
pub mod tar_builder;
pub mod tools;
