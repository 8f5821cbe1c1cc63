//! How much memory a pull takes, whatever the size of a layer.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hostagent::image::digest::Digest;
use serde_json::json;

use super::layout;
use super::random::RandomLayer;
use crate::comparison::{Better, Group};
use crate::error::{BenchError, host};
use crate::interruption;

/// The title of the group.
pub const TITLE: &str = "most memory that a pull takes, beside the layer";
/// Four files of 1 GiB.
const LAYER: RandomLayer = RandomLayer {
    files: 4,
    file_bytes: 1 << 30,
};
/// How often the pull is looked at. What is read only grows.
const INTERVAL: Duration = Duration::from_millis(20);

/// A registry with one image, whose one layer is made as it is asked for. It ends with this
/// program.
#[derive(Debug)]
pub struct Registry {
    host: String,
}

/// What the registry has.
struct Content {
    manifest: String,
    config: String,
    config_digest: Digest,
    layer_digest: Digest,
}

impl Registry {
    /// Begins to serve.
    pub fn start() -> Result<Self, BenchError> {
        let layer_digest = LAYER.digest()?;
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/random-0000"]},
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        })
        .to_string();
        let config_digest = Digest::of(config.as_bytes());
        let layer = json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer_digest,
            "size": LAYER.bytes(),
        });
        let content = Arc::new(Content {
            manifest: layout::manifest(config_digest, config.len(), &[layer]),
            config,
            config_digest,
            layer_digest,
        });
        let failed = || host("listen for a pull");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed())?;
        let address = listener.local_addr().map_err(failed())?;
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let content = Arc::clone(&content);
                // A client that goes away is no concern of the registry's.
                std::thread::spawn(move || content.serve(&connection));
            }
        });
        Ok(Self {
            host: address.to_string(),
        })
    }

    /// Pulls the image into an empty store below `directory`; returns the most memory that
    /// took, in bytes.
    pub fn pull(&self, mote: &Path, directory: &Path) -> Result<f64, BenchError> {
        let store = tempfile::tempdir_in(directory).map_err(host("make a store"))?;
        let mut command = Command::new(mote);
        command
            .args(["pull", &format!("{}/bench/random:v1", self.host)])
            .env("MOTE_ROOT", store.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = command.spawn().map_err(|source| BenchError::Start {
            path: mote.to_owned(),
            source,
        })?;
        let mut child = Ended(child);
        let mut peak = 0;
        let status = loop {
            // Gone where the process is a zombie.
            peak = peak.max(high_water_bytes(child.0.id()).unwrap_or(0));
            if let Some(status) = child.0.try_wait().map_err(host("wait for a pull"))? {
                break status;
            }
            interruption::sleep(INTERVAL)?;
        };
        if !status.success() {
            return Err(BenchError::Ended {
                name: "mote pull".to_owned(),
                status,
                errors: "see above".to_owned(),
            });
        }
        Ok(peak as f64)
    }
}

/// A process that does not outlive its value.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// The most memory that was resident of a process at once. What `wait4(2)` tells of a child
/// has that of its parent in it, of which it was a copy.
fn high_water_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

impl Content {
    fn serve(&self, connection: &TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(connection);
        loop {
            let mut request = String::new();
            if reader.read_line(&mut request)? == 0 {
                return Ok(());
            }
            let mut from = None;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line)?;
                if line.trim().is_empty() {
                    break;
                }
                from = from.or_else(|| range_start(&line));
            }
            self.answer(&request, from, connection)?;
        }
    }

    fn answer(&self, request: &str, from: Option<u64>, mut to: &TcpStream) -> io::Result<()> {
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let name = path.rsplit('/').next().unwrap_or("");
        let (kind, mut body, length): (_, Box<dyn Read>, u64) = match name {
            _ if path == "/v2/" => ("application/json", Box::new(&b"{}"[..]), 2),
            _ if path.contains("/manifests/") => (
                layout::MANIFEST_TYPE,
                Box::new(self.manifest.as_bytes()),
                self.manifest.len() as u64,
            ),
            name if name == self.config_digest.to_string() => (
                "application/octet-stream",
                Box::new(self.config.as_bytes()),
                self.config.len() as u64,
            ),
            name if name == self.layer_digest.to_string() => {
                let from = from.unwrap_or(0).min(LAYER.bytes());
                let body = BufReader::with_capacity(256 << 10, LAYER.reader(from));
                let length = LAYER.bytes() - from;
                ("application/octet-stream", Box::new(body), length)
            }
            _ => {
                return to.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
            }
        };
        let is_layer = name == self.layer_digest.to_string();
        let (status, range) = match from {
            Some(from) if is_layer => (
                "206 Partial Content",
                format!(
                    "content-range: bytes {from}-{}/{}\r\n",
                    LAYER.bytes() - 1,
                    LAYER.bytes()
                ),
            ),
            _ => ("200 OK", String::new()),
        };
        write!(
            to,
            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n{range}\r\n"
        )?;
        if method != "HEAD" {
            io::copy(&mut body, &mut to)?;
        }
        Ok(())
    }
}

/// Where a request's range begins; a pull asks for no end.
fn range_start(line: &str) -> Option<u64> {
    let (name, value) = line.split_once(':')?;
    let range = value.trim().strip_prefix("bytes=")?.strip_suffix('-')?;
    range
        .parse()
        .ok()
        .filter(|_| name.eq_ignore_ascii_case("range"))
}

/// The memory of all turns, beside the size of the layer.
pub fn memory(turns: &[f64]) -> Group {
    let mut group = Group {
        title: TITLE.to_owned(),
        unit: "MiB".to_owned(),
        better: Better::Less,
        rows: Vec::new(),
    };
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let layer = turns.iter().map(|_| mib(LAYER.bytes() as f64));
    group.push(
        "a layer of 4 GiB",
        vec![
            turns.iter().map(|bytes| mib(*bytes)).collect(),
            layer.collect(),
        ],
    );
    group
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_from_their_start() {
        assert_eq!(range_start("Range: bytes=4096-\r\n"), Some(4096));
        assert_eq!(range_start("range: bytes=1-2"), None);
        assert_eq!(range_start("if-range: bytes=1-"), None);
    }

    #[test]
    fn this_process_has_taken_memory() {
        assert!(high_water_bytes(std::process::id()).is_some_and(|bytes| bytes > 1 << 20));
    }
}
