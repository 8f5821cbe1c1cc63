//! What somebody at a terminal sees of a pull.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hostagent::image::digest::Digest;
use libtest_mimic::Failed;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::Test;
use crate::http_server::{Fault, Server};
use crate::memory_registry::{answer, content};
use crate::support::{Layout, Mote, Stored, config, layer, noise};

pub const TESTS: &[Test] = &[(
    "a_pull_shows_how_far_each_layer_is_to_a_terminal_and_to_nobody_else",
    each_layer,
)];

/// A terminal of 120 columns: this side, and what a process has as its own.
fn terminal() -> Result<(File, File), Failed> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let size = Winsize {
        ws_row: 40,
        ws_col: 120,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&ours, size)?;
    let path = ptsname(&ours, Vec::new())?;
    let theirs = File::options()
        .read(true)
        .write(true)
        .open(path.to_str()?)?;
    Ok((File::from(ours), theirs))
}

fn each_layer() -> Result<(), Failed> {
    let layers: Vec<_> = (0..2)
        .map(|seed| layer(&[("data", &noise(seed + 60, 500_000))]))
        .collect();
    let layout = Layout::new();
    let descriptor = layout.image(&config(&layers), &layers, Stored::Plain);
    let content = content(&layout, "v1", descriptor["digest"].as_str().unwrap());
    // Of each layer a part comes, later than what is over so soon that nothing is shown.
    let server = Server::start(move |request| {
        let reply = answer(request, &mut content.clone());
        match reply.body.len() > 100_000 {
            true => {
                std::thread::sleep(Duration::from_secs(1));
                reply.fault(Fault::StallAfter(250_000))
            }
            false => reply,
        }
    });
    let settings = tempfile::tempdir()?;
    let host = server.host();
    let plain = format!("[registry.\"{host}\"]\nplain_http = true\n");
    std::fs::write(settings.path().join("registries.toml"), plain)?;
    let mote = Mote::new();
    let pull = || -> Command {
        let mut command = mote.command(&["pull", &format!("{host}/app:v1")]);
        command
            .env("MOTE_CONFIG", settings.path())
            .env("TERM", "xterm")
            .stdout(Stdio::null());
        command
    };
    let (mut ours, theirs) = terminal()?;
    let mut child = pull().stderr(theirs).spawn()?;
    let (pieces, shown) = mpsc::channel();
    // Ends when nobody has the other side any more.
    let reader = std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = ours.read(&mut piece) {
            if pieces.send(piece[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut seen = String::new();
    // A bound against hanging, not a measurement.
    let until = Instant::now() + Duration::from_secs(30);
    let mut wanted: Vec<_> = layers
        .iter()
        .map(|layer| format!("{} [=", Digest::of(layer).short()))
        .collect();
    wanted.push(" KiB of 490.00 KiB".to_owned());
    while !wanted.iter().all(|words| seen.contains(words)) {
        let left = until.saturating_duration_since(Instant::now());
        match shown.recv_timeout(left) {
            Ok(piece) => seen.push_str(&String::from_utf8_lossy(&piece)),
            Err(_) => break,
        }
    }
    kill_process(Pid::from_child(&child), Signal::INT)?;
    let status = child.wait()?;
    drop(shown);
    let ended = reader.join();
    assert!(ended.is_ok());
    for words in &wanted {
        assert!(seen.contains(words), "{words}: {seen:?}");
    }
    assert_eq!(status.code(), Some(130));

    let mut child = pull().stderr(Stdio::piped()).spawn()?;
    std::thread::sleep(Duration::from_secs(2));
    kill_process(Pid::from_child(&child), Signal::INT)?;
    let mut errors = String::new();
    let stderr = child.stderr.as_mut();
    stderr.ok_or("no pipe")?.read_to_string(&mut errors)?;
    assert_eq!(child.wait()?.code(), Some(130));
    assert!(!errors.contains("KiB"), "{errors}");
    Ok(())
}
