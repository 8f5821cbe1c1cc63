//! How much memory a pull takes, whatever the size of a layer.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hostagent::image::digest::Digest;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::guests::Ended;
use super::layout;
use super::random::RandomLayer;
use crate::comparison::{Better, Group};
use crate::error::{BenchError, host};
use crate::interruption;

/// The title of the group.
pub const TITLE: &str = "most memory that a pull takes, beside the layer";
/// The images, of one layer each.
const IMAGES: [Image; 2] = [
    Image {
        row: "a layer of 4 GiB, 4 files",
        layer: RandomLayer {
            files: 4,
            file_bytes: 1 << 30,
        },
        packed: false,
    },
    Image {
        row: "a layer of 4 GiB, 65536 files, zstd",
        layer: RandomLayer {
            files: 65_536,
            file_bytes: 64 << 10,
        },
        packed: true,
    },
];
/// How hard the registry tries to make a layer small, which it cannot.
const LEVEL: i32 = 1;

/// An image of the registry.
#[derive(Debug, Clone, Copy)]
struct Image {
    row: &'static str,
    layer: RandomLayer,
    /// Whether its layer is compressed.
    packed: bool,
}
/// How often the pull is looked at. What is read only grows.
const INTERVAL: Duration = Duration::from_millis(20);

/// A registry with the images, whose layers are made as they are asked for. It ends with
/// this program.
#[derive(Debug)]
pub struct Registry {
    host: String,
}

/// What the registry has of an image.
struct Content {
    image: Image,
    manifest: String,
    config: String,
    config_digest: Digest,
    layer_digest: Digest,
    layer_bytes: u64,
}

impl Content {
    fn new(image: Image) -> Result<Self, BenchError> {
        let diff_id = image.layer.digest()?;
        let (layer_digest, layer_bytes) = match image.packed {
            false => (diff_id, image.layer.bytes()),
            true => digest_of(&mut image.stored(0).map_err(host("compress a layer"))?)?,
        };
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/random-000000"]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        })
        .to_string();
        let config_digest = Digest::of(config.as_bytes());
        let layer = json!({
            "mediaType": match image.packed {
                false => "application/vnd.oci.image.layer.v1.tar",
                true => "application/vnd.oci.image.layer.v1.tar+zstd",
            },
            "digest": layer_digest,
            "size": layer_bytes,
        });
        Ok(Self {
            image,
            manifest: layout::manifest(config_digest, config.len(), &[layer]),
            config,
            config_digest,
            layer_digest,
            layer_bytes,
        })
    }
}

impl Image {
    /// The layer as it is stored, from `offset` on.
    fn stored(self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let buffered = |offset| BufReader::with_capacity(256 << 10, self.layer.reader(offset));
        if !self.packed {
            return Ok(Box::new(buffered(offset)));
        }
        let mut packed = zstd::stream::read::Encoder::with_buffer(buffered(0), LEVEL)?;
        io::copy(&mut packed.by_ref().take(offset), &mut io::sink())?;
        Ok(Box::new(packed))
    }
}

impl Registry {
    /// Begins to serve.
    pub fn start() -> Result<Self, BenchError> {
        let contents = IMAGES.into_iter().map(Content::new);
        let contents: Arc<Vec<Content>> = Arc::new(contents.collect::<Result<_, _>>()?);
        let failed = || host("listen for a pull");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed())?;
        let address = listener.local_addr().map_err(failed())?;
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let contents = Arc::clone(&contents);
                // A client that goes away is no concern of the registry's.
                std::thread::spawn(move || serve(&contents, &connection));
            }
        });
        Ok(Self {
            host: address.to_string(),
        })
    }

    /// Pulls each image into an empty store below `directory`; returns the most memory that
    /// took, in bytes.
    pub fn pull(&self, mote: &Path, directory: &Path) -> Result<Turn, BenchError> {
        let mut turn = Turn::default();
        for (index, bytes) in turn.iter_mut().enumerate() {
            *bytes = self.pull_one(index, mote, directory)?;
        }
        Ok(turn)
    }

    fn pull_one(&self, index: usize, mote: &Path, directory: &Path) -> Result<f64, BenchError> {
        let store = tempfile::tempdir_in(directory).map_err(host("make a store"))?;
        let mut command = Command::new(mote);
        command
            .args(["pull", &format!("{}/bench/{index}:v1", self.host)])
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

/// The most memory of each pull, in bytes.
pub type Turn = [f64; IMAGES.len()];

/// The digest and the length of what is read.
fn digest_of(reader: &mut dyn Read) -> Result<(Digest, u64), BenchError> {
    let mut hash = Sha256::new();
    let length = io::copy(reader, &mut hash).map_err(host("hash a layer"))?;
    Ok((Digest::from(<[u8; 32]>::from(hash.finalize())), length))
}

/// The most memory that was resident of a process at once. What `wait4(2)` tells of a child
/// has that of its parent in it, of which it was a copy.
fn high_water_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

fn serve(contents: &[Content], connection: &TcpStream) -> io::Result<()> {
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
        answer(contents, &request, from, connection)?;
    }
}

fn answer(
    contents: &[Content],
    request: &str,
    from: Option<u64>,
    mut to: &TcpStream,
) -> io::Result<()> {
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    // `/v2/bench/INDEX/KIND/NAME`
    let mut parts = path.strip_prefix("/v2/").unwrap_or("").split('/').skip(1);
    let index = parts.next().and_then(|index| index.parse::<usize>().ok());
    let content = index.and_then(|index| contents.get(index));
    let name = path.rsplit('/').next().unwrap_or("");
    let is = |digest: Digest| name == digest.to_string();
    let mut status = "200 OK";
    let mut range = String::new();
    let (kind, mut body, length): (_, Box<dyn Read + '_>, u64) = match content {
        None if path == "/v2/" => ("application/json", Box::new(&b"{}"[..]), 2),
        Some(content) if path.contains("/manifests/") => (
            layout::MANIFEST_TYPE,
            Box::new(content.manifest.as_bytes()),
            content.manifest.len() as u64,
        ),
        Some(content) if is(content.config_digest) => (
            "application/octet-stream",
            Box::new(content.config.as_bytes()),
            content.config.len() as u64,
        ),
        Some(content) if is(content.layer_digest) => {
            let all = content.layer_bytes;
            if let Some(from) = from {
                status = "206 Partial Content";
                range = format!("content-range: bytes {from}-{}/{all}\r\n", all - 1);
            }
            let from = from.unwrap_or(0).min(all);
            let body: Box<dyn Read> = match method {
                "HEAD" => Box::new(io::empty()),
                _ => content.image.stored(from)?,
            };
            ("application/octet-stream", body, all - from)
        }
        _ => return to.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
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

/// Where a request's range begins; a pull asks for no end.
fn range_start(line: &str) -> Option<u64> {
    let (name, value) = line.split_once(':')?;
    let range = value.trim().strip_prefix("bytes=")?.strip_suffix('-')?;
    range
        .parse()
        .ok()
        .filter(|_| name.eq_ignore_ascii_case("range"))
}

/// The memory of all turns, beside the sizes of the layers.
pub fn memory(turns: &[Turn]) -> Group {
    let mut group = Group {
        title: TITLE.to_owned(),
        unit: "MiB".to_owned(),
        better: Better::Less,
        rows: Vec::new(),
    };
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    for (index, image) in IMAGES.iter().enumerate() {
        let layer = turns.iter().map(|_| mib(image.layer.bytes() as f64));
        let taken = turns.iter().map(|turn| mib(turn[index]));
        group.push(image.row, vec![taken.collect(), layer.collect()]);
    }
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
