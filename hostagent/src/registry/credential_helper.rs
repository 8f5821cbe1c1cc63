//! The programs `docker-credential-NAME`, which keep credentials elsewhere.
//!
//! `docker-credential-NAME get` reads the registry's address from its standard
//! input and writes `{"ServerURL":…,"Username":…,"Secret":…}`. Source: the
//! docker-credential-helpers project, "Development".

use std::io::{self, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::secret::Secret;
use super::text::printable;

/// How long a helper may take; some ask a user, or a cloud.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is asked whether the helper has ended.
const POLL: Duration = Duration::from_millis(10);
/// More than a credential has; cloud tokens have several KiB.
const MAX_OUTPUT_BYTES: u64 = 256 << 10;
/// What every helper says when it has none (`credentials.NewErrCredentialsNotFound`).
const NOT_FOUND: &str = "credentials not found";

/// A helper's answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Found {
    pub username: String,
    pub secret: Secret,
}

/// What a helper did wrong.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// Its name is not that of a program.
    #[error("its name must not contain a slash")]
    Name,
    /// It cannot be started or talked to.
    #[error("it cannot be run; is it installed and on PATH?")]
    Run(#[source] io::Error),
    /// It did not end.
    #[error("it has not answered within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// It failed, and not because it has none.
    #[error("it ended with {status} and said {message:?}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// What it wrote, bounded and printable.
        message: String,
    },
    /// Its answer is not the JSON it should be; not quoted, as it has the secret.
    #[error("its answer is not JSON with Username and Secret")]
    Answer,
}

/// Asks `program` for the credentials of `server`; `None` if it has none.
pub(super) fn get(program: &str, server: &str) -> Result<Option<Found>, HelperError> {
    get_within(program, server, TIMEOUT)
}

fn get_within(
    program: &str,
    server: &str,
    timeout: Duration,
) -> Result<Option<Found>, HelperError> {
    if program.contains('/') {
        return Err(HelperError::Name);
    }
    run(Command::new(program).arg("get"), server, timeout)
}

fn run(
    command: &mut Command,
    server: &str,
    timeout: Duration,
) -> Result<Option<Found>, HelperError> {
    let deadline = Instant::now() + timeout;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(HelperError::Run)?;
    let (sender, output) = mpsc::channel();
    if let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) {
        // An address is shorter than a pipe. A helper that does not read it may
        // have an answer all the same.
        let _ = stdin.write_all(server.as_bytes());
        drop(stdin);
        // On its own: a process the helper leaves behind can hold the pipe open.
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let read = stdout.take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes);
            let _ = sender.send(read.map(|_| bytes));
        });
    }
    let status = wait(&mut child, deadline)?;
    let left = deadline.saturating_duration_since(Instant::now());
    let bytes = output
        .recv_timeout(left)
        .map_err(|_| HelperError::Timeout)?
        .map_err(HelperError::Run)?;
    if status.success() {
        let found = serde_json::from_slice(&bytes).map_err(|_| HelperError::Answer)?;
        return Ok(Some(found));
    }
    let message = printable(&bytes, 200);
    if message.contains(NOT_FOUND) {
        return Ok(None);
    }
    Err(HelperError::Failed { status, message })
}

/// Waits for the end, and sees to it when that does not come.
fn wait(child: &mut Child, deadline: Instant) -> Result<ExitStatus, HelperError> {
    loop {
        if let Some(status) = child.try_wait().map_err(HelperError::Run)? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            // It may have ended by itself just now.
            let _ = child.kill();
            let _ = child.wait();
            return Err(HelperError::Timeout);
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Duration) -> Result<Option<Found>, HelperError> {
        run(
            Command::new("sh").args(["-c", script]),
            "a.example",
            timeout,
        )
    }

    #[test]
    fn a_helper_is_told_the_server_and_answers() {
        let script =
            r#"read -r server; printf '{"ServerURL":"x","Username":"%s","Secret":"s"}' "$server""#;
        let found = shell(script, TIMEOUT).unwrap().unwrap();
        assert_eq!(found.username, "a.example");
        assert_eq!(found.secret.expose(), "s");
        assert!(!format!("{found:?}").contains("\"s\""));
    }

    #[test]
    fn credentials_not_found_is_no_failure() {
        let script = "echo 'credentials not found in native keychain'; exit 1";
        assert!(shell(script, TIMEOUT).unwrap().is_none());
    }

    #[test]
    fn another_failure_tells_what_the_helper_said() {
        let error = shell("printf 'vault \\033 sealed'; exit 3", TIMEOUT).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("sealed") && message.contains('3'),
            "{message}"
        );
        assert!(!message.contains('\u{1b}'), "{message:?}");
    }

    #[test]
    fn an_answer_that_is_not_json_is_not_quoted() {
        let error = shell("echo my-password", TIMEOUT).unwrap_err();
        assert!(matches!(error, HelperError::Answer));
        assert!(!format!("{error} {error:?}").contains("my-password"));
    }

    #[test]
    fn a_helper_that_does_not_end_is_ended() {
        for script in ["sleep 1000", "sleep 2 & exit 0"] {
            let outcome = shell(script, Duration::from_millis(50));
            assert!(matches!(outcome, Err(HelperError::Timeout)), "{script}");
        }
    }

    #[test]
    fn a_helper_that_is_not_there_and_a_path_are_refused() {
        assert!(matches!(
            get("docker-credential-no-such", "a"),
            Err(HelperError::Run(_))
        ));
        assert!(matches!(
            get("docker-credential-../sh", "a"),
            Err(HelperError::Name)
        ));
    }
}
