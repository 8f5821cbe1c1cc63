//! What is missing of an image, from peers.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hostagent::lazy::complete::complete;
use hostagent::peer::config::{Peer, Settings};
use hostagent::peer::{self, NodeKey, RangeClient};
use hostagent::store::Store;
use libtest_mimic::Failed;

use crate::common::never;
use crate::fault_proxy::forward;
use crate::http_server::Server;
use crate::support::{Mote, Run, flip_bit};
use crate::{Node, Pushed, Test, Vmm, in_part, original, pushed, ranges, saved, wait_until};

pub const TESTS: &[Test] = &[
    (
        "without_its_registry_what_is_missing_comes_from_a_peer",
        without_registry,
    ),
    (
        "without_its_registry_an_image_is_completed_from_a_peer",
        completed,
    ),
    (
        "without_its_registry_an_image_is_saved_as_peers_toml_says",
        saved_by_command,
    ),
    ("what_a_peer_has_is_asked_of_no_registry", spares),
    ("what_a_peer_has_damaged_comes_from_the_registry", damaged),
];

/// Lets a node ask another one, which serves.
fn befriend(node: &mut Node, other: &Mote) -> Result<peer::Server, Failed> {
    let store = Store::open(other.root.path())?;
    let (key, other_key) = (NodeKey::of(&node.store)?, NodeKey::of(&store)?);
    let listed = |key: &NodeKey, address| Peer {
        key: key.public(),
        address,
        names: false,
    };
    let serving = Settings {
        listen: Some("127.0.0.1:0".parse()?),
        peers: vec![listed(&key, None)],
        ..Settings::default()
    };
    let server = peer::Server::start(store, &serving, &other_key, Box::new(|_| {}))?;
    let asking = Settings {
        peers: vec![listed(&other_key, Some(server.address()))],
        ..Settings::default()
    };
    node.peers = Some(Arc::new(RangeClient::new(&asking, key)?));
    Ok(server)
}

fn without_registry() -> Result<(), Failed> {
    let Pushed {
        registry,
        mote,
        name,
    } = pushed()?;
    let expected = original(&mote);
    let (mut node, image) = in_part(&registry, &name)?;
    drop(registry);
    let peer = befriend(&mut node, &mote)?;
    let started = node.start(&image)?;
    let mut vmm = Vmm::of(&started);
    for (extent, first, groups) in [(0, 0, 1), (2, 200, 3), (1, 60, 8)] {
        assert!(vmm.fetch(extent, first, groups));
        let whole = &expected[extent as usize];
        let start = (first * crate::GROUP) as usize;
        let end = whole
            .len()
            .min(start + (u64::from(groups) * crate::GROUP) as usize);
        assert!(vmm.bytes(extent as usize, first, groups.into()) == whole[start..end]);
    }
    let server = started.server.as_ref().ok_or("a part is missing")?;
    assert!(server.fetched_bytes().load(Ordering::Relaxed) > 0);
    // The rest, too.
    server.start_up().begun();
    server.start_up().over();
    let partial = node.store.root().join("partial");
    wait_until("the rest", || fs::read_dir(&partial).unwrap().count() == 0);
    drop((started, peer));
    let report = node.store.verify_all(&())?.ok_or("nobody has stopped it")?;
    assert!(
        report.wrong.is_empty() && report.broken.is_empty(),
        "{report:?}"
    );
    assert!(node.told.lock().unwrap().is_empty(), "{:?}", node.told);
    Ok(())
}

fn completed() -> Result<(), Failed> {
    let Pushed {
        registry,
        mote,
        name,
    } = pushed()?;
    let (mut node, image) = in_part(&registry, &name)?;
    drop(registry);
    let _peer = befriend(&mut node, &mote)?;
    let lazy = node
        .store
        .lazy_image(image.id, image.sources[0].repository())?;
    let lazy = lazy.ok_or("it is not recorded")?;
    let lease = node.store.lease()?;
    let clients = node.clients();
    let done = complete(&node.store, &clients, &image, &lazy, &lease, &never(), &())?;
    assert_eq!(done.converted, 2);
    node.mote.assert_consistent();
    Ok(())
}

fn saved_by_command() -> Result<(), Failed> {
    let Pushed {
        registry,
        mote,
        name,
    } = pushed()?;
    let expected = saved(&mote, &name);
    let (mut node, _) = in_part(&registry, &name)?;
    drop(registry);
    let peer = befriend(&mut node, &mote)?;
    let config = tempfile::tempdir()?;
    let (key, address) = (
        NodeKey::of(&Store::open(mote.root.path())?)?,
        peer.address(),
    );
    let text = format!(
        "[[peer]]\nkey = \"{}\"\naddress = \"{address}\"\n",
        key.public()
    );
    fs::write(config.path().join("peers.toml"), text)?;
    let archive = config.path().join("saved.tar");
    let mut save = node
        .mote
        .command(&["save", "-o", archive.to_str().unwrap(), &name]);
    Run::of(save.env("MOTE_CONFIG", config.path()).output()?).expect(0);
    assert!(fs::read(&archive)? == expected);
    Ok(())
}

/// A node that asks this peer first, and then this server, which has been asked for no
/// range yet.
fn with_both(pushed: &Pushed) -> Result<(Node, peer::Server, Server, String), Failed> {
    let address = pushed.registry.address;
    let server = Server::start(move |request| forward(address, request));
    let mut node = Node::new(&server.host());
    let peer = befriend(&mut node, &pushed.mote)?;
    let name = pushed.name.replace(&pushed.registry.host(), &server.host());
    Ok((node, peer, server, name))
}

fn spares() -> Result<(), Failed> {
    let pushed = pushed()?;
    let (node, peer, server, name) = with_both(&pushed)?;
    let image = node.record(&name, &node.store.lease()?)?;
    let started = node.start(&image)?;
    let mut vmm = Vmm::of(&started);
    assert!(vmm.fetch(2, 50, 2));
    assert_eq!(ranges(&server), 0);
    // A peer that goes costs a moment.
    drop(peer);
    assert!(vmm.fetch(2, 150, 2));
    assert!(vmm.fetch(2, 250, 2));
    assert_eq!(ranges(&server), 2);
    let told = node.told.lock().unwrap().clone();
    assert_eq!(told.len(), 1, "{told:?}");
    Ok(())
}

fn damaged() -> Result<(), Failed> {
    let pushed = pushed()?;
    let expected = original(&pushed.mote);
    let (node, _peer, server, name) = with_both(&pushed)?;
    let image = node.record(&name, &node.store.lease()?)?;
    flip_bit(&pushed.mote.layer_blob(image.diff_ids[1]).join("data"));
    let started = node.start(&image)?;
    let mut vmm = Vmm::of(&started);
    let groups = (expected[2].len() as u64).div_ceil(crate::GROUP) as u32;
    assert!(vmm.fetch(2, 0, groups));
    assert!(vmm.bytes(2, 0, groups.into()) == expected[2]);
    let asked = ranges(&server);
    assert!(asked > 0);
    // Its copy of the other layer is not.
    assert!(vmm.fetch(1, 0, 4));
    assert_eq!(ranges(&server), asked);
    let told = node.told.lock().unwrap().join("\n");
    assert!(told.contains("its own copy is corrupt"), "{told}");
    Ok(())
}
