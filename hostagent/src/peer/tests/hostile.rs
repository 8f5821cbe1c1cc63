//! A peer that does as a test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::{Endpoint, SendStream, ServerConfig};

use super::super::config::Peer;
use super::super::message::{self, Request};
use super::super::{NodeKey, tls, transport};
use super::{Node, PATIENCE, listed};
use crate::runtime::Runtime;
use crate::store::Store;

/// What it does with one request.
pub enum Reply {
    /// Sends this and ends the stream.
    Bytes(Vec<u8>),
    /// Sends this, and nothing more.
    ThenSilence(Vec<u8>),
    /// Sends this, and then more of the same byte until nobody takes it any more.
    ThenEndless(Vec<u8>),
    /// Sends this, 80 KiB in a second.
    Slowly(Vec<u8>),
    /// Sends this and closes the connection.
    ThenGone(Vec<u8>),
    /// Sends this and resets the stream.
    ThenReset(Vec<u8>, u32),
}

type Script = Arc<dyn Fn(Request) -> Reply + Send + Sync>;

pub struct Hostile {
    key: NodeKey,
    address: SocketAddr,
    pub requests: Arc<Mutex<Vec<Request>>>,
    endpoint: Endpoint,
    _directory: tempfile::TempDir,
    _runtime: Runtime,
}

impl Hostile {
    pub fn new(victim: &Node, script: impl Fn(Request) -> Reply + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = NodeKey::of(&Store::open(directory.path()).unwrap()).unwrap();
        let runtime = Runtime::new("hostile").unwrap();
        let crypto = tls::server(&key, [victim.key.public()].into()).unwrap();
        let mut config = ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(Arc::new(transport::parameters(&PATIENCE)));
        let any = "127.0.0.1:0".parse().unwrap();
        let endpoint = runtime.within(|| transport::endpoint(any, Some(config)).unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        runtime.spawn(serve(
            endpoint.clone(),
            Arc::new(script),
            Arc::clone(&requests),
        ));
        Self {
            key,
            address: endpoint.local_addr().unwrap(),
            requests,
            endpoint,
            _directory: directory,
            _runtime: runtime,
        }
    }

    pub fn as_peer(&self) -> Peer {
        listed(&self.key, Some(self.address))
    }

    pub fn asked(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.endpoint.close(0_u32.into(), b"");
    }
}

async fn serve(endpoint: Endpoint, script: Script, requests: Arc<Mutex<Vec<Request>>>) {
    while let Some(incoming) = endpoint.accept().await {
        let (script, requests) = (Arc::clone(&script), Arc::clone(&requests));
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else {
                return;
            };
            while let Ok((send, mut receive)) = connection.accept_bi().await {
                let Ok(request) = message::receive::<Request>(&mut receive, 4096).await else {
                    return;
                };
                requests.lock().unwrap().push(request.clone());
                let (script, connection) = (Arc::clone(&script), connection.clone());
                tokio::spawn(async move {
                    if act(send, script(request)).await {
                        connection.close(9_u32.into(), b"gone");
                    }
                });
            }
        });
    }
}

/// Whether the connection is to be closed.
async fn act(mut send: SendStream, reply: Reply) -> bool {
    match reply {
        Reply::Bytes(bytes) => {
            let _ = send.write_all(&bytes).await;
            let _ = send.finish();
            let _ = send.stopped().await;
        }
        Reply::ThenSilence(bytes) => {
            let _ = send.write_all(&bytes).await;
            tokio::time::sleep(Duration::from_secs(600)).await;
        }
        Reply::ThenEndless(bytes) => {
            let mut sent = send.write_all(&bytes).await;
            while sent.is_ok() {
                sent = send.write_all(&[0x55; 65_536]).await;
            }
        }
        Reply::Slowly(bytes) => {
            for part in bytes.chunks(16 << 10) {
                let _ = send.write_all(part).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            let _ = send.finish();
            let _ = send.stopped().await;
        }
        Reply::ThenGone(bytes) => {
            let _ = send.write_all(&bytes).await;
            // What was written is to arrive.
            tokio::time::sleep(Duration::from_millis(300)).await;
            return true;
        }
        Reply::ThenReset(bytes, code) => {
            let _ = send.write_all(&bytes).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            let _ = send.reset(code.into());
        }
    }
    false
}
