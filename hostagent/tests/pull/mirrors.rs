//! Mirrors that give other bytes than they should: they delay a pull, and do nothing else.

use hostagent::image::digest::Digest;
use libtest_mimic::Failed;
use tempfile::TempDir;

use crate::http_server::{Fault, Reply, Server};
use crate::memory_registry::{Content, answer, content};
use crate::support::{Layout, Mote, Run, Stored, config, layer, noise};
use crate::{Test, blob_count};

pub const TESTS: &[Test] = &[
    (
        "a_layer_that_a_mirror_has_wrong_comes_from_the_next_one",
        next_one,
    ),
    (
        "a_layer_that_all_mirrors_have_wrong_comes_from_the_registry",
        registry,
    ),
    (
        "a_layer_that_the_registry_has_wrong_too_is_refused",
        nowhere,
    ),
    (
        "what_a_mirror_serves_instead_of_a_manifest_is_not_taken_for_it",
        no_manifest,
    ),
];

/// What befalls a layer on its way.
type Harm = fn(Reply) -> Reply;

const HARM: [(&str, Harm); 6] = [
    ("a wrong bit", |mut reply| {
        let middle = reply.body.len() / 2;
        reply.body[middle] ^= 1;
        reply
    }),
    ("another compression", |mut reply| {
        reply.body[..8].copy_from_slice(b"BZh91AY&");
        reply
    }),
    ("no layer", |mut reply| {
        reply.body.fill(b'.');
        reply
    }),
    ("too short", |mut reply| {
        reply.body.pop();
        reply
    }),
    ("too long, which shows late", |mut reply| {
        reply.body[70_000] ^= 1;
        reply.body.extend(noise(3, 1 << 20));
        reply.fault(Fault::Chunked)
    }),
    ("broken off, and wrong until then", |mut reply| {
        reply.body[0] ^= 1;
        let half = reply.body.len() / 2;
        reply.fault(Fault::CutAfter(half))
    }),
];

fn layers() -> Vec<Vec<u8>> {
    let layers = (0..2).map(|seed| layer(&[("data", &noise(70 + seed, 300_000))]));
    layers.collect()
}

fn image() -> Content {
    let layout = Layout::new();
    let descriptor = layout.image(&config(&layers()), &layers(), Stored::Gzip);
    content(&layout, "v1", descriptor["digest"].as_str().unwrap())
}

/// A registry, or a mirror, that does harm to the layers it gives.
fn server(content: &Content, harm: Option<Harm>) -> Server {
    let content = content.clone();
    Server::start(move |request| {
        let reply = answer(request, &mut content.clone());
        let is_layer = request.path().contains("/blobs/") && reply.body.len() > 100_000;
        match harm {
            Some(harm) if is_layer => harm(reply),
            _ => reply,
        }
    })
}

fn no_manifest() -> Result<(), Failed> {
    let registry = server(&image(), None);
    for body in ["<html>Please log in</html>", "{\"errors\": []}", ""] {
        let portal = Server::start(move |_| Reply::new(200, body));
        let pulled = pull(&registry, &[&portal]);
        pulled.run.expect(0);
        assert_eq!(pulled.mote.layer_count(), 2);
    }
    Ok(())
}

struct Pull {
    mote: Mote,
    run: Run,
    name: String,
    _config: TempDir,
}

fn pull(registry: &Server, mirrors: &[&Server]) -> Pull {
    let config = tempfile::tempdir().unwrap();
    let urls: Vec<String> = mirrors.iter().map(|mirror| mirror.url("")).collect();
    let text = format!(
        "[registry.\"{}\"]\nplain_http = true\nmirrors = {urls:?}\n",
        registry.host()
    );
    std::fs::write(config.path().join("registries.toml"), text).unwrap();
    let mote = Mote::new();
    let name = format!("{}/app:v1", registry.host());
    let mut command = mote.command(&["pull", &name]);
    let output = command.env("MOTE_CONFIG", config.path()).output().unwrap();
    Pull {
        mote,
        run: Run::of(output),
        name,
        _config: config,
    }
}

/// How often a server was asked for each layer.
fn asked(server: &Server, content: &Content) -> Vec<usize> {
    let layers = content.iter().filter(|(_, bytes)| bytes.len() > 100_000);
    layers.map(|(digest, _)| server.count(digest)).collect()
}

fn next_one() -> Result<(), Failed> {
    let content = image();
    for (what, harm) in HARM {
        let (wrong, right) = (server(&content, Some(harm)), server(&content, None));
        let registry = server(&content, None);
        let pull = pull(&registry, &[&wrong, &right]);
        pull.run.expect(0);
        pull.mote.assert_consistent();
        assert_eq!(pull.mote.layer_count(), 2, "{what}");
        assert_eq!(asked(&wrong, &content), [1, 1], "{what}");
        // Who gave a part of it each, nobody can tell which of them was wrong.
        let is_mixed = what.contains("late") || what.contains("until then");
        let by_registry = usize::from(is_mixed);
        assert_eq!(asked(&registry, &content), [by_registry; 2], "{what}");
    }
    Ok(())
}

fn registry() -> Result<(), Failed> {
    let content = image();
    let (_, flip) = HARM[0];
    let mirrors = [0, 1].map(|_| server(&content, Some(flip)));
    let registry = server(&content, None);
    let pull = pull(&registry, &[&mirrors[0], &mirrors[1]]);
    let run = pull.run.expect(0);
    for mirror in &mirrors {
        assert_eq!(asked(mirror, &content), [1, 1]);
        let told = format!("asking elsewhere than at mirror {}", mirror.host());
        assert_eq!(run.stderr.matches(&told).count(), 2, "{run:?}");
    }
    assert_eq!(asked(&registry, &content), [1, 1]);
    pull.mote.assert_consistent();
    // What was converted is what the layers are.
    let archive = pull.mote.root.path().join("saved.tar");
    let save = ["save", "-o", archive.to_str().unwrap(), &pull.name];
    pull.mote.run(&save).expect(0);
    let saved = std::fs::read(&archive)?;
    for layer in layers() {
        assert!(saved.windows(layer.len()).any(|part| part == layer));
    }
    Ok(())
}

fn nowhere() -> Result<(), Failed> {
    let content = image();
    let wrong: Vec<Digest> = content
        .values()
        .filter(|bytes| bytes.len() > 100_000)
        .map(|bytes| {
            let flip = HARM[0].1;
            Digest::of(&flip(Reply::new(200, bytes.clone())).body)
        })
        .collect();
    let (mirror, registry) = (
        server(&content, Some(HARM[2].1)),
        server(&content, Some(HARM[0].1)),
    );
    let pull = pull(&registry, &[&mirror]);
    let expected = format!("cannot pull {}", pull.name);
    let run = pull.run.expect_failure(&[&expected, "is corrupt"]);
    // What the registry gave is what is wrong.
    let named = |digest: &Digest| run.stderr.contains(&format!("is {digest}"));
    assert!(wrong.iter().any(named), "{run:?}");
    assert!(pull.mote.images().is_empty());
    assert_eq!(blob_count(&pull.mote), 0);
    pull.mote.assert_consistent();
    Ok(())
}
