//! Mirrors that have other bytes than the registry.

use std::sync::atomic::Ordering;

use hostagent::image::digest::Digest;
use hostagent::lazy::complete::complete;
use libtest_mimic::Failed;

use crate::common::never;
use crate::docker_registry::DockerRegistry;
use crate::fault_proxy::forward;
use crate::http_server::{Reply, Request, Server};
use crate::support::{Mote, Run};
use crate::{Node, Pushed, Test, Vmm, original, pushed, ranges};

pub const TESTS: &[Test] = &[
    (
        "a_range_that_a_mirror_has_wrong_comes_from_elsewhere",
        wrong_ranges,
    ),
    (
        "a_hash_tree_that_a_mirror_has_wrong_comes_from_elsewhere",
        wrong_trees,
    ),
    (
        "an_image_is_completed_past_a_mirror_that_has_it_wrong",
        completed,
    ),
    (
        "what_only_a_mirror_has_is_pushed_all_the_same",
        pushed_all_the_same,
    ),
];

type Harm = fn(&Request, Reply) -> Reply;

/// A mirror of what was pushed.
fn mirror(pushed: &Pushed, harm: Harm) -> Server {
    let address = pushed.registry.address;
    Server::start(move |request| harm(request, forward(address, request)))
}

fn flip(mut reply: Reply) -> Reply {
    let middle = reply.body.len() / 2;
    if let Some(byte) = reply.body.get_mut(middle) {
        *byte ^= 4;
    }
    reply
}

/// Of ranges only.
fn flip_ranges(request: &Request, reply: Reply) -> Reply {
    match request.header("range") {
        Some(_) => flip(reply),
        None => reply,
    }
}

/// Of whole blobs that are no documents, which hash trees are then.
fn flip_trees(request: &Request, reply: Reply) -> Reply {
    let is_whole = request.path().contains("/blobs/") && request.header("range").is_none();
    match is_whole && reply.body.first() != Some(&b'{') {
        true => flip(reply),
        false => reply,
    }
}

fn wrong_ranges() -> Result<(), Failed> {
    let pushed = pushed()?;
    let (wrong, right) = (
        mirror(&pushed, flip_ranges),
        mirror(&pushed, |_, reply| reply),
    );
    let expected = original(&pushed.mote);
    for (mirrors, warned) in [(vec![&wrong, &right], 2), (vec![&wrong], 2)] {
        let before = ranges(&wrong);
        let node = Node::mirrored(&pushed.registry.host(), &mirrors);
        let lease = node.store.lease()?;
        let image = node.record(&pushed.name, &lease)?;
        let started = node.start(&image)?;
        let mut vmm = Vmm::of(&started);
        for (extent, first) in [(2, 0), (2, 160), (1, 32), (1, 0)] {
            assert!(vmm.fetch(extent, first, 3));
            let start = first as usize * 16384;
            let whole = &expected[extent as usize];
            assert!(vmm.bytes(extent as usize, first, 3) == whole[start..start + 3 * 16384]);
        }
        let server = started.server.as_ref().ok_or("a part is missing")?;
        assert!(server.fetched_bytes().load(Ordering::Relaxed) >= 4 * 3 * 16384);
        drop(started);
        // Of each blob it was asked for one range, and told of it once.
        assert_eq!(ranges(&wrong) - before, warned);
        let told = node.told.lock().unwrap().clone();
        assert_eq!(told.len(), warned, "{told:?}");
        let named = |told: &String| told.contains(&format!("mirror {}", wrong.host()));
        assert!(told.iter().all(named), "{told:?}");
    }
    assert!(ranges(&right) > 0);
    Ok(())
}

fn wrong_trees() -> Result<(), Failed> {
    let pushed = pushed()?;
    let wrong = mirror(&pushed, flip_trees);
    let node = Node::mirrored(&pushed.registry.host(), &[&wrong]);
    let lease = node.store.lease()?;
    let image = node.record(&pushed.name, &lease)?;
    let started = node.start(&image)?;
    let trees = wrong.seen().into_iter().filter(|request| {
        let reply = forward(pushed.registry.address, request);
        flip_trees(request, reply.clone()).body != reply.body
    });
    assert!(trees.count() > 0, "no tree was asked of the mirror");
    assert!(Vmm::of(&started).fetch(2, 10, 2));
    Ok(())
}

fn completed() -> Result<(), Failed> {
    let pushed = pushed()?;
    let wrong = mirror(&pushed, flip_ranges);
    let node = Node::mirrored(&pushed.registry.host(), &[&wrong]);
    let lease = node.store.lease()?;
    let image = node.record(&pushed.name, &lease)?;
    let repository = image.sources[0].repository();
    let lazy = node.store.lazy_image(image.id, repository)?;
    let lazy = lazy.ok_or("it is not recorded")?;
    let (store, clients) = (&node.store, node.clients());
    let done = complete(store, &clients, &image, &lazy, &lease, &never(), &())?;
    assert_eq!(done.converted, 2);
    assert!(ranges(&wrong) > 0);
    let layer = node.store.layer(image.diff_ids[1])?.ok_or("no layer")?;
    let digest: Digest = layer.tar(|tar| {
        let mut bytes = Vec::new();
        std::io::copy(tar, &mut bytes)?;
        Ok(Digest::of(&bytes))
    })?;
    assert_eq!(digest, image.diff_ids[1]);
    Ok(())
}

fn pushed_all_the_same() -> Result<(), Failed> {
    let pushed = pushed()?;
    let (full, empty) = (&pushed.registry, DockerRegistry::plain()?);
    let node = Mote::new();
    node.run(&["pull", &pushed.name]).expect(0);
    // What the first registry has a mirror of the second one says it has.
    let config = tempfile::tempdir()?;
    let text = format!(
        "[registry.\"{}\"]\nplain_http = true\nmirrors = [\"http://{}\"]\n",
        empty.host(),
        full.host()
    );
    std::fs::write(config.path().join("registries.toml"), text)?;
    // The manifest is not there; then it is, and not under this tag.
    for tag in ["v1", "v2"] {
        let here = format!("{}/team/app:{tag}", full.host());
        node.run(&["tag", &pushed.name, &here]).expect(0);
        node.run(&["push", &here]).expect(0);
        let there = format!("{}/team/app:{tag}", empty.host());
        node.run(&["tag", &pushed.name, &there]).expect(0);
        let mut push = node.command(&["push", &there]);
        Run::of(push.env("MOTE_CONFIG", config.path()).output()?).expect(0);
        Mote::new().run(&["pull", &there]).expect(0);
    }
    Ok(())
}
