//! Images that start before they have arrived, from Debian's docker-registry.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use e2e::Run;
use e2e::oci::{Layout, tar};
use serde_json::Value;
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
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What stands between a node and its registry.
struct Gate {
    host: String,
    way: Arc<AtomicU8>,
}

/// What a [`Gate`] lets through: 2 MB/s, nothing, everything.
const SLOWLY: u8 = 0;
const SHUT: u8 = 1;
const OPEN: u8 = 2;
const PIECE: usize = 16 << 10;
const PAUSE: Duration = Duration::from_millis(8);

impl Gate {
    fn to(registry: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let host = listener.local_addr().expect("an address").to_string();
        let way = Arc::new(AtomicU8::new(SLOWLY));
        let (to, shared) = (registry.to_owned(), Arc::clone(&way));
        let turn = Arc::new(Mutex::new(()));
        // Ends with the test's process.
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(&to) else {
                    return;
                };
                let [mut near_in, mut far_in] =
                    [&near, &far].map(|end| end.try_clone().expect("a descriptor"));
                std::thread::spawn(move || io::copy(&mut near_in, &mut far_in));
                let (way, turn) = (Arc::clone(&shared), Arc::clone(&turn));
                std::thread::spawn(move || pass(&far, &near, &way, &turn));
            }
        });
        Self { host, way }
    }

    fn be(&self, way: u8) {
        self.way.store(way, Ordering::SeqCst);
    }
}

/// Copies, as the gate is at present; all connections share its pace.
fn pass(mut from: &TcpStream, mut to: &TcpStream, way: &AtomicU8, turn: &Mutex<()>) {
    let mut bytes = [0; PIECE];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        while way.load(Ordering::SeqCst) == SHUT {
            std::thread::sleep(PAUSE);
        }
        if way.load(Ordering::SeqCst) == SLOWLY {
            let _turn = turn.lock().expect("nobody panics");
            std::thread::sleep(PAUSE);
        }
        if to.write_all(&bytes[..count]).is_err() {
            return;
        }
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

    fn root(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("mote");
        command
            .args(arguments)
            .env("MOTE_ROOT", self.root())
            .env("MOTE_CONFIG", self.directory.path())
            .stdin(Stdio::null());
        command
    }

    fn mote(&self, arguments: &[&str]) -> Run {
        let output = self.command(arguments).output();
        Run::of(output.expect("mote can be started"))
    }

    fn shell(&self, name: &str, script: &str) -> Run {
        self.mote(&["run", name, "/bin/sh", "-c", script])
    }
}

/// Makes the image and pushes it.
fn push(builder: &Node, name: &str) {
    let mut layout = Layout::from_test_image().without_layers().layer(&tar(TREE));
    let reference = layout.finish();
    let loaded = builder.mote(&["load", "--format", "json", &reference]);
    let loaded: Value = serde_json::from_str(&loaded.expect(0).text()).expect("JSON");
    let id = loaded["id"].as_str().expect("an id");
    builder.mote(&["tag", id, name]).expect(0);
    builder.mote(&["push", name]).expect(0);
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

#[test]
fn an_image_runs_before_it_has_arrived_and_is_whole_in_the_end() {
    let registry = Registry::start();
    let name = format!("{}/team/app:v1", registry.host);
    let builder = Node::new();
    push(&builder, &name);

    let node = Node::new();
    let run = node.shell(&name, "cat /opt/small").expect(0);
    assert_eq!(run.text(), "first");
    // Metadata, layer, skeleton: parts of them, or all where that went quickly; and what
    // every guest boots.
    assert!(count(&node.root().join("partial")) + count(&node.root().join("blobs")) == 3 + 2);
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
    push(&Node::new(), &name);
    // So slowly that the large file cannot have arrived before the small one is read.
    let gate = Gate::to(&registry.host);
    let name = format!("{}/team/app:v1", gate.host);
    let node = Node::new();
    let script = "cat /opt/small; read line; cat /opt/large >/dev/null";
    let mut run = node
        .command(&["run", "-i", &name, "/bin/sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mote can be started");
    let mut first = [0; 6];
    let stdout = run.stdout.as_mut().expect("a pipe");
    stdout.read_exact(&mut first).expect("the guest prints");
    assert_eq!(&first, b"first\n");
    gate.be(SHUT);
    let mut stdin = run.stdin.take().expect("a pipe");
    stdin.write_all(b"\n").expect("the guest reads");
    drop(stdin);
    let run = Run::of(run.wait_with_output().expect("mote ends")).expect(1);
    for words in ["Input/output error", "fetching from", "team/app"] {
        assert!(run.errors().contains(words), "{}", run.errors());
    }
    // It is not for ever.
    gate.be(OPEN);
    node.shell(&name, "cat /opt/large >/dev/null").expect(0);
}

/// The blob of the image's only layer.
fn layer_blob(node: &Node, name: &str) -> PathBuf {
    let template = "{{(index .Store.Layers 0).Blob.Hash}}";
    let run = node.mote(&["image", "inspect", "-f", template, name]);
    let hash = run.expect(0).text();
    let hex = hash.strip_prefix("blake3:").expect("a BLAKE3 hash");
    node.root().join("blobs").join(hex)
}

#[test]
fn what_rots_in_the_store_fails_with_the_reason_and_is_mended_from_the_registry() {
    let registry = Registry::start();
    let name = format!("{}/team/app:v1", registry.host);
    push(&Node::new(), &name);
    let node = Node::new();
    node.mote(&["pull", &name]).expect(0);
    let script = "cat /opt/large >/dev/null && cat /opt/small";
    assert_eq!(node.shell(&name, script).expect(0).text(), "first");

    let blob = layer_blob(&node, &name);
    let data = File::options()
        .write(true)
        .read(true)
        .open(blob.join("data"));
    let data = data.expect("the blob is there");
    let mut byte = [0];
    data.read_exact_at(&mut byte, 20_000_000).expect("a byte");
    data.write_all_at(&[byte[0] ^ 4], 20_000_000)
        .expect("a byte is written");
    let ended = node.shell(&name, script).expect(1);
    for words in [
        "Input/output error",
        "instead of wrong data",
        "blob blake3:",
    ] {
        assert!(ended.errors().contains(words), "{}", ended.errors());
    }
    let verified = node.mote(&["store", "verify"]).expect(0);
    let told = format!("Fetched again: {name}");
    assert!(verified.text().contains(&told), "{}", verified.text());
    assert_eq!(node.shell(&name, script).expect(0).text(), "first");
}

#[test]
fn the_commands_about_images_work_while_a_microvm_runs_on_one_and_take_nothing_from_it() {
    let registry = Registry::start();
    let name = format!("{}/team/app:v1", registry.host);
    push(&Node::new(), &name);
    let node = Node::new();
    node.mote(&["pull", &name]).expect(0);
    // It reads what has not been read before when all is done.
    let script = "echo ready; read line; cat /opt/large >/dev/null && cat /opt/small";
    let mut run = node
        .command(&["run", "-i", &name, "/bin/sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mote can be started");
    let mut ready = [0; 6];
    let stdout = run.stdout.as_mut().expect("a pipe");
    stdout.read_exact(&mut ready).expect("it is ready");
    let other = format!("{}/team/app:v2", registry.host);
    let archive = node.directory.path().join("saved.tar");
    let archive = archive.to_str().expect("a name");
    for (arguments, code) in [
        (&["images"][..], 0),
        (&["image", "inspect", &name], 0),
        (&["image", "history", &name], 0),
        (&["system", "df", "-v"], 0),
        (&["tag", &name, &other], 0),
        (&["push", &other], 0),
        (&["save", "-o", archive, &other], 0),
        (&["rmi", &other], 0),
        (&["rmi", &name], 125),
        (&["rmi", "-f", &name], 125),
        (&["load", "-i", archive], 0),
        (&["pull", &name], 0),
        (&["image", "prune", "-a", "-f"], 0),
        (&["store", "verify"], 0),
    ] {
        node.mote(arguments).expect(code);
    }
    drop(run.stdin.take());
    let ended = Run::of(run.wait_with_output().expect("it ends")).expect(0);
    assert_eq!(ended.text(), "first", "{}", ended.errors());
}
