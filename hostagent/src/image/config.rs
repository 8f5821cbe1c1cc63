//! The image configuration: what to run, and which layers it stands on.
//!
//! Source: OCI image specification 1.1, "Image Configuration".

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::digest::Digest;
use super::manifest::MAX_LAYERS;
use super::platform::{ARCHITECTURE, OPERATING_SYSTEM};

/// An image configuration, reduced to what a host acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// The program and its first arguments; empty if the image has none.
    pub entrypoint: Vec<String>,
    /// What follows the entrypoint unless the user gives a command.
    pub cmd: Vec<String>,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Where the workload starts; empty means `/`.
    pub working_dir: String,
    /// `user[:group]`, names or numbers; empty means root.
    pub user: String,
    /// The signal that asks the workload to stop; `SIGTERM` if there is none.
    pub stop_signal: Option<String>,
    /// `port/protocol` pairs the image says it listens on.
    pub exposed_ports: BTreeSet<String>,
    /// Directories the image wants on volumes.
    pub volumes: BTreeSet<String>,
    /// Free-form notes.
    pub labels: BTreeMap<String, String>,
    /// When the image was built, as RFC 3339 text.
    pub created: Option<String>,
    /// The digests of the uncompressed layers, base first.
    pub diff_ids: Vec<Digest>,
}

/// Why bytes are not an image configuration this host can run.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or a field is missing or of the wrong kind.
    #[error("it is not a valid image configuration")]
    Json(#[from] serde_json::Error),
    /// The image is for other machines.
    #[error("the image is for {found}; this machine runs {OPERATING_SYSTEM}/{ARCHITECTURE}")]
    Platform {
        /// What the image is for.
        found: String,
    },
    /// `rootfs.type` is not `layers`.
    #[error("its root file system is of type {0:?}; only \"layers\" is supported")]
    RootFs(String),
    /// More layers than [`MAX_LAYERS`].
    #[error("it has {0} layers; at most {MAX_LAYERS} are supported")]
    TooManyLayers(usize),
}

/// The document. `null` stands for "empty" wherever Go writes a nil slice or map.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    created: Option<String>,
    config: Option<Execution>,
    rootfs: RootFs,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Execution {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(rename = "type", default)]
    kind: String,
    diff_ids: Option<Vec<Digest>>,
}

impl ImageConfig {
    /// Reads a configuration and checks that it is for this machine.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let document: Document = serde_json::from_slice(bytes)?;
        if document.os != OPERATING_SYSTEM || document.architecture != ARCHITECTURE {
            return Err(ConfigError::Platform {
                found: format!("{}/{}", document.os, document.architecture),
            });
        }
        if document.rootfs.kind != "layers" {
            return Err(ConfigError::RootFs(document.rootfs.kind));
        }
        let diff_ids = document.rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() > MAX_LAYERS {
            return Err(ConfigError::TooManyLayers(diff_ids.len()));
        }
        let execution = document.config.unwrap_or_default();
        let keys = |map: Option<BTreeMap<String, _>>| map.unwrap_or_default().into_keys().collect();
        Ok(Self {
            entrypoint: execution.entrypoint.unwrap_or_default(),
            cmd: execution.cmd.unwrap_or_default(),
            env: execution.env.unwrap_or_default(),
            working_dir: execution.working_dir.unwrap_or_default(),
            user: execution.user.unwrap_or_default(),
            stop_signal: execution.stop_signal.filter(|signal| !signal.is_empty()),
            exposed_ports: keys(execution.exposed_ports),
            volumes: keys(execution.volumes),
            labels: execution.labels.unwrap_or_default(),
            created: document.created,
            diff_ids,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_a_host_acts_on_is_read() {
        let document = json!({
            "architecture": "amd64",
            "os": "linux",
            "created": "2026-11-01T00:00:00Z",
            "config": {
                "Entrypoint": ["/entry"],
                "Cmd": ["a", "b"],
                "Env": ["PATH=/bin"],
                "WorkingDir": "/srv",
                "User": "www-data",
                "StopSignal": "SIGQUIT",
                "ExposedPorts": {"80/tcp": {}},
                "Volumes": {"/data": {}},
                "Labels": {"a": "b"},
                "Healthcheck": {"Test": ["NONE"]}
            },
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"")]},
            "history": []
        });
        let config = ImageConfig::parse(document.to_string().as_bytes()).unwrap();
        assert_eq!(config.entrypoint, ["/entry"]);
        assert_eq!(config.cmd, ["a", "b"]);
        assert_eq!(config.env, ["PATH=/bin"]);
        assert_eq!(config.working_dir, "/srv");
        assert_eq!(config.user, "www-data");
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert!(config.exposed_ports.contains("80/tcp"));
        assert!(config.volumes.contains("/data"));
        assert_eq!(config.labels["a"], "b");
        assert_eq!(config.diff_ids, [Digest::of(b"")]);
    }

    #[test]
    fn null_means_empty() {
        let document = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": null, "Cmd": null, "Env": null, "Volumes": null},
            "rootfs": {"type": "layers", "diff_ids": null}
        });
        let config = ImageConfig::parse(document.to_string().as_bytes()).unwrap();
        assert!(config.entrypoint.is_empty() && config.diff_ids.is_empty());
    }

    #[test]
    fn an_image_for_another_machine_is_refused() {
        let document = json!({
            "architecture": "arm64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": []}
        });
        let error = ImageConfig::parse(document.to_string().as_bytes()).unwrap_err();
        assert!(error.to_string().contains("linux/arm64"), "{error}");
    }
}
