//! The machine that measurements are made on.

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};

/// What figures depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its processor.
    pub processor: String,
    /// How many of them.
    pub processors: usize,
    /// Its kernel.
    pub kernel: String,
    /// The module that is `/dev/kvm` besides `kvm` itself, such as `kvm_amd`.
    pub kvm: String,
    /// Its load, averaged over a minute, when all was measured.
    pub load_average: String,
}

impl Host {
    /// This machine, now.
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processors = read("/proc/cpuinfo");
        let model = processors
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        // Unlike /proc/modules it has those that are built in.
        let kvm = std::fs::read_dir("/sys/module")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .find(|name| name.starts_with("kvm_"));
        Self {
            processor: model.map_or("unknown", |(_, name)| name).to_owned(),
            processors: std::thread::available_parallelism().map_or(1, Into::into),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            kvm: kvm.unwrap_or_else(|| "unknown".to_owned()),
            load_average: read("/proc/loadavg")
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
        }
    }
}

impl Display for Host {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "direct KVM ({}), {} × {}, Linux {}, load {}",
            self.kvm, self.processors, self.processor, self.kernel, self.load_average,
        )
    }
}
