//! Images: what users call them, where they come from, and what is in them.
//!
//! A [`reference`] names an image. A source ([`oci_layout`], [`docker_archive`], [`remote`])
//! turns it into a [`source::SourceImage`]: documents verified, layers not yet
//! read. The store reads the layers, each through [`layer::LayerSource`], which
//! checks every digest on the way.

pub mod archive;
pub mod config;
pub mod digest;
pub mod docker_archive;
pub(crate) mod hashing;
pub mod layer;
pub mod manifest;
pub mod name;
pub mod oci_layout;
pub mod platform;
pub mod progress;
pub mod reference;
pub mod region;
pub mod remote;
pub mod save;
pub mod source;
