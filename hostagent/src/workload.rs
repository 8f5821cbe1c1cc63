//! What to run: an image's configuration and the user's wishes, put together
//! with Docker's rules.

use guest_protocol::{MAX_MESSAGE_BYTES, Mount, Network, Workload};

use crate::image::config::ImageConfig;

/// What the user asked for on top of the image's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkloadOptions {
    /// Replaces the image's entrypoint, and drops its command. An empty text
    /// means no entrypoint at all.
    pub entrypoint: Option<String>,
    /// Replaces the image's command.
    pub command: Vec<String>,
    /// Changes to the image's environment, in order.
    pub env: Vec<EnvChange>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// Replaces the image's user.
    pub user: Option<String>,
    /// The guest's host name.
    pub hostname: String,
    /// How the guest sets its NIC up, if it has one.
    pub network: Option<Network>,
    /// What the guest mounts.
    pub mounts: Vec<Mount>,
}

/// A change to an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvChange {
    /// Set a variable: name and value.
    Set(String, String),
    /// Remove a variable, as Docker does for `-e NAME` where the caller's own
    /// environment has no such variable.
    Unset(String),
}

/// How long a workload may be, as it is told the guest's init. The rest is for the
/// message around it, and for the files that the session adds.
const MAX_BYTES: usize = MAX_MESSAGE_BYTES as usize - (64 << 10);

/// Why a workload cannot be put together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// Neither the image nor the user says what to run.
    #[error("no command specified: the image names none, so give one after the image")]
    NoCommand,
    /// More arguments and variables than the guest's init accepts.
    #[error(
        "the arguments and environment variables have {bytes} bytes together; at most {MAX_BYTES} are accepted"
    )]
    TooLong {
        /// As they would be sent.
        bytes: usize,
    },
    /// The user's working directory is relative.
    #[error("the working directory {0:?} is invalid: it must be an absolute path")]
    WorkingDir(String),
    /// An argument, a variable or a path has a NUL byte, which no process can
    /// be given.
    #[error("{0} has a NUL byte")]
    Nul(&'static str),
}

impl WorkloadOptions {
    /// Applies these options to an image's configuration.
    ///
    /// An empty user or directory is none, as in Docker: `-u "$UNSET"` does not
    /// make a user root.
    pub fn apply(mut self, config: &ImageConfig) -> Result<Workload, WorkloadError> {
        self.user = self.user.filter(|user| !user.is_empty());
        self.working_dir = self.working_dir.filter(|directory| !directory.is_empty());
        if let Some(directory) = &self.working_dir
            && !directory.starts_with('/')
        {
            return Err(WorkloadError::WorkingDir(directory.clone()));
        }
        let args = self.args(config);
        if args.is_empty() {
            return Err(WorkloadError::NoCommand);
        }
        let workload = Workload {
            env: changed_env(&config.env, &self.env),
            working_dir: self
                .working_dir
                .unwrap_or_else(|| absolute(&config.working_dir)),
            user: self.user.unwrap_or_else(|| config.user.clone()),
            args,
            hostname: self.hostname,
            // The session sets it, by whether it has an input to carry.
            stdin: false,
            hosts_file: None,
            resolv_conf: None,
            network: self.network,
            mounts: self.mounts,
        };
        let has_nul = |texts: &[String]| texts.iter().any(|text| text.contains('\0'));
        if has_nul(&workload.args) {
            return Err(WorkloadError::Nul("an argument"));
        }
        if has_nul(&workload.env) {
            return Err(WorkloadError::Nul("an environment variable"));
        }
        if workload.working_dir.contains('\0') || workload.user.contains('\0') {
            return Err(WorkloadError::Nul("the working directory or the user"));
        }
        // A workload is strings and flags, which all have a form as JSON.
        let bytes = serde_json::to_vec(&workload).map_or(0, |text| text.len());
        if bytes > MAX_BYTES {
            return Err(WorkloadError::TooLong { bytes });
        }
        Ok(workload)
    }

    /// Entrypoint, then command. A user's entrypoint drops the image's command,
    /// which was meant for the image's entrypoint.
    fn args(&self, config: &ImageConfig) -> Vec<String> {
        let (entrypoint, default_command) = match &self.entrypoint {
            None => (config.entrypoint.clone(), &config.cmd[..]),
            Some(none) if none.is_empty() => (Vec::new(), &[][..]),
            Some(program) => (vec![program.clone()], &[][..]),
        };
        let command = if self.command.is_empty() {
            default_command
        } else {
            &self.command
        };
        [&entrypoint, command].concat()
    }
}

/// The image's environment with changes applied: a variable that is set again
/// keeps its place, and new ones follow.
fn changed_env(env: &[String], changes: &[EnvChange]) -> Vec<String> {
    let name_of = |pair: &str| pair.split('=').next().unwrap_or(pair).to_owned();
    let mut env: Vec<(String, String)> = env
        .iter()
        .map(|pair| (name_of(pair), pair.clone()))
        .collect();
    for change in changes {
        match change {
            EnvChange::Set(name, value) => {
                let pair = format!("{name}={value}");
                match env.iter_mut().find(|(known, _)| known == name) {
                    Some((_, old)) => *old = pair,
                    None => env.push((name.clone(), pair)),
                }
            }
            EnvChange::Unset(name) => env.retain(|(known, _)| known != name),
        }
    }
    env.into_iter().map(|(_, pair)| pair).collect()
}

/// An image's working directory may be empty or, from some builders, relative;
/// both are meant from the root.
fn absolute(directory: &str) -> String {
    if directory.starts_with('/') {
        directory.to_owned()
    } else {
        format!("/{directory}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".into(), "-x".into()],
            cmd: vec!["serve".into()],
            env: vec!["PATH=/bin".into(), "A=1".into(), "B=2".into()],
            working_dir: "srv".into(),
            user: "www-data".into(),
            stop_signal: None,
            exposed_ports: Default::default(),
            volumes: Default::default(),
            labels: Default::default(),
            created: None,
            diff_ids: Vec::new(),
        }
    }

    fn args(entrypoint: Option<&str>, command: &[&str]) -> Result<Vec<String>, WorkloadError> {
        let options = WorkloadOptions {
            entrypoint: entrypoint.map(str::to_owned),
            command: command.iter().map(|&text| text.to_owned()).collect(),
            ..WorkloadOptions::default()
        };
        options.apply(&config()).map(|workload| workload.args)
    }

    #[test]
    fn more_than_the_guest_accepts_is_refused_before_there_is_a_guest() {
        let long = |bytes: usize| WorkloadOptions {
            env: vec![EnvChange::Set("A".into(), "x".repeat(bytes))],
            ..WorkloadOptions::default()
        };
        assert!(long(2 << 20).apply(&config()).is_ok());
        let error = long(4 << 20).apply(&config()).unwrap_err();
        assert!(matches!(error, WorkloadError::TooLong { .. }), "{error}");
    }

    #[test]
    fn an_empty_command_is_one_that_the_guest_will_not_find() {
        assert_eq!(args(Some(""), &[""]).unwrap(), [""]);
    }

    #[test]
    fn entrypoint_and_command_combine_as_in_docker() {
        assert_eq!(args(None, &[]).unwrap(), ["/entry", "-x", "serve"]);
        assert_eq!(args(None, &["a", "b"]).unwrap(), ["/entry", "-x", "a", "b"]);
        assert_eq!(args(Some("/bin/sh"), &[]).unwrap(), ["/bin/sh"]);
        assert_eq!(
            args(Some("/bin/sh"), &["-c", "x"]).unwrap(),
            ["/bin/sh", "-c", "x"]
        );
        assert_eq!(args(Some(""), &["ls"]).unwrap(), ["ls"]);
        assert_eq!(args(Some(""), &[]), Err(WorkloadError::NoCommand));
    }

    #[test]
    fn an_image_without_a_command_needs_one() {
        let mut config = config();
        config.entrypoint.clear();
        config.cmd.clear();
        let outcome = WorkloadOptions::default().apply(&config);
        assert_eq!(outcome, Err(WorkloadError::NoCommand));
    }

    #[test]
    fn variables_are_replaced_in_place_added_and_removed() {
        let options = WorkloadOptions {
            env: vec![
                EnvChange::Set("A".into(), "one=1".into()),
                EnvChange::Set("C".into(), String::new()),
                EnvChange::Unset("B".into()),
            ],
            ..WorkloadOptions::default()
        };
        let workload = options.apply(&config()).unwrap();
        assert_eq!(workload.env, ["PATH=/bin", "A=one=1", "C="]);
    }

    #[test]
    fn the_users_directory_and_user_win_over_the_images() {
        let workload = WorkloadOptions::default().apply(&config()).unwrap();
        assert_eq!(workload.working_dir, "/srv");
        assert_eq!(workload.user, "www-data");
        let options = WorkloadOptions {
            working_dir: Some("/tmp".into()),
            user: Some("0:0".into()),
            ..WorkloadOptions::default()
        };
        let workload = options.apply(&config()).unwrap();
        assert_eq!(workload.working_dir, "/tmp");
        assert_eq!(workload.user, "0:0");
    }

    #[test]
    fn an_empty_user_or_directory_leaves_the_images() {
        let options = WorkloadOptions {
            working_dir: Some(String::new()),
            user: Some(String::new()),
            ..WorkloadOptions::default()
        };
        let workload = options.apply(&config()).unwrap();
        assert_eq!(workload.working_dir, "/srv");
        assert_eq!(workload.user, "www-data");
    }

    #[test]
    fn a_relative_directory_and_nul_bytes_are_refused() {
        let options = WorkloadOptions {
            working_dir: Some("tmp".into()),
            ..WorkloadOptions::default()
        };
        assert_eq!(
            options.apply(&config()),
            Err(WorkloadError::WorkingDir("tmp".into()))
        );
        assert!(args(None, &["a\0b"]).is_err());
    }
}
