//! Root file systems of Debian packages, as tar streams, and programs on top of them.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::{command, packages};

/// Writes a minimal root file system of the release `suite`, as root sees it, with
/// `include`, names of packages with commas between.
pub fn write(suite: &str, include: &str, to: &mut dyn Write) -> Result<()> {
    let mut command = packages::as_root("mmdebstrap");
    command
        .args(["--quiet", "--variant=minbase", "--format=tar"])
        .arg(format!("--include={include}"))
        .args([suite, "-"]);
    let complaints = tempfile::tempfile().context("cannot make a temporary file")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(complaints.try_clone().context("a temporary file")?)
        .spawn()
        .context("cannot run mmdebstrap")?;
    let mut stdout = child.stdout.take().context("mmdebstrap has no output")?;
    io::copy(&mut stdout, to).context("cannot copy what mmdebstrap makes")?;
    let status = child.wait().context("cannot wait for mmdebstrap")?;
    if !status.success() {
        let text = read_from_start(complaints)?;
        bail!(
            "`{}` failed ({status}):\n{}",
            command::describe(&command),
            command::last_lines(&text, 20)
        );
    }
    Ok(())
}

fn read_from_start(mut file: File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind().context("a temporary file")?;
    file.read_to_end(&mut bytes).context("a temporary file")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Writes a layer with one program, `text` at `path`.
pub fn write_program(path: &str, text: &str, to: &mut dyn Write) -> Result<()> {
    let failed = || format!("cannot write a layer with {path}");
    let mut archive = tar::Builder::new(to);
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o755);
    header.set_size(text.len() as u64);
    archive
        .append_data(&mut header, path.trim_start_matches('/'), text.as_bytes())
        .with_context(failed)?;
    archive.finish().with_context(failed)
}
