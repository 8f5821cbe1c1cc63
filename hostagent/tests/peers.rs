//! Nodes that give each other images: processes with stores of their own, each in a
//! network namespace.

#[path = "peers/network.rs"]
mod network;
mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use network::{Namespaces, Place};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Layout, Mote, Run, Stored, layer, noise};
use tempfile::TempDir;

type Test = (&'static str, fn() -> Result<(), Failed>);

const TESTS: &[Test] = &[
    ("an_image_is_fetched_and_saved_as_the_same_bytes", fetched),
    ("a_key_that_is_not_listed_gets_nothing", stranger),
    (
        "without_peers_toml_nothing_listens_and_nobody_is_asked",
        off,
    ),
    (
        "a_wrong_bit_at_one_node_harms_nobody_and_is_told",
        wrong_bit,
    ),
    (
        "after_kill_9_of_the_giver_the_fetch_goes_on_or_ends",
        killed,
    ),
    ("a_fetch_that_is_interrupted_leaves_nothing", interrupted),
    ("what_is_sent_and_received_keeps_to_the_limits", limits),
    ("mistakes_in_peers_toml_are_named_by_line", mistakes),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = network::missing();
    if let Some(reason) = &missing {
        println!("ignored: {reason}");
    }
    let trials = TESTS
        .iter()
        .map(|(name, test)| Trial::test(*name, test).with_ignored_flag(missing.is_some()));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// A node: a store, a configuration, and a place in the network.
struct Node {
    mote: Mote,
    config: TempDir,
    place: Place,
}

/// `mote node serve`, killed when dropped.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Node {
    fn at(place: Place) -> Self {
        Self {
            mote: Mote::new(),
            config: TempDir::new().unwrap(),
            place,
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let inner = self.mote.command(arguments);
        let mut command = self.place.enter(&inner);
        command.env("MOTE_CONFIG", self.config.path());
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Run {
        Run::of(self.command(arguments).output().unwrap())
    }

    fn key(&self) -> String {
        let run = self.run(&["node", "key", "--format", "json"]).expect(0);
        run.json()[0]["key"].as_str().unwrap().to_owned()
    }

    /// The entry that others have of it.
    fn entry(&self) -> String {
        let (key, address) = (self.key(), self.place.address);
        format!("[[peer]]\nkey = \"{key}\"\naddress = \"{address}:7431\"\n")
    }

    fn configure(&self, text: &str) {
        std::fs::write(self.config.path().join("peers.toml"), text).unwrap();
    }

    /// Gives its blobs to these nodes.
    fn serve(&self, settings: &str, listed: &[&Node]) -> Serving {
        let entries: Vec<String> = listed.iter().map(|node| node.entry()).collect();
        let listen = format!("listen = \"{}:7431\"\n{settings}\n", self.place.address);
        self.configure(&(listen + &entries.concat()));
        let mut command = self.command(&["node", "serve", "--format", "json"]);
        let errors = std::fs::File::create(self.errors()).unwrap();
        command.stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let output = child.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        let serving = Serving(child);
        let told: Value = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{error}: {line:?}, {}", self.told()));
        assert_eq!(told["address"], format!("{}:7431", self.place.address));
        assert_eq!(told["key"], self.key());
        serving
    }

    fn errors(&self) -> std::path::PathBuf {
        self.config.path().join("errors")
    }

    /// What its server has written to standard error.
    fn told(&self) -> String {
        std::fs::read_to_string(self.errors()).unwrap_or_default()
    }

    fn saved(&self, id: &str) -> Vec<u8> {
        let file = self.config.path().join("saved.tar");
        let path = file.to_str().unwrap();
        self.run(&["save", "-o", path, id]).expect(0);
        std::fs::read(file).unwrap()
    }
}

fn layers() -> Vec<Vec<u8>> {
    let sizes = [6_000_000, 3_000_000, 10];
    let layer =
        |(seed, size): (u32, usize)| layer(&[("data", &noise(seed + 170, size)), ("name", b"x")]);
    (0..).zip(sizes).map(layer).collect()
}

/// Loads an image; its id.
fn load(node: &Node, layers: &[Vec<u8>]) -> String {
    let layout = Layout::with_image(layers, Stored::Gzip, "demo:v1");
    let loaded = node.mote.load(&layout.reference("demo:v1"));
    loaded["id"].as_str().unwrap().to_owned()
}

/// Two nodes, the second of which asks the first, and an image at the first.
fn pair() -> (Namespaces, Node, Node, String) {
    let (namespaces, [a, b, _]) = Namespaces::new();
    let (a, b) = (Node::at(a), Node::at(b));
    let id = load(&a, &layers());
    b.configure(&a.entry());
    (namespaces, a, b, id)
}

fn fetched() -> Result<(), Failed> {
    let (_namespaces, a, b, id) = pair();
    let _serving = a.serve("", &[&b]);
    let run = b.run(&["node", "fetch", &id]).expect(0);
    let expected = format!(
        "{id}: Pulling from peers\nDigest: {id}\nStatus: Downloaded newer image for {id}\n{id}\n"
    );
    assert_eq!(run.stdout, expected);
    b.mote.assert_consistent();
    assert!(a.saved(&id) == b.saved(&id));
    let again = b.run(&["node", "fetch", "--format", "json", &id]).expect(0);
    let again = again.json().remove(0);
    assert_eq!(
        (&again["layers_pulled"], &again["layers_reused"]),
        (&0.into(), &3.into())
    );

    // A name is the peer's to say only where that was allowed.
    let manifest = a.run(&["image", "inspect", "--format", "json", "demo:v1"]);
    assert_eq!(manifest.expect(0).json()[0]["Id"], id);
    b.run(&["node", "fetch", "demo:v1"])
        .expect_failure(&["demo:v1", "may be asked for it"]);
    b.configure(&(a.entry() + "names = true\n"));
    let run = b.run(&["node", "fetch", "-q", "demo:v1"]).expect(0);
    assert_eq!(run.stdout, "docker.io/library/demo:v1\n");
    assert_eq!(b.mote.images(), ["demo:v1"]);
    b.run(&["node", "fetch", "none:v1"])
        .expect_failure(&["does not have it"]);
    Ok(())
}

fn stranger() -> Result<(), Failed> {
    let (_namespaces, a, b, id) = pair();
    let other = Node::at(b.place.clone());
    let _serving = a.serve("", &[&other]);
    let run = b.run(&["node", "fetch", &id]);
    run.expect_failure(&["it refused this node", "mote node key"]);
    assert_eq!(b.mote.layer_count(), 0);
    b.mote.assert_consistent();
    wait_until("it is not told", || {
        a.told().contains("its key is not listed")
    });
    // Nor is another than the one that is meant asked.
    let wrong = a.entry().replace(&a.key(), &other.key());
    b.configure(&wrong);
    b.run(&["node", "fetch", &id])
        .expect_failure(&["cannot be reached"]);
    Ok(())
}

fn off() -> Result<(), Failed> {
    let (_namespaces, [a, ..]) = Namespaces::new();
    let a = Node::at(a);
    let id = load(&a, &layers()[2..]);
    let none = &["no peers.toml", a.config.path().to_str().unwrap()];
    a.run(&["node", "serve"]).expect_failure(none);
    a.run(&["node", "fetch", &id]).expect_failure(none);
    assert!(!a.mote.root.path().join("node.key").exists());
    // A node that only takes does not listen.
    a.configure("");
    a.run(&["node", "serve"]).expect_failure(&["no `listen`"]);
    assert_eq!(a.place.sockets(), 0);
    // One that listens does so where it was told to and nowhere else.
    let mut serving = a.serve("", &[]);
    assert_eq!(a.place.sockets(), 1);
    kill_process(Pid::from_child(&serving.0), Signal::TERM)?;
    assert_eq!(serving.0.wait()?.code(), Some(0), "{}", a.told());
    assert_eq!(a.place.sockets(), 0);
    a.mote.assert_consistent();
    Ok(())
}

/// Flips a bit of the first layer's blob.
fn flip(node: &Node, layer: &[u8]) {
    let diff_id = hostagent::image::digest::Digest::of(layer);
    let path = node.mote.layer_blob(diff_id).join("data");
    let mut data = std::fs::read(&path).unwrap();
    let middle = data.len() / 2;
    data[middle] ^= 0x10;
    std::fs::write(path, data).unwrap();
}

fn wrong_bit() -> Result<(), Failed> {
    let (_namespaces, [a, b, c]) = Namespaces::new();
    let (a, b, c) = (Node::at(a), Node::at(b), Node::at(c));
    let layers = layers();
    let id = load(&a, &layers);
    assert_eq!(load(&c, &layers), id);
    flip(&a, &layers[0]);
    let _a = a.serve("", &[&b]);
    b.configure(&a.entry());
    let run = b.run(&["node", "fetch", &id]);
    run.expect_failure(&["its own copy is corrupt", "mote store verify"]);
    wait_until("it is not told", || {
        a.told().contains("is corrupt between bytes")
    });
    assert_eq!(b.mote.images(), [""; 0]);
    b.mote.assert_consistent();

    let _c = c.serve("", &[&b]);
    b.configure(&(a.entry() + &c.entry()));
    let run = b.run(&["node", "fetch", &id]).expect(0);
    assert!(run.stderr.contains("its own copy is corrupt"), "{run:?}");
    b.mote.assert_consistent();
    assert!(b.saved(&id) == c.saved(&id));
    Ok(())
}

/// Waits for something that another process does.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The bytes of what is half-made in a store.
fn half_made(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => half_made(&entry.path()),
        _ => entry.metadata().map_or(0, |metadata| metadata.len()),
    });
    sizes.sum()
}

fn killed() -> Result<(), Failed> {
    let (_namespaces, [a, b, c]) = Namespaces::new();
    let (a, b, c) = (Node::at(a), Node::at(b), Node::at(c));
    let layers = layers();
    let id = load(&a, &layers);
    load(&c, &layers);
    let slowly = "send_bytes_per_second = 2000000";
    let begin = |peers: &str, serving: Serving| {
        b.configure(peers);
        let mut command = b.command(&["node", "fetch", &id]);
        let fetch = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let fetch = fetch.spawn().unwrap();
        let staging = b.mote.root.path().join("staging");
        wait_until("nothing arrives", || half_made(&staging) > 1_000_000);
        // As dropping it does: SIGKILL.
        drop(serving);
        Run::of(fetch.wait_with_output().unwrap())
    };
    let run = begin(&a.entry(), a.serve(slowly, &[&b]));
    run.expect_failure(&["cannot fetch"]);
    assert_eq!(b.mote.images(), [""; 0]);
    b.mote.assert_consistent();

    let _c = c.serve("", &[&b]);
    let run = begin(&(a.entry() + &c.entry()), a.serve(slowly, &[&b])).expect(0);
    let place = a.place.address.to_string();
    assert!(run.stderr.contains(&place), "{run:?}");
    b.mote.assert_consistent();
    assert!(b.saved(&id) == c.saved(&id));
    Ok(())
}

fn interrupted() -> Result<(), Failed> {
    for signal in [Signal::INT, Signal::KILL] {
        let (_namespaces, a, b, id) = pair();
        let _serving = a.serve("send_bytes_per_second = 1000000", &[&b]);
        let mut command = b.command(&["node", "fetch", &id]);
        let fetch = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let fetch = fetch.spawn().unwrap();
        let staging = b.mote.root.path().join("staging");
        wait_until("nothing arrives", || half_made(&staging) > 1_000_000);
        let sent = kill_process(Pid::from_child(&fetch), signal);
        let run = Run::of(fetch.wait_with_output().unwrap());
        sent?;
        if signal == Signal::INT {
            run.expect(130);
        }
        assert_eq!(b.mote.images(), [""; 0]);
        b.mote.assert_consistent();
    }
    Ok(())
}

/// How long a fetch takes under these limits.
fn duration(sending: &str, receiving: &str) -> Duration {
    let (_namespaces, a, b, id) = pair();
    let _serving = a.serve(sending, &[&b]);
    b.configure(&format!("{receiving}\n{}", a.entry()));
    let started = Instant::now();
    b.run(&["node", "fetch", &id]).expect(0);
    started.elapsed()
}

fn limits() -> Result<(), Failed> {
    // Nine million bytes are six seconds at this rate. That is a bound from below, which no
    // slow machine misses; all that is in flight at once is far less than a second's worth.
    for (sending, receiving) in [
        ("send_bytes_per_second = 1500000", ""),
        ("", "receive_bytes_per_second = 1500000"),
    ] {
        let limited = duration(sending, receiving);
        assert!(limited >= Duration::from_secs(5), "{limited:?}");
    }
    Ok(())
}

fn mistakes() -> Result<(), Failed> {
    let (_namespaces, [a, ..]) = Namespaces::new();
    let a = Node::at(a);
    let file = a.config.path().join("peers.toml");
    for (text, line) in [("relay = true\n", 1), ("\nlisten = \"nowhere\"\n", 2)] {
        a.configure(text);
        let expected = format!("{}:{line}: ", file.display());
        a.run(&["node", "serve"]).expect_failure(&[&expected]);
        a.run(&["node", "fetch", "demo"])
            .expect_failure(&[&expected]);
    }
    a.configure("listen = \"192.0.2.1:7431\"\n");
    a.run(&["node", "serve"])
        .expect_failure(&["cannot listen on 192.0.2.1:7431"]);
    // What others may read is no secret.
    a.configure(&format!("listen = \"{}:7431\"\n", a.place.address));
    let key = a.mote.root.path().join("node.key");
    std::fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    a.run(&["node", "serve"])
        .expect_failure(&["node.key is no secret"]);
    Ok(())
}
