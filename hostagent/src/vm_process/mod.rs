//! One `mote-vmm` process: started in a jail with every descriptor it will ever
//! have, watched until it ends, and never outliving this process.
//!
//! What it reports is read here: [`vmm::event::Event`]s, its standard error, the
//! guest's console, and the connections the guest makes. The last two come from
//! a guest and are bounded and made printable before anybody sees them.

mod channel;
pub mod confinement;
mod descriptors;
mod ending;
mod events;
mod machine;
mod process;
mod tail;

pub use channel::{Channel, ChannelError, Connection};
pub use descriptors::InheritedDescriptors;
pub use ending::{Ending, OutOfMemory};
pub use machine::{BlobTree, BootBlob, Disk, Extent, Filesystem, Machine, Nic};
pub use process::{Program, SpawnError, VmProcess, Wakeup, WatchError, default_program};
pub use tail::{Tail, printable, printable_lines};
