//! Which machines an image is for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What this machine runs.
pub const OPERATING_SYSTEM: &str = "linux";
/// What this machine runs, as Go names it.
pub const ARCHITECTURE: &str = "amd64";

/// A kind of machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// As in Go's `GOARCH`.
    #[serde(default)]
    pub architecture: String,
    /// As in Go's `GOOS`.
    #[serde(default)]
    pub os: String,
    /// Of amd64, the level of the x86-64 psABI that the image needs: `v1`, which every
    /// processor has and which is meant where there is none, to `v4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Whether images for this platform run here.
    pub fn is_ours(&self) -> bool {
        self.runs_on_level(processor_level())
    }

    /// Whether they run on every machine of this kind.
    pub fn is_baseline(&self) -> bool {
        self.runs_on_level(1)
    }

    fn runs_on_level(&self, level: u32) -> bool {
        self.is_of_our_kind() && self.level().is_some_and(|needed| needed <= level)
    }

    fn is_of_our_kind(&self) -> bool {
        self.os == OPERATING_SYSTEM && self.architecture == ARCHITECTURE
    }

    /// `None`: another variant than there are.
    fn level(&self) -> Option<u32> {
        match self.variant.as_deref() {
            None | Some("") => Some(1),
            Some(variant) => variant.strip_prefix('v')?.parse().ok(),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(f, "/{variant}"),
        }
    }
}

/// Which level of the x86-64 psABI this machine's processor has.
fn processor_level() -> u32 {
    let v2 = is_x86_feature_detected!("cmpxchg16b")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("sse4.2")
        && is_x86_feature_detected!("ssse3");
    let v3 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("movbe");
    let v4 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    // Each includes those below it.
    1 + [v2, v3, v4].into_iter().take_while(|has| *has).count() as u32
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_image_runs_on_the_level_it_needs_and_on_those_above() {
        let runs = |platform: &serde_json::Value, level| {
            let platform: Platform = serde_json::from_value(platform.clone()).unwrap();
            platform.runs_on_level(level)
        };
        for (variant, lowest) in [("", 1), ("v1", 1), ("v2", 2), ("v4", 4)] {
            let platform = json!({"os": "linux", "architecture": "amd64", "variant": variant});
            for level in 1..=4 {
                assert_eq!(runs(&platform, level), level >= lowest, "{variant} {level}");
            }
        }
        assert!(runs(&json!({"os": "linux", "architecture": "amd64"}), 1));
        for other in [
            json!({"os": "linux", "architecture": "arm64"}),
            json!({"os": "windows", "architecture": "amd64"}),
            json!({"os": "linux", "architecture": "amd64", "variant": "v5"}),
            json!({"os": "linux", "architecture": "amd64", "variant": "x"}),
            json!({}),
        ] {
            assert!(!runs(&other, 4), "{other}");
        }
        assert!((1..=4).contains(&processor_level()));
    }
}
