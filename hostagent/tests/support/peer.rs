//! A node that gives an image to another.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Layout, Mote, Stored};

/// Two nodes. The giver is killed when they are dropped.
pub struct Pair {
    serving: Child,
    /// Has nothing yet, and may ask the giver.
    pub taker: Mote,
    /// The image that the giver has.
    pub id: String,
    _giver: Mote,
    _configs: [TempDir; 2],
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = self.serving.kill();
        let _ = self.serving.wait();
    }
}

/// A node with an image of these layers gives it to another.
pub fn with_image(layers: &[Vec<u8>]) -> Pair {
    let configs = [(); 2].map(|()| TempDir::new().unwrap());
    let [giver, taker] = configs.each_ref().map(|config| {
        let mut mote = Mote::new();
        mote.config = Some(config.path().to_owned());
        mote
    });
    let layout = Layout::with_image(layers, Stored::Gzip, "app:v1");
    let loaded = giver.load(&layout.reference("app:v1"));
    let key = taker.run(&["node", "key", "--format", "json"]).expect(0);
    // The taker is never asked.
    let listed = peer(&key.json()[0]["key"], &"127.0.0.1:9".into());
    configure(&giver, &format!("listen = \"127.0.0.1:0\"\n{listed}"));
    let mut serve = giver.command(&["node", "serve", "--format", "json"]);
    let mut serving = serve.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let output = serving.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    let told: Value = serde_json::from_str(&line).unwrap();
    configure(&taker, &peer(&told["key"], &told["address"]));
    Pair {
        serving,
        taker,
        id: loaded["id"].as_str().unwrap().to_owned(),
        _giver: giver,
        _configs: configs,
    }
}

fn peer(key: &Value, address: &Value) -> String {
    format!("[[peer]]\nkey = {key}\naddress = {address}\n")
}

fn configure(mote: &Mote, text: &str) {
    let config = mote.config.as_ref().unwrap();
    std::fs::write(config.join("peers.toml"), text).unwrap();
}
