//! Images that start before they are all here.
//!
//! `mote push` stores a converted image in a registry beside its source ([`push`]), as an
//! [`artifact`]. A start of such an image ([`start`]) fetches its hash trees, and everything
//! else when the guest reads it ([`fetch`]) or, when nobody waits, in the background. Who
//! needs all of it, to save or push it, has it completed ([`complete`]).

mod accesses;
pub mod artifact;
pub mod complete;
mod error;
pub mod fetch;
pub mod push;
mod queue;
mod serve;
pub mod start;
mod upstream;

pub use error::FetchError;
pub use upstream::Clients;
