//! Images that start before they have arrived, from Debian's docker-registry.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use e2e::Run;
use e2e::oci::{Layout, tar};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A shell, a few programs, a file to start with and a large one.
const TREE: &str = "mkdir -p bin opt
cp /bin/dash bin/sh; cp /bin/cat /bin/true bin
for program in /bin/dash /bin/cat /bin/true; do ldd $program; done |
    grep -o '/[^ )]*' | sort -u | while read -r file; do
    mkdir -p .$(dirname $file); cp -L $file .$file
done
echo first >opt/small
head -c 48000000 /dev/urandom >opt/large";

/// A registry, which ends with its value.
struct Registry {
    child: Child,
    host: String,
    _directory: TempDir,
}

impl Registry {
    fn start() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let address = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let host = address.expect("a free port").to_string();
        let config = format!(
            "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\n\
             storage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n  secret: x\n",
            directory.path().join("storage").display()
        );
        let file = directory.path().join("config.yml");
        fs::write(&file, config).expect("a configuration");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        // A bound against hanging, not a measurement.
        for _ in 0..600 {
            if TcpStream::connect(&host).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Self {
            child,
            host,
            _directory: directory,
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the registry is there");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A store of its own, and little patience with registries.
struct Node {
    directory: TempDir,
}

impl Node {
    fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let settings = "[download]\nattempts = 1\nstall_seconds = 2\n";
        fs::write(directory.path().join("registries.toml"), settings).expect("settings");
        Self { directory }
    }

    fn root(&self) -> std::path::PathBuf {
        self.directory.path().join("store")
    }

    fn mote(&self, arguments: &[&str]) -> Run {
        let mut command = Command::new("mote");
        command
            .args(arguments)
            .env("MOTE_ROOT", self.root())
            .env("MOTE_CONFIG", self.directory.path())
            .stdin(Stdio::null());
        Run::of(command.output().expect("mote can be started"))
    }

    fn shell(&self, name: &str, script: &str) -> Run {
        self.mote(&["run", name, "/bin/sh", "-c", script])
    }
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

#[test]
fn an_image_runs_before_it_has_arrived_and_is_whole_in_the_end() {
    let registry = Registry::start();
    let name = format!("{}/team/app:v1", registry.host);
    let mut layout = Layout::from_test_image().without_layers().layer(&tar(TREE));
    let reference = layout.finish();
    let builder = Node::new();
    let layout_name = builder
        .mote(&["load", "--format", "json", &reference])
        .expect(0)
        .text();
    let loaded: serde_json::Value = serde_json::from_str(&layout_name).expect("JSON");
    let id = loaded["id"].as_str().expect("an id").to_owned();
    builder.mote(&["tag", &id, &name]).expect(0);
    builder.mote(&["push", &name]).expect(0);

    let node = Node::new();
    let run = node.shell(&name, "cat /opt/small").expect(0);
    assert_eq!(run.text(), "first");
    // Metadata, layer, skeleton: parts of them, or all where that went quickly.
    assert!(count(&node.root().join("partial")) + count(&node.root().join("blobs")) == 3);
    // What a guest reads is what was pushed, wherever it comes from.
    let sum = |node: &Node| {
        let run = node
            .mote(&["run", &name, "/bin/cat", "/opt/large"])
            .expect(0);
        assert_eq!(run.stdout.len(), 48_000_000);
        use sha2::Digest;
        format!("{:x}", sha2::Sha256::digest(&run.stdout))
    };
    assert_eq!(sum(&node), sum(&builder));
    node.mote(&["store", "verify"]).expect(0);
}

#[test]
fn a_registry_that_stalls_makes_reads_fail_with_a_reason() {
    let registry = Registry::start();
    let name = format!("{}/team/app:v1", registry.host);
    let mut layout = Layout::from_test_image().without_layers().layer(&tar(TREE));
    let reference = layout.finish();
    let builder = Node::new();
    let loaded = builder
        .mote(&["load", "--format", "json", &reference])
        .expect(0)
        .text();
    let loaded: serde_json::Value = serde_json::from_str(&loaded).expect("JSON");
    let id = loaded["id"].as_str().expect("an id");
    builder.mote(&["tag", id, &name]).expect(0);
    builder.mote(&["push", &name]).expect(0);

    let node = Node::new();
    // Recorded, with what it takes to say `ready`, and then the registry hangs.
    node.shell(&name, "cat /opt/small").expect(0);
    registry.signal(Signal::STOP);
    let run = node.shell(&name, "cat /opt/small; cat /opt/large >/dev/null");
    registry.signal(Signal::CONT);
    if count(&node.root().join("partial")) == 0 {
        // It had all arrived.
        run.expect(0);
        return;
    }
    let run = run.expect(1);
    assert_eq!(run.text(), "first");
    for words in ["Input/output error", "fetching from", "team/app"] {
        assert!(run.errors().contains(words), "{}", run.errors());
    }
    // It is not for ever.
    node.shell(&name, "cat /opt/large >/dev/null").expect(0);
}
