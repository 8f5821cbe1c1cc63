//! Disks that are full when a peer gives.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use libtest_mimic::Failed;
use serde_json::Value;

use crate::layers;
use crate::support::{Layout, Mote, Stored};
use crate::walk::Walk;

/// A peer, killed when dropped.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Peer {
    /// Gives what this store has to the node of this key; what it prints then.
    fn serve(mote: &Mote, config: &Path, key: &str) -> (Self, Value) {
        // Nobody is ever asked at that address.
        let peer = format!("[[peer]]\nkey = \"{key}\"\naddress = \"127.0.0.1:9\"\n");
        let settings = format!("listen = \"127.0.0.1:0\"\n{peer}");
        std::fs::write(config.join("peers.toml"), settings).unwrap();
        let mut command = mote.command(&["node", "serve", "--format", "json"]);
        command.env("MOTE_CONFIG", config).stdout(Stdio::piped());
        let mut peer = Self(command.spawn().unwrap());
        let mut line = String::new();
        let output = peer.0.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        (peer, serde_json::from_str(&line).unwrap())
    }
}

pub fn fetch() -> Result<(), Failed> {
    let layout = Layout::with_image(&layers(1), Stored::Gzip, "app:v1");
    let (giver, before) = (Mote::new(), Mote::new());
    let id = giver.load(&layout.reference("app:v1"))["id"].clone();
    let key = before.run(&["node", "key", "--format", "json"]).expect(0);
    let key = key.json()[0]["key"].as_str().unwrap().to_owned();
    let directories = [tempfile::tempdir()?, tempfile::tempdir()?];
    let [givers, config] = directories.each_ref().map(tempfile::TempDir::path);
    let (_peer, told) = Peer::serve(&giver, givers, &key);
    let settings = format!(
        "[[peer]]\nkey = {}\naddress = {}\n",
        told["key"], told["address"]
    );
    std::fs::write(config.join("peers.toml"), settings)?;
    let walk = Walk {
        before: &before,
        arguments: &["node", "fetch", id.as_str().unwrap()],
        config: Some(config),
        damaged: false,
        code: 125,
        pages: 1,
        least: 2,
    };
    walk.go()
}
