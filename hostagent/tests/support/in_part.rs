//! Images that are here in part: started before they were here.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hostagent::image::remote;
use hostagent::lazy::start::{self, Started};
use hostagent::lazy::{Clients, FetchError};
use hostagent::store::Store;
use libtest_mimic::Failed;
use vmm::fetch;

use crate::common::{self, never};
use crate::http_server::Server;
use crate::registry;
use crate::support::{Layout, Mote, Stored};

/// A registry with an image of these layers, in converted form too, the image's name, and
/// the store it was pushed from.
pub fn pushed(layers: &[Vec<u8>]) -> (Server, String, Mote) {
    let server = registry::start(Default::default());
    let name = format!("{}/app:v1", server.host());
    let layout = Layout::with_image(layers, Stored::Gzip, &name);
    let mote = Mote::new();
    mote.load(&layout.reference(&name));
    mote.run(&["push", &name]).expect(0);
    (server, name, mote)
}

/// Records such an image in the store at `root`, and fetches a little of it.
pub fn begin(root: &Path, name: &str) -> Result<(), Failed> {
    let started = start_at(root, name, Box::new(|error| panic!("{error}")))?;
    assert!(read(&started)?.present);
    Ok(())
}

/// Records such an image in the store at `root`, and starts to fetch it. `tell` hears what
/// cannot be fetched.
pub fn start_at(
    root: &Path,
    name: &str,
    tell: Box<dyn Fn(&FetchError) + Send + Sync>,
) -> Result<Started, Failed> {
    let store = Arc::new(Store::open(root)?);
    let host = name.split('/').next().unwrap();
    let client = Arc::new(common::client(host));
    let resolved = remote::resolve(&client, &name.parse()?, &never())?;
    let source = remote::image(&client, &resolved, &never())?;
    let lazy = start::find(&client, &source, &|_| Ok(()), &never(), &|_| {})?;
    let lazy = lazy.ok_or("there is no converted image")?;
    let image = store.describe_lazy(&source, &lazy);
    let lease = store.lease()?;
    let clients = Clients {
        registries: client,
        peers: None,
    };
    store.record_lazy(&source, &image, &lazy, &lease)?;
    let started = start::start(&store, &clients, &image, &lazy, &never(), tell)?;
    Ok(started)
}

/// Reads a little of the second layer, as the VMM would.
pub fn read(started: &Started) -> Result<fetch::Reply, Failed> {
    let socket = started.disk.source.as_ref().ok_or("nothing is missing")?;
    let mut socket = UnixStream::from(socket.try_clone()?);
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    let request = fetch::Request {
        id: 0,
        extent: 2,
        first_group: 3,
        groups: 4,
    };
    socket.write_all(&request.encode())?;
    let mut answer = [0; 64];
    let count = socket.read(&mut answer)?;
    Ok(fetch::Reply::decode(&answer[..count]).ok_or("no answer")?)
}
