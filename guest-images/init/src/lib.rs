//! PID 1 of the guest.
//!
//! The kernel starts it from an initramfs that holds little else. It connects to
//! the host ([`guest`]), makes the image the root file system ([`root`]), puts
//! the system around it that a container expects ([`system`], [`cgroup`],
//! [`network`]), becomes the workload in a child ([`process`]) as the user it
//! asks for ([`users`]), and carries its streams and signals until it has ended
//! ([`supervise`], [`pump`]). Then the machine powers off ([`power`]).
//!
//! It has one thread, waits in one place, and nothing of it outlives the
//! workload. All but the mounts also runs as PID 1 of a PID namespace, with any
//! [`transport::Transport`] to its host, which is how it is tested.

pub mod cgroup;
pub mod console;
pub mod control;
pub mod environment;
pub mod failure;
pub mod guest;
pub mod modules;
pub mod netlink;
pub mod network;
pub mod power;
pub mod process;
pub mod program;
pub mod pump;
pub mod root;
pub mod signals;
pub mod supervise;
pub mod system;
pub mod transport;
pub mod users;
