//! What `mote-vmm` gives up by itself, before it looks at anything a guest had a
//! say in. The agent has done the rest before this program started (crate `jail`),
//! and each thread adds its filter ([`crate::seccomp`]).

use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
    Scope,
};
use rustix::process::DumpableBehavior;
use serde::{Deserialize, Serialize};

/// The newest set of rights that the ruleset names; an older kernel takes those it
/// knows.
const LANDLOCK: ABI = ABI::V6;

/// Why this process could not be confined further.
#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    /// `prctl(2)` or `seccomp(2)` refused.
    #[error("cannot {action}")]
    Refused {
        /// What was to be given up.
        action: &'static str,
        /// Why it was not.
        source: io::Error,
    },
    /// Landlock is there and refused.
    #[error("cannot enter a Landlock ruleset that allows nothing")]
    Landlock(#[from] landlock::RulesetError),
}

/// How much of a Landlock ruleset that allows nothing this kernel enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Landlock {
    /// Files, TCP ports, abstract sockets and signals.
    Full,
    /// What this kernel's version of Landlock knows.
    Partial,
    /// Nothing: the kernel has none, or has it turned off.
    None,
}

/// Confines this process; must come before its second thread. Landlock is taken as
/// far as the kernel has it, since it is the last of several walls; everything else
/// must succeed.
pub fn enter() -> Result<Landlock, ConfinementError> {
    let refused = |action| {
        move |errno: rustix::io::Errno| ConfinementError::Refused {
            action,
            source: errno.into(),
        }
    };
    // No core file, and nobody without CAP_SYS_PTRACE may look into this process.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(refused("become undumpable (PR_SET_DUMPABLE)"))?;
    rustix::thread::set_no_new_privs(true)
        .map_err(refused("give up new privileges (PR_SET_NO_NEW_PRIVS)"))?;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Landlock::Full,
        RulesetStatus::PartiallyEnforced => Landlock::Partial,
        RulesetStatus::NotEnforced => Landlock::None,
    })
}
