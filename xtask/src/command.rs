//! Runs programs whose output matters only when they fail.

use std::fmt::Write as _;
use std::io::Read;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How much of a failed program's output is shown, in lines.
const SHOWN_LINES: usize = 30;

/// Runs `command` without input and returns its standard output. If it fails,
/// the error holds the command and the end of all it said.
pub fn output(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{line}`"))?;
    if !output.status.success() {
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        bail!(
            "`{line}` failed ({}):\n{}",
            output.status,
            last_lines(&said, SHOWN_LINES)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` without input and hands each line it prints, on either
/// stream, to `each_line`. If it fails, the error holds the end of them.
pub fn lines(command: &mut Command, mut each_line: impl FnMut(&str)) -> Result<()> {
    let line = describe(command);
    let failed = || format!("cannot run `{line}`");
    let (mut reader, writer) = std::io::pipe().with_context(failed)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().with_context(failed)?)
        .stderr(writer)
        .spawn()
        .with_context(failed)?;
    // The writing ends live on in `command`, which would keep the pipe open.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut all = Vec::new();
    let mut shown = 0;
    let mut buffer = [0; 4096];
    loop {
        let count = reader.read(&mut buffer).with_context(failed)?;
        if count == 0 {
            break;
        }
        all.extend_from_slice(&buffer[..count]);
        while let Some(length) = all[shown..].iter().position(|byte| *byte == b'\n') {
            each_line(&String::from_utf8_lossy(&all[shown..shown + length]));
            shown += length + 1;
        }
    }
    let status = child.wait().with_context(failed)?;
    if !status.success() {
        let said = String::from_utf8_lossy(&all);
        bail!(
            "`{line}` failed ({status}):\n{}",
            last_lines(&said, SHOWN_LINES)
        );
    }
    Ok(())
}

/// The command as one would type it, for messages.
pub fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        let plain = !argument.is_empty() && !argument.contains([' ', '\'', '"', '$', ';', '&']);
        let _ = if plain {
            write!(line, " {argument}")
        } else {
            write!(line, " '{}'", argument.replace('\'', r"'\''"))
        };
    }
    line
}

/// The last `count` lines of `text`.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_tells_the_command_and_what_it_said() {
        let error = output(&mut shell("echo one; echo two >&2; exit 3")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("`sh -c 'echo one; echo two >&2; exit 3'`"),
            "{text}"
        );
        assert!(text.contains("one\ntwo"), "{text}");
        assert!(text.contains("exit status: 3"), "{text}");
    }

    #[test]
    fn lines_of_both_streams_are_seen_as_they_come() {
        let mut seen = Vec::new();
        lines(&mut shell("echo one; echo two >&2; printf last"), |line| {
            seen.push(line.to_owned());
        })
        .unwrap();
        assert_eq!(seen, ["one", "two"]);
        assert!(
            lines(&mut shell("echo why; exit 1"), |_| {})
                .unwrap_err()
                .to_string()
                .contains("why")
        );
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("", 2), "");
    }
}
