//! Namespaces that are made before their process, or while that is made.
//!
//! They take the kernel longer than all else of a jail together: of a network
//! namespace each protocol sets up its part, a new root waits until nobody reads the
//! old one any more (RCU).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use rustix::event::Timespec;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::thread::{
    CapabilitySet, LinkNameSpaceType, UnshareFlags, capabilities, futex, move_into_link_name_space,
};

use crate::birth::PRIVILEGES;

/// What is made: all that a process can enter later and that costs time.
pub(crate) const PREPARED: UnshareFlags = UnshareFlags::NEWNET
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWNS);

/// Where the empty root is mounted, in its own mount namespace, before it becomes the
/// root. Any directory would do; every Linux has this one.
const MOUNT_POINT: &std::ffi::CStr = c"/proc";

/// How often who waits looks whether there is somebody who makes them.
const INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// An empty network namespace, an IPC namespace and a mount namespace with an empty
/// root, that another thread makes.
#[derive(Debug)]
pub struct NewNamespaces {
    outcome: Arc<Outcome>,
    maker: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Outcome {
    made: OnceLock<Result<Made, Errno>>,
    /// Whether that is set, for who waits: 0 or 1.
    told: AtomicU32,
}

#[derive(Debug)]
struct Made {
    namespaces: [Namespace; 3],
    /// The empty root.
    root: OwnedFd,
}

type Namespace = (LinkNameSpaceType, OwnedFd);

impl NewNamespaces {
    /// Begins to make them, for a [`crate::Jail`] to enter. `None` without the
    /// privileges of root for that (`CAP_SYS_ADMIN`, `CAP_SYS_CHROOT`, and those for
    /// ids): a jail has its own made then.
    pub fn begin() -> io::Result<Option<Self>> {
        let needed = PRIVILEGES.union(CapabilitySet::SYS_CHROOT);
        if !capabilities(None)?.effective.contains(needed) {
            return Ok(None);
        }
        let outcome = Arc::new(Outcome::default());
        let told = Arc::clone(&outcome);
        let maker = std::thread::Builder::new()
            .name("namespaces".to_owned())
            // Whoever waits for it must not wait for ever.
            .spawn(move || told.tell(catch_unwind(make).unwrap_or(Err(Errno::IO))))?;
        let maker = Some(maker);
        Ok(Some(Self { outcome, maker }))
    }

    /// Waits until they are made, or not.
    pub fn finish(&self) -> io::Result<()> {
        self.wait(|| Ok(()))?;
        Ok(())
    }

    /// Has this process, whose root and working directory no other shares, enter them.
    /// While it waits for them, `may_go_on` says now and then whether there is somebody who
    /// makes them. System calls only: called by the child, which shares memory and
    /// descriptors with its parent then.
    pub(crate) fn enter(&self, may_go_on: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
        let Made { namespaces, root } = self.wait(may_go_on)?;
        for (kind, namespace) in namespaces {
            move_into_link_name_space(namespace.as_fd(), Some(*kind))?;
        }
        // What an agent in a chroot(2) has replaced is not the root of the namespace, which
        // this process now stands in.
        rustix::process::fchdir(root)?;
        rustix::process::chroot(c".")
    }

    fn wait(&self, may_go_on: impl Fn() -> Result<(), Errno>) -> Result<&Made, Errno> {
        let Outcome { made, told } = &*self.outcome;
        loop {
            match made.get() {
                Some(made) => return made.as_ref().map_err(|errno| *errno),
                None => match futex::wait(told, futex::Flags::PRIVATE, 0, Some(&INTERVAL)) {
                    Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(Errno::TIMEDOUT) => may_go_on()?,
                    Err(errno) => return Err(errno),
                },
            }
        }
    }
}

impl Outcome {
    fn tell(&self, made: Result<Made, Errno>) {
        // Nobody else sets it.
        let _ = self.made.set(made);
        self.told.store(1, Ordering::Release);
        let _ = futex::wake(&self.told, futex::Flags::PRIVATE, u32::MAX);
    }
}

/// Of this thread, which does nothing else and ends.
fn make() -> Result<Made, Errno> {
    // SAFETY: what this thread leaves is these namespaces, with NEWNS also the root and
    // the working directory that it shares with the process; its memory and its
    // descriptors stay the process's.
    unsafe { rustix::thread::unshare_unsafe(PREPARED)? };
    let open = |kind, path| -> Result<Namespace, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok((kind, rustix::fs::open(path, flags, Mode::empty())?))
    };
    let namespaces = [
        open(LinkNameSpaceType::Network, c"/proc/thread-self/ns/net")?,
        open(
            LinkNameSpaceType::InterProcessCommunication,
            c"/proc/thread-self/ns/ipc",
        )?,
        open(LinkNameSpaceType::Mount, c"/proc/thread-self/ns/mnt")?,
    ];
    enter_empty_root()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(c"/", flags, Mode::empty())?;
    Ok(Made { namespaces, root })
}

/// Gives this mount namespace, which is new, a file system with nothing in it that
/// takes nothing in. What was the root is not mounted any more.
pub(crate) fn enter_empty_root() -> rustix::io::Result<()> {
    // Else what happens here would happen in the parent's namespace too.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(c"/", private)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // The least there is: a size of 0 would mean none.
    let options = c"size=4096,nr_inodes=1,mode=0555";
    mount(c"none", MOUNT_POINT, c"tmpfs", flags, options)?;
    rustix::process::chdir(MOUNT_POINT)?;
    // The new root on top of the old one, which then goes (pivot_root(2), NOTES).
    rustix::process::pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

impl Drop for NewNamespaces {
    fn drop(&mut self) {
        if let Some(maker) = self.maker.take() {
            let _ = maker.join();
        }
    }
}
