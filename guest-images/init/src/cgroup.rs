//! cgroup v2: the workload in a group of its own, and all controllers handed
//! down, so that what manages containers finds what it needs.
//!
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html>

use std::fs::{self, File, OpenOptions};
use std::io;

use crate::console;
use crate::failure::{Attempt, SetupError};

/// Where the hierarchy is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// The workload's group. The init stays in the root group, which is exempt from
/// the rule that a group with processes hands no controllers down, so a kubelet
/// or containerd in the workload can make groups beside this one.
const WORKLOAD: &str = "/sys/fs/cgroup/workload";

/// Makes the workload's group; the process that writes `0` to the file joins it.
/// `None` if the kernel has no cgroup v2.
pub fn make_workload_group() -> Result<Option<File>, SetupError> {
    let Ok(controllers) = fs::read_to_string(format!("{ROOT}/cgroup.controllers")) else {
        return Ok(None);
    };
    let subtree = format!("{ROOT}/cgroup.subtree_control");
    let all: Vec<String> = controllers
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    // Together is one pass over all groups; if one controller cannot be handed
    // down, the others still can.
    if fs::write(&subtree, all.join(" ")).is_err() {
        for controller in &all {
            if let Err(error) = fs::write(&subtree, controller) {
                console::say(&format!(
                    "cannot hand down the cgroup controller {controller}: {error}"
                ));
            }
        }
    }
    let attempted = || format!("cannot make the cgroup {WORKLOAD}");
    match fs::create_dir(WORKLOAD) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).attempt(attempted);
        }
        _ => {}
    }
    let file = OpenOptions::new()
        .write(true)
        .open(format!("{WORKLOAD}/cgroup.procs"));
    file.map(Some).attempt(attempted)
}
