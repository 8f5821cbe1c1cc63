//! What of images needs a guest, or compares with other monitors' guests: measured where
//! Linux guests run, in the lab or here, with a loopback interface of its own.
//!
//! An image of 1 GiB is in a registry behind 50 Mbit/s. It is started before it has
//! arrived, and beside that pulled and then started. All bytes count that pass the
//! interface until the workload's first output: manifests, hash trees, requests, what is
//! fetched for nobody.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::load::{self, succeed};
use crate::comparison::{Better, Comparison, Group};
use crate::error::{BenchError, host};
use crate::interruption;
use crate::linux::{self, Lost};

/// A docker archive with one layer, among what is prepared.
pub const ARCHIVE: &str = "image.tar";
/// The archive of that layer.
pub const LAYER: &str = "layer.tar";
/// What a registry keeps.
pub const REGISTRY: &str = "registry";
/// An empty disk of the lab's own.
const SCRATCH: &str = "/scratch";

/// The limit on the interface. A bucket holds a few of its largest packets.
const LIMIT: [&str; 7] = [
    "tbf", "rate", "50mbit", "burst", "256kb", "latency", "200ms",
];
/// What the workload does: an interpreter is loaded, and says something.
const WORKLOAD: [&str; 3] = ["/usr/bin/python3", "-c", "print('first')"];
/// Longer than an image of 1 GiB takes to arrive where every instruction is emulated.
const PATIENCE: Duration = Duration::from_secs(1200);
const START_PATIENCE: Duration = Duration::from_secs(60);

/// The titles of the groups.
pub const TIMES: &str = "time to take an image in, where guests run";
const STARTS: &str = "time until the first output, of an image of 1 GiB over 50 Mbit/s";
/// See [`STARTS`].
pub const FETCHED: &str = "bytes over the network until then";

/// Debian's docker-registry, which ends with its value.
pub struct Registry {
    child: Child,
    host: String,
}

impl Registry {
    /// Serves what `storage` keeps.
    pub fn serve(storage: &Path) -> Result<Self, BenchError> {
        let failed = || host("start a registry");
        let address = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let host = address.map_err(failed())?.to_string();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\n\
             storage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n  secret: x\n",
            storage.display()
        );
        let file = storage.with_extension("yml");
        fs::write(&file, config).map_err(failed())?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed())?;
        let registry = Self { child, host };
        let end = Instant::now() + START_PATIENCE;
        while TcpStream::connect(&registry.host).is_err() {
            if Instant::now() > end {
                return Err(hangs("docker-registry", START_PATIENCE));
            }
            interruption::sleep(Duration::from_millis(50))?;
        }
        Ok(registry)
    }

    /// The image in it.
    pub fn image(&self) -> String {
        format!("{}/bench/large:v1", self.host)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Until the workload's first output.
#[derive(Debug, Clone, Copy)]
struct Start {
    seconds: f64,
    bytes: f64,
}

/// Measures `turns` with what is prepared in `directory`; `progress` is told what is being
/// done, `finished` gets each turn. Expects to be in a network namespace of its own.
pub fn run(
    mote: &Path,
    directory: &Path,
    turns: Range<usize>,
    mut progress: impl FnMut(&str),
    finished: impl FnMut(Comparison) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    succeed(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    let scratch = Path::new(SCRATCH);
    let work = if scratch.is_dir() { scratch } else { directory };
    let registry = Registry::serve(&directory.join(REGISTRY))?;
    let store = work.join("store");
    // From where else a lab has files is not what is measured.
    let taken_in = [ARCHIVE, LAYER].map(|name| (directory.join(name), work.join(name)));
    for (given, here) in taken_in.iter().filter(|(given, here)| given != here) {
        fs::copy(given, here).map_err(host("copy what is taken in"))?;
    }
    let [archive, layer] = taken_in.map(|(_, here)| here);
    let all = turns.end;
    let turn = |turn: usize, lost: &mut Lost| {
        let number = turn + 1;
        progress(&format!("turn {number} of {all}, taking an image in there"));
        load::forget(&archive)?;
        let load = load::load(mote, &store, &archive)?;
        load::forget(&layer)?;
        let tar = load::unpack(&layer, &work.join("tree"))?;
        let mut start = |lazily: bool| {
            let what = match lazily {
                true => "starting an image before it has arrived",
                false => "pulling an image and starting it",
            };
            progress(&format!("turn {number} of {all}, {what}"));
            let mut trial = || {
                load::remove(&store)?;
                let _limit = Limit::set()?;
                first_output(mote, &store, &registry.image(), lazily)
            };
            lost.trial("mote", &mut progress, &mut trial)
        };
        let lazy = start(true)?;
        let whole = start(false)?;
        load::remove(&store)?;
        Ok(comparison([load, tar], lazy, whole))
    };
    linux::turns("image-guests", &[], turns, turn, finished)
}

/// A slow loopback interface, until this is dropped.
struct Limit;

impl Limit {
    fn set() -> Result<Self, BenchError> {
        let mut tc = Command::new("tc");
        succeed(
            tc.args(["qdisc", "replace", "dev", "lo", "root"])
                .args(LIMIT),
        )?;
        Ok(Self)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let mut tc = Command::new("tc");
        let _ = succeed(tc.args(["qdisc", "del", "dev", "lo", "root"]));
    }
}

/// A process that does not outlive its value.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn first_output(mote: &Path, store: &Path, image: &str, lazily: bool) -> Result<Start, BenchError> {
    let before = passed_bytes()?;
    let clock = Instant::now();
    if !lazily {
        load::mote(mote, store, &["pull", image])?;
    }
    let mut command = Command::new(mote);
    command
        .args(["run", image])
        .args(WORKLOAD)
        .env("MOTE_ROOT", store)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let child = command.spawn().map_err(|source| BenchError::Start {
        path: mote.to_owned(),
        source,
    })?;
    let mut run = Ended(child);
    let mut stdout = run.0.stdout.take();
    let stdout = stdout.as_mut().ok_or(BenchError::NoRuns)?;
    if !interruption::wait_readable(&*stdout, PATIENCE)? {
        return Err(hangs("mote run", PATIENCE));
    }
    let seconds = clock.elapsed().as_secs_f64();
    let bytes = passed_bytes()? - before;
    let mut said = String::new();
    stdout
        .read_to_string(&mut said)
        .map_err(host("read what a workload says"))?;
    let status = run.0.wait().map_err(host("wait for a run"))?;
    if !status.success() || said != "first\n" {
        return Err(BenchError::Ended {
            name: "mote run".to_owned(),
            status,
            errors: format!("see above; its workload says {said:?}"),
        });
    }
    Ok(Start {
        seconds,
        bytes: bytes as f64,
    })
}

/// What has passed the loopback interface of this process's network namespace; what
/// `/sys` shows is that of whoever has mounted it.
fn passed_bytes() -> Result<u64, BenchError> {
    let text = fs::read_to_string("/proc/self/net/dev");
    let text = text.map_err(host("read an interface's counters"))?;
    let bytes = sent_bytes(&text, "lo");
    bytes.ok_or_else(|| BenchError::Prepare("there is no loopback interface".into()))
}

/// What an interface has sent, by `/proc/net/dev`: after what it has received come eight
/// more numbers.
fn sent_bytes(text: &str, interface: &str) -> Option<u64> {
    let mut lines = text.lines();
    let numbers = lines.find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))?;
    numbers.split_whitespace().nth(8)?.parse().ok()
}

fn hangs(name: &str, patience: Duration) -> BenchError {
    BenchError::Hangs {
        name: name.to_owned(),
        seconds: patience.as_secs(),
    }
}

fn comparison([load, tar]: [f64; 2], lazy: Start, whole: Start) -> Comparison {
    let mut comparison = Comparison::new("image-guests", 1, String::new(), &[]);
    comparison.monitors = super::beside();
    let mut add = |title: &str, unit: &str, row: &str, values: [f64; 2]| {
        let mut group = Group {
            title: title.to_owned(),
            unit: unit.to_owned(),
            better: Better::Less,
            rows: Vec::new(),
        };
        group.push(row, values.map(|value| vec![value]).into());
        comparison.groups.push(group);
    };
    let mib = |start: Start| start.bytes / f64::from(1 << 20);
    add(TIMES, "s", "load, beside tar x and sync", [load, tar]);
    let row = "started before it is here, beside pulled and started";
    add(STARTS, "s", row, [lazy.seconds, whole.seconds]);
    add(FETCHED, "MiB", row, [mib(lazy), mib(whole)]);
    comparison
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sent_bytes_are_those_of_the_interface() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes packets\n\
            lo0: 1 2 3 4 5 6 7 8 90 1\n    lo: 100 2 0 0 0 0 0 0 200 2 0 0 0 0 0 0\n";
        assert_eq!(sent_bytes(text, "lo"), Some(200));
        assert_eq!(sent_bytes(text, "eth0"), None);
    }
}
