//! The lab: a virtual machine with hardware virtualization, on any machine.
//!
//! QEMU emulates an AMD processor with SVM; Debian's cloud kernel runs on it,
//! over this machine's own file system, shared read-only under an overlay in
//! memory. One command runs there, as root. `docs/lab.md` tells the rest.

mod console;
mod image;
mod machine;
mod patience;
mod process;
mod session;
mod size;
mod streams;
mod terminal;
mod virtiofsd;

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use lab_init::protocol::{Command, StartFailure};

use crate::{debian_kernel, distribution, packages, progress};

use machine::Machine;
pub use machine::MachineOptions;
pub use patience::Patience;
use session::Start;
pub use session::{Ending, Signalled};
pub use size::Size;
pub use streams::Streams;

/// A lab that says nothing for this long deserves a word about it.
const USUAL_START: Duration = Duration::from_secs(10);
/// How many labs may stand still while they start before that is an error.
const START_TRIES: usize = 3;

/// Runs a command in a lab.
///
/// The lab is a virtual machine with hardware virtualization, emulated by QEMU,
/// so that microVMs with Linux run where the machine itself cannot run them. It
/// sees this machine's files; whatever is written there vanishes when it ends.
///
/// mote is built first, so that it is there as it is in the tree. Without a
/// command: a shell.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The lab's memory, such as 4G [default: half of this machine's, at most 8G]
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// The lab's processors [default: as many as this machine has, 2 to 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: Option<u32>,
    /// Mount an empty ext4 disk of this size at /scratch
    #[arg(long, value_name = "SIZE")]
    scratch: Option<Size>,
    /// Take mote as it was last built, if it was
    #[arg(long)]
    no_build: bool,
    /// Show the console of the lab's kernel on standard error
    #[arg(long)]
    verbose: bool,
    /// The command and its arguments, after `--`
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs the command line's command and returns the exit code to end with.
pub fn main(options: Options) -> Result<u8> {
    if !options.no_build {
        distribution::build()?;
    }
    let usual = MachineOptions::default();
    let machine = MachineOptions {
        memory: options.memory.unwrap_or(usual.memory),
        cpus: options.cpus.unwrap_or(usual.cpus),
        scratch: options.scratch,
        verbose: options.verbose,
    };
    let mut request = Request::new(options.command)?;
    // A terminal of its own where all three streams are one: programs that ask
    // for a terminal work, and otherwise the streams stay apart.
    request.terminal = std::io::stdin().is_terminal()
        && std::io::stdout().is_terminal()
        && std::io::stderr().is_terminal();
    let ending = run(&machine, &request, Streams::inherit()?)?;
    if let Ending::NotStarted(StartFailure { message, .. }) = &ending {
        eprintln!("lab: {message}");
    }
    Ok(ending.exit_code())
}

/// A command for the lab.
#[derive(Debug)]
pub struct Request {
    /// Program and arguments.
    pub args: Vec<OsString>,
    /// The environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where it runs.
    pub working_dir: PathBuf,
    /// Whether it runs on a terminal, which stands in for this process's own.
    pub terminal: bool,
    /// What happens when this process is asked to end.
    pub signalled: Signalled,
    /// With a command that must be heard of by its caller, or its lab has failed.
    pub patience: Option<Patience>,
}

/// The context of an error of a lab that had started its command.
#[derive(Debug)]
pub struct Lost;

impl std::fmt::Display for Lost {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("the lab was lost while its command ran")
    }
}

impl Request {
    /// `args`, or a shell if there are none, here and with this process's
    /// environment.
    pub fn new(args: Vec<OsString>) -> Result<Self> {
        let args = if args.is_empty() {
            vec![env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())]
        } else {
            args
        };
        Ok(Self {
            args,
            env: environment(env::vars_os()),
            working_dir: env::current_dir().context("there is no working directory")?,
            terminal: false,
            signalled: Signalled::Command,
            patience: None,
        })
    }
}

/// Whether this process is the init of a lab: started as PID 1 by the name that
/// only a lab's initramfs has.
pub fn is_init() -> bool {
    std::process::id() == 1
        && env::args_os()
            .next()
            .is_some_and(|name| name == image::INIT)
}

/// Starts a lab, runs `request` in it to its end, and takes the lab down.
pub fn run(options: &MachineOptions, request: &Request, streams: Streams) -> Result<Ending> {
    packages::require(&packages::for_lab())?;
    let kernel = debian_kernel::fetch()?;
    let step = progress::step_after("starting the lab", USUAL_START);
    let command = Command {
        args: request.args.clone(),
        env: request.env.clone(),
        working_dir: request.working_dir.clone().into(),
        terminal: request.terminal.then(terminal::size).transpose()?,
        modules_dir: kernel.modules_root.clone().into(),
        scratch: options.scratch.is_some(),
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let initramfs = image::build(&kernel)?;
        let machine = Machine::start(options, &kernel, initramfs)?;
        let patience = session::START_PATIENCE;
        match session::start(machine, command.clone(), request.signalled, patience)? {
            Start::Running(session) => {
                drop(step);
                let with_init = Patience::of(session::RUN_PATIENCE);
                let with_command = request.patience.as_ref();
                let ending = session.run_to_end(streams, with_init, with_command);
                return ending.context(Lost);
            }
            Start::Over(ending) => return Ok(ending),
            Start::StoodStill(error) if tries < START_TRIES => {
                let first = error.to_string();
                let first = first.lines().next().unwrap_or_default();
                progress::say(&format!("{first} (see docs/lab.md): starting another"));
            }
            Start::StoodStill(error) => return Err(error),
        }
    }
}

/// Variables that name sockets and sessions of this machine, which end at the
/// lab's wall.
const LEFT_BEHIND: [&str; 9] = [
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "SSH_AUTH_SOCK",
    "SSH_CLIENT",
    "SSH_CONNECTION",
    "SSH_TTY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
];

/// The environment of a command in the lab, where it is root.
fn environment(own: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let mut path = OsString::new();
    let mut kept: Vec<(OsString, OsString)> = Vec::new();
    for (name, value) in own {
        match name.to_str() {
            Some("PATH") => path = value,
            Some("USER" | "LOGNAME") => kept.push((name, "root".into())),
            // `cargo run` puts its own libraries there. Each start of a program
            // would look for its libraries in them first.
            Some("LD_LIBRARY_PATH") => {
                if let Some(value) = without_cargo_directories(&value) {
                    kept.push((name, value));
                }
            }
            Some(text) if LEFT_BEHIND.contains(&text) => {}
            _ => kept.push((name, value)),
        }
    }
    kept.push(("PATH".into(), search_path(&path)));
    kept
}

/// mote's own programs first, then the caller's, then those of system
/// administration, since the command is root's.
pub fn search_path(own: &OsStr) -> OsString {
    let built = crate::workspace::distribution().join("bin");
    let mut directories = vec![built];
    directories.extend(env::split_paths(own).filter(|directory| directory.is_absolute()));
    for directory in ["/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"] {
        if !directories
            .iter()
            .any(|known| known == Path::new(directory))
        {
            directories.push(directory.into());
        }
    }
    // Only a directory with a colon in its name is refused.
    env::join_paths(&directories).unwrap_or_else(|_| own.to_owned())
}

fn without_cargo_directories(value: &OsStr) -> Option<OsString> {
    let target = crate::workspace::target_directory();
    let kept: Vec<PathBuf> = env::split_paths(value)
        .filter(|directory| {
            !directory.starts_with(&target)
                && !directory
                    .components()
                    .any(|part| part.as_os_str() == "rustlib")
                && !directory.ends_with("lib")
        })
        .collect();
    if kept.is_empty() {
        return None;
    }
    env::join_paths(kept).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'a>(env: &'a [(OsString, OsString)], name: &str) -> Option<&'a str> {
        env.iter()
            .find(|(key, _)| key == name)
            .and_then(|(_, value)| value.to_str())
    }

    #[test]
    fn the_command_is_roots_and_finds_what_was_built_first() {
        let own = [
            ("PATH", "/usr/bin:relative:/opt/tool/bin"),
            ("USER", "ada"),
            ("SSH_AUTH_SOCK", "/run/agent"),
            ("EDITOR", "vi"),
        ];
        let env = environment(own.map(|(name, value)| (name.into(), value.into())));
        assert_eq!(value(&env, "USER"), Some("root"));
        assert_eq!(value(&env, "EDITOR"), Some("vi"));
        assert_eq!(value(&env, "SSH_AUTH_SOCK"), None);
        let path: Vec<PathBuf> = env::split_paths(value(&env, "PATH").unwrap()).collect();
        assert!(path[0].ends_with("bin") && path[0].is_absolute());
        assert_eq!(
            path[1..3],
            [Path::new("/usr/bin"), Path::new("/opt/tool/bin")]
        );
        assert!(path.contains(&PathBuf::from("/usr/sbin")));
    }
}
