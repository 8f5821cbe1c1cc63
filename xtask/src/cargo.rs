//! Runs cargo.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::describe;
use crate::progress::Step;
use crate::{cache, command, packages, progress, workspace};

/// A program or test that cargo has built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executable {
    /// The package it belongs to.
    pub package: String,
    /// The name of its target: the library or program, or the file of tests.
    pub target: String,
    /// Whether it was built to run tests.
    pub is_test: bool,
    /// Whether it is a test target: neither a library's nor a program's own.
    pub is_integration_test: bool,
    /// Its file.
    pub path: PathBuf,
    /// The directory of its package, where cargo would run it.
    pub package_dir: PathBuf,
}

/// Cargo, with no arguments yet, at the root of the workspace.
pub fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(workspace::root());
    // The caller's cargo sets it for this process; its presence would make
    // cargo build everything again that looks at it.
    command.env_remove("CARGO_MANIFEST_DIR");
    command
}

/// A program of crates.io from `PATH`, or from the cache, built if it is not there.
/// `purpose` goes on after its name, such as "which checks dependencies".
pub fn tool(name: &str, version: &str, purpose: &str) -> Result<PathBuf> {
    if let Some(found) = packages::find_program(name) {
        return Ok(found);
    }
    let entry = cache::entry(&format!("{name}-{version}"), |directory| {
        let step = progress::step(format!("building {name}, {purpose} (once)"));
        let mut install = cargo();
        install
            .args(["install", "--locked", "--version", version, name, "--root"])
            .arg(directory)
            // Elsewhere the workspace's configuration would ask for a static one.
            .current_dir(directory);
        command::lines(&mut install, |line| step.detail(line.trim()))
    })?;
    Ok(entry.join("bin").join(name))
}

/// Runs `cargo ARGUMENTS`, shows on `step` what it is at, and returns what it
/// has built. If it fails, the error holds all it said.
pub fn build<S: Into<OsString>>(
    arguments: impl IntoIterator<Item = S>,
    step: &Step,
) -> Result<Vec<Executable>> {
    let mut command = cargo();
    command
        .args(arguments.into_iter().map(Into::into))
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let line = describe(&command);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run `{line}`"))?;
    let (Some(mut stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("cargo was started without pipes");
    };
    let messages = thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).map(|_| text)
    });
    let mut said = String::new();
    for text in BufReader::new(stderr).lines() {
        let text = text.with_context(|| format!("cannot read what `{line}` says"))?;
        step.detail(text.trim());
        if !is_progress(&text) {
            said.push_str(&text);
            said.push('\n');
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{line}` failed:\n{said}");
    }
    let messages = messages
        .join()
        .map_err(|_| anyhow::anyhow!("cannot read the messages of `{line}`"))?
        .with_context(|| format!("cannot read the messages of `{line}`"))?;
    Ok(messages.lines().filter_map(executable).collect())
}

/// Whether a line only says what cargo is at: a verb, indented to column 12.
fn is_progress(line: &str) -> bool {
    line.starts_with("  ")
        && [
            "Compiling",
            "Checking",
            "Downloading",
            "Downloaded",
            "Updating",
            "Locking",
            "Adding",
        ]
        .contains(&line.split_whitespace().next().unwrap_or_default())
}

/// Reads a line of cargo's messages.
fn executable(message: &str) -> Option<Executable> {
    let message: Value = serde_json::from_str(message).ok()?;
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    let manifest = PathBuf::from(message["manifest_path"].as_str()?);
    let package_dir = manifest.parent()?.to_owned();
    Some(Executable {
        package: package_name(message["package_id"].as_str()?, &package_dir)?,
        target: message["target"]["name"].as_str()?.to_owned(),
        is_test: message["profile"]["test"] == true,
        is_integration_test: message["target"]["kind"][0] == "test",
        path: message["executable"].as_str()?.into(),
        package_dir,
    })
}

/// A package id ends in `#NAME@VERSION`, or in `/NAME#VERSION` where the
/// directory has the package's name.
fn package_name(id: &str, package_dir: &std::path::Path) -> Option<String> {
    let fragment = id.rsplit_once('#')?.1;
    match fragment.split_once('@') {
        Some((name, _)) => Some(name.to_owned()),
        None => Some(package_dir.file_name()?.to_string_lossy().into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_among_cargos_messages() {
        let test = r#"{"reason":"compiler-artifact","package_id":"path+file:///w/guest-images/init#guest-init@0.1.0","manifest_path":"/w/guest-images/init/Cargo.toml","target":{"kind":["test"],"name":"guest"},"profile":{"test":true},"executable":"/t/guest-1"}"#;
        assert_eq!(
            executable(test),
            Some(Executable {
                package: "guest-init".to_owned(),
                target: "guest".to_owned(),
                is_test: true,
                is_integration_test: true,
                path: "/t/guest-1".into(),
                package_dir: "/w/guest-images/init".into(),
            })
        );
        let program = test
            .replace("init#guest-init@0.1.0", "init#0.1.0")
            .replace("true", "false")
            .replace(r#"["test"]"#, r#"["bin"]"#);
        let program = executable(&program).unwrap();
        assert_eq!(program.package, "init");
        assert!(!program.is_test && !program.is_integration_test);
    }

    #[test]
    fn other_messages_are_no_executables() {
        for line in [
            "",
            "not json",
            r#"{"reason":"build-finished","success":true}"#,
            r#"{"reason":"compiler-artifact","package_id":"x#a@1","manifest_path":"/a/b","target":{"kind":["lib"],"name":"a"},"profile":{"test":false},"executable":null}"#,
        ] {
            assert_eq!(executable(line), None, "{line}");
        }
    }
}
