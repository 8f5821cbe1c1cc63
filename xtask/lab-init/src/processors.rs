//! The lab's processors but for the first.

use std::fs;
use std::path::Path;

use anyhow::Context;

/// A directory for each processor, with the file `online` in those that may be
/// switched off (Documentation/core-api/cpu_hotplug.rst of the kernel).
const PROCESSORS: &str = "/sys/devices/system/cpu";

/// Switches all processors on.
///
/// The kernel has started with one: it patches its own code (static keys, static
/// calls) when it starts and when modules are loaded, and QEMU before 8.1 may keep
/// a stale translation of code that one processor changes while another
/// translates it. The kernel then stood still for ever.
pub fn bring_up() -> anyhow::Result<()> {
    for entry in fs::read_dir(PROCESSORS).context(PROCESSORS)? {
        let online = entry.context(PROCESSORS)?.path().join("online");
        if is_off(&online) {
            fs::write(&online, "1").with_context(|| format!("writing {}", online.display()))?;
        }
    }
    Ok(())
}

fn is_off(online: &Path) -> bool {
    fs::read_to_string(online).is_ok_and(|state| state.trim() == "0")
}
