//! Images without a name: of files, and of peers that are asked for them by their id.

use hostagent::image::digest::Digest;
use libtest_mimic::Failed;

use crate::Test;
use crate::node::Node;
use crate::support::{Layout, Mote, Stored, config, layer};

pub const TESTS: &[Test] = &[
    (
        "an_image_of_a_file_without_a_name_is_judged_by_the_default",
        of_a_file,
    ),
    (
        "of_a_file_with_one_image_that_is_refused_none_is_loaded",
        all_or_none,
    ),
    (
        "an_image_of_a_file_is_judged_by_the_name_that_it_is_asked_for_by",
        other_names,
    ),
    (
        "an_image_of_a_peer_without_a_name_is_judged_by_the_default",
        of_a_peer,
    ),
];

fn layers() -> Vec<Vec<u8>> {
    vec![layer(&[("file", b"content")])]
}

fn image_id() -> String {
    Digest::of(config(&layers()).to_string().as_bytes()).to_string()
}

fn of_a_file() -> Result<(), Failed> {
    let layout = Layout::with_image(&layers(), Stored::Plain, "");
    let reference = layout.reference("");
    let (load, run) = (["load", &reference], ["run", &reference, "x"]);

    let id = image_id();
    // A rule is no name, whatever it accepts.
    let open = "[[repository]]\nmatch = \"registry.example/*\"\nrequire = \"accept\"\n";
    for policy in [
        "default = \"reject\"\n",
        &format!("default = \"reject\"\n{open}"),
    ] {
        let node = Node::with_policy(policy)?;
        for command in [&load[..], &run] {
            node.run(command).expect_failure(&[
                &id,
                "no name",
                "policy.toml:1",
                "take it under a name",
            ]);
            assert_eq!(node.mote.layer_count(), 0, "{command:?} has converted it");
        }
        let images = node.run(&["images", "--quiet"]).expect(0);
        assert_eq!(images.stdout, "", "{images:?}");
    }
    let accepting = [
        Node::without_policy()?,
        Node::with_policy("default = \"accept\"\n")?,
        Node::with_policy("default = \"digest\"\n")?,
    ];
    for node in accepting {
        let loaded = node.run(&load).expect(0);
        assert!(loaded.stdout.contains(&id), "{loaded:?}");
    }
    Ok(())
}

fn all_or_none() -> Result<(), Failed> {
    let mut layout = Layout::with_image(&layers(), Stored::Plain, "registry.example/app:v1");
    let more = [layer(&[("another", b"content")])];
    let unnamed = layout.image(&config(&more), &more, Stored::Plain);
    layout.tag(unnamed, "");
    let node = Node::with_policy(
        "default = \"reject\"\n[[repository]]\nmatch = \"registry.example/app\"\nrequire = \"accept\"\n",
    )?;
    node.run(&["load", &layout.reference("")])
        .expect_failure(&["no name"]);
    assert_eq!(node.mote.layer_count(), 0);
    let named = layout.reference("registry.example/app:v1");
    node.run(&["load", &named]).expect(0);
    Ok(())
}

fn other_names() -> Result<(), Failed> {
    let (good, bad) = ("good.example/app:v1", "bad.example/app:v1");
    let mote = Mote::new();
    let layout = Layout::with_image(&layers(), Stored::Plain, good);
    mote.load(&layout.reference(good));
    mote.run(&["tag", good, bad]).expect(0);
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("both.tar").display().to_string();
    mote.run(&["save", "-o", &file, good, bad]).expect(0);
    let node = Node::with_policy(
        "default = \"accept\"\n[[repository]]\nmatch = \"bad.example/*\"\nrequire = \"reject\"\n",
    )?;
    for command in ["run", "load"] {
        let refused = node.run(&[command, &format!("docker-archive:{file}:{bad}")]);
        refused.expect_failure(&[&format!("{bad} is not accepted")]);
    }
    // In a layout, one annotation may say this, and another that.
    let path = layout.path().join("index.json");
    let index = std::fs::read_to_string(&path)?.replace(good, bad);
    let mut index: serde_json::Value = serde_json::from_str(&index)?;
    index["manifests"][0]["annotations"]["io.containerd.image.name"] = good.into();
    std::fs::write(path, index.to_string())?;
    let both = directory.path().join("layout.tar").display().to_string();
    let mut archive = tar::Builder::new(std::fs::File::create(&both)?);
    archive.append_dir_all(".", layout.path())?;
    archive.finish()?;
    for command in ["run", "load"] {
        let refused = node.run(&[command, &format!("docker-archive:{both}:{bad}")]);
        refused.expect_failure(&[&format!("{bad} is not accepted")]);
    }
    node.run(&["load", &format!("docker-archive:{file}:{good}")])
        .expect(0);
    assert_eq!(node.mote.images(), [good]);
    // There is no guest to run it in; that is what it fails at.
    let accepted = node.run(&["run", &format!("docker-archive:{file}:{good}")]);
    assert!(!accepted.stderr.contains("not accepted"), "{accepted:?}");
    Ok(())
}

fn of_a_peer() -> Result<(), Failed> {
    let id = image_id();
    let fetch = ["node", "fetch", &id];
    let node = Node::with_policy("default = \"reject\"\n")?;
    node.run(&fetch)
        .expect_failure(&[&id, "no name", "policy.toml:1"]);
    // Accepted, and then there are no peers.
    let accepting = [
        Node::without_policy()?,
        Node::with_policy("default = \"accept\"\n")?,
        Node::with_policy("default = \"digest\"\n")?,
    ];
    for node in accepting {
        node.run(&fetch).expect_failure(&["peers.toml"]);
    }
    Ok(())
}
