//! `mote pull`, from Debian's docker-registry and through a proxy that does harm.

#[path = "registry/common.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod common;
#[path = "pull/damaged.rs"]
mod damaged;
#[path = "support/docker_registry.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod docker_registry;
#[path = "support/fault_proxy.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod fault_proxy;
#[path = "pull/hostile.rs"]
mod hostile;
#[path = "support/http_server.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod http_server;
#[path = "support/registry.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod memory_registry;
#[path = "pull/mirrors.rs"]
mod mirrors;
#[path = "pull/progress.rs"]
mod progress;
mod support;
#[path = "pull/waiting.rs"]
mod waiting;

use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use common::{client, go_on, push, repository, tag};
use docker_registry::DockerRegistry;
use fault_proxy::{Mishap, faulty_proxy};
use hostagent::image::digest::Digest;
use hostagent::registry::{OCI_INDEX, OCI_MANIFEST};
use http_server::{Fault, Server};
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{Mote, Run, Stored, config, layer, noise};

type Test = (&'static str, fn() -> Result<(), Failed>);

const TESTS: &[Test] = &[
    ("an_image_is_pulled_by_tag_and_by_digest", by_tag_and_digest),
    (
        "what_is_there_already_is_not_downloaded_again",
        shared_layers,
    ),
    (
        "of_an_image_for_several_platforms_ours_is_pulled",
        platforms,
    ),
    ("several_pulls_at_once_download_each_layer_once", concurrent),
    (
        "a_connection_that_breaks_or_stalls_costs_time_and_nothing_else",
        mishaps,
    ),
    (
        "wrong_bytes_are_refused_and_nothing_of_them_is_kept",
        wrong_bytes,
    ),
    ("what_is_no_image_is_refused_by_name", no_images),
    ("a_layer_that_decompresses_past_the_limit_is_refused", bomb),
    (
        "a_pull_that_is_interrupted_stops_at_once_and_leaves_nothing",
        interrupted,
    ),
    (
        "after_kill_9_at_any_point_of_a_pull_the_next_one_works",
        killed,
    ),
    ("a_full_disk_is_told_as_such", full_disk),
    ("verifying_pulls_again_what_is_broken", mended),
    (
        "what_the_policy_refuses_is_not_pulled_and_not_loaded",
        policy,
    ),
    ("run_pulls_what_is_missing_unless_told_not_to", run_pulls),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut probe = Command::new("docker-registry");
    probe
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let missing = probe.status().is_err();
    if missing {
        println!("ignored: docker-registry is not installed; `cargo xtask test` installs it");
    }
    let trials = TESTS
        .iter()
        .map(|(name, test)| Trial::test(*name, test).with_ignored_flag(missing));
    // These need no registry but the test's.
    let more = [
        damaged::TESTS,
        hostile::TESTS,
        mirrors::TESTS,
        progress::TESTS,
        waiting::TESTS,
    ];
    let more = more.into_iter().flatten();
    let trials = trials.chain(more.map(|(name, test)| Trial::test(*name, test)));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
}

/// An image that is about to be pushed.
struct Image {
    layers: Vec<Vec<u8>>,
    stored: Stored,
    config: Value,
}

impl Image {
    fn of(layers: Vec<Vec<u8>>) -> Self {
        Self {
            config: config(&layers),
            layers,
            stored: Stored::Gzip,
        }
    }

    /// Pushes it, and returns its manifest.
    fn push(&self, registry: &DockerRegistry, name: &str) -> Result<Value, Failed> {
        let client = client(&registry.host());
        let repository = repository(&registry.host(), "app");
        let blobs: Vec<Vec<u8>> = self
            .layers
            .iter()
            .map(|tar| self.stored.pack(tar))
            .collect();
        for blob in &blobs {
            push(&client, &repository, blob)?;
        }
        let config = self.config.to_string().into_bytes();
        push(&client, &repository, &config)?;
        let layers: Vec<Value> = blobs.iter().map(|blob| descriptor(LAYER, blob)).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": layers,
        });
        push_manifest(registry, name, &manifest, OCI_MANIFEST)?;
        Ok(manifest)
    }
}

fn push_manifest(
    registry: &DockerRegistry,
    name: &str,
    manifest: &Value,
    media_type: &str,
) -> Result<Digest, Failed> {
    let client = client(&registry.host());
    let repository = repository(&registry.host(), "app");
    let bytes = manifest.to_string().into_bytes();
    Ok(client.push_manifest(&repository, &tag(name), &bytes, media_type, &go_on)?)
}

fn layers() -> Vec<Vec<u8>> {
    (0..3)
        .map(|seed| layer(&[("data", &noise(seed + 70, 2_000_000))]))
        .collect()
}

fn pulled(mote: &Mote, name: &str) -> Value {
    let run = mote.run(&["pull", "--format", "json", name]).expect(0);
    run.json().remove(0)
}

/// A store whose registries have little patience.
fn impatient(hosts: &[String]) -> (Mote, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let mut text = "[download]\nstall_seconds = 1\nconnect_seconds = 2\n".to_owned();
    for host in hosts {
        text.push_str(&format!("[registry.\"{host}\"]\nplain_http = true\n"));
    }
    std::fs::write(directory.path().join("registries.toml"), text).unwrap();
    (Mote::new(), directory)
}

fn pull_with(mote: &Mote, config: &tempfile::TempDir, name: &str) -> Run {
    let mut command = mote.command(&["pull", name]);
    Run::of(command.env("MOTE_CONFIG", config.path()).output().unwrap())
}

fn blob_count(mote: &Mote) -> usize {
    std::fs::read_dir(mote.root.path().join("blobs")).map_or(0, Iterator::count)
}

fn by_tag_and_digest() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let manifest = Image::of(layers()).push(&registry, "v1")?;
    let digest = Digest::of(manifest.to_string().as_bytes());
    let host = registry.host();
    let mote = Mote::new();
    let run = mote.run(&["pull", &format!("{host}/app:v1")]).expect(0);
    let expected = format!(
        "v1: Pulling from {host}/app\nDigest: {digest}\nStatus: Downloaded newer image for \
         {host}/app:v1\n{host}/app:v1\n"
    );
    assert_eq!(run.stdout, expected);
    assert_eq!(mote.images(), [format!("{host}/app:v1")]);
    mote.assert_consistent();

    let again = pulled(&mote, &format!("{host}/app@{digest}"));
    assert_eq!(again["layers_pulled"], 0);
    // Up to date is what led to this image before, not what has its layers.
    Image::of(layers()).push(&registry, "same")?;
    let status = |mote: &Mote, name: &str, words: &str| {
        let run = mote.run(&["pull", &format!("{host}/app{name}")]).expect(0);
        let status = format!("Status: {words} ");
        assert!(run.stdout.contains(&status), "{run:?}");
    };
    status(&mote, ":v1", "Image is up to date for");
    status(&mote, &format!("@{digest}"), "Image is up to date for");
    status(&mote, ":same", "Downloaded newer image for");
    status(&mote, ":same", "Image is up to date for");
    let mut newer = Image::of(layers());
    newer.config["created"] = json!("2026-11-02T12:00:00Z");
    newer.push(&registry, "same")?;
    status(&mote, ":same", "Downloaded newer image for");
    status(&mote, ":same", "Image is up to date for");
    mote.run(&["rmi", &format!("{host}/app:same")]).expect(0);
    let run = mote.run(&[
        "image",
        "inspect",
        "--format",
        "json",
        &format!("{host}/app@{digest}"),
    ]);
    let image = run.expect(0).json().remove(0);
    assert_eq!(
        image["RepoDigests"],
        json!([format!("{host}/app@{digest}")])
    );
    assert_eq!(image["RepoTags"], json!([format!("{host}/app:v1")]));

    let other = Mote::new();
    pulled(&other, &format!("{host}/app:other@{digest}"));
    // By digest it has the tag that was asked for, as in Docker it has none.
    let run = other.run(&["pull", &format!("{host}/app:none")]);
    run.expect_failure(&[&format!("cannot pull {host}/app:none"), "not", "app:none"]);
    let wrong = Digest::of(b"none");
    other
        .run(&["pull", &format!("{host}/app@{wrong}")])
        .expect_failure(&[&wrong.to_string()]);
    other
        .run(&["pull", "--platform", "linux/arm64", "x"])
        .expect_failure(&["linux/amd64"]);
    Ok(())
}

fn shared_layers() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let mut all = layers();
    Image::of(all.clone()).push(&registry, "v1")?;
    all.push(layer(&[("more", b"x")]));
    Image::of(all).push(&registry, "v2")?;
    let server = faulty_proxy(registry.address, []);
    let (mote, config) = impatient(&[server.host()]);
    pull_with(&mote, &config, &format!("{}/app:v1", server.host())).expect(0);
    // Three layers and a configuration.
    assert_eq!(server.count("/blobs/"), 4);
    pull_with(&mote, &config, &format!("{}/app:v2", server.host())).expect(0);
    assert_eq!(server.count("/blobs/"), 6);
    pull_with(&mote, &config, &format!("{}/app:v2", server.host())).expect(0);
    assert_eq!(server.count("/blobs/"), 7);
    mote.assert_consistent();
    Ok(())
}

fn platforms() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let manifest = Image::of(layers()).push(&registry, "ours")?;
    let mut other = Image::of(vec![layer(&[("other", b"x")])]);
    other.config["architecture"] = json!("arm64");
    let other = other.push(&registry, "theirs")?;
    let entry = |manifest: &Value, architecture: &str| {
        let mut entry = descriptor(OCI_MANIFEST, manifest.to_string().as_bytes());
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    };
    let index = |entries: Vec<Value>| json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    let both = index(vec![entry(&other, "arm64"), entry(&manifest, "amd64")]);
    let digest = push_manifest(&registry, "both", &both, OCI_INDEX)?;
    let host = registry.host();
    let mote = Mote::new();
    let image = pulled(&mote, &format!("{host}/app:both"));
    assert_eq!(image["digest"], json!(digest));
    assert_eq!(
        image["manifest"],
        json!(Digest::of(manifest.to_string().as_bytes()))
    );
    // By the index's digest it is found without asking anybody.
    drop(registry);
    mote.run(&["image", "inspect", &format!("{host}/app@{digest}")])
        .expect(0);

    let registry = DockerRegistry::plain()?;
    let mut arm = Image::of(vec![layer(&[("other", b"x")])]);
    arm.config["architecture"] = json!("arm64");
    let arm = arm.push(&registry, "theirs")?;
    push_manifest(
        &registry,
        "arm",
        &index(vec![entry(&arm, "arm64")]),
        OCI_INDEX,
    )?;
    let name = format!("{}/app:arm", registry.host());
    mote.run(&["pull", &name])
        .expect_failure(&[&name, "linux/amd64", "linux/arm64"]);
    // An index is not needed to see it.
    let name = format!("{}/app:theirs", registry.host());
    mote.run(&["pull", &name])
        .expect_failure(&[&name, "linux/amd64", "linux/arm64"]);
    Ok(())
}

fn concurrent() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    Image::of(layers()).push(&registry, "v1")?;
    let server = faulty_proxy(registry.address, []);
    let (mote, config) = impatient(&[server.host()]);
    let name = format!("{}/app:v1", server.host());
    let children: Vec<_> = (0..4)
        .map(|_| {
            let mut command = mote.command(&["pull", "--format", "json", &name]);
            command.env("MOTE_CONFIG", config.path());
            command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut downloaded = 0;
    for child in children {
        let run = Run::of(child.wait_with_output()?).expect(0);
        downloaded += run.json()[0]["layers_pulled"].as_u64().unwrap();
    }
    assert_eq!(downloaded, 3);
    // Each asks for the configuration, only one for each layer.
    assert_eq!(server.count("/blobs/"), 4 + 3);
    mote.assert_consistent();
    Ok(())
}

fn mishaps() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    Image::of(layers()).push(&registry, "v1")?;
    let mishaps: [Mishap; 6] = [
        |reply| reply,
        |reply| reply.fault(Fault::CutAfter(500_000)),
        |reply| reply.fault(Fault::StallAfter(700_000)),
        |_| http_server::Reply::new(500, "out of order"),
        |_| http_server::Reply::new(429, "too many").with("Retry-After", "0"),
        |reply| reply.fault(Fault::CutAfter(0)),
    ];
    let server = faulty_proxy(registry.address, mishaps);
    let (mote, config) = impatient(&[server.host()]);
    pull_with(&mote, &config, &format!("{}/app:v1", server.host())).expect(0);
    mote.assert_consistent();
    assert_eq!(mote.layer_count(), 3);
    Ok(())
}

fn wrong_bytes() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    Image::of(vec![layers().remove(0)]).push(&registry, "v1")?;
    let harm: [Mishap; 2] = [
        |mut reply| {
            let middle = reply.body.len() / 2;
            reply.body[middle] ^= 1;
            reply
        },
        |mut reply| {
            reply.body.truncate(reply.body.len() / 2);
            reply
        },
    ];
    for harm in harm {
        // The configuration first, then the layer, as often as it is asked for.
        let faults: Vec<Mishap> = std::iter::once::<Mishap>(|reply| reply)
            .chain(std::iter::repeat_n(harm, 20))
            .collect();
        let server = faulty_proxy(registry.address, faults);
        let (mote, config) = impatient(&[server.host()]);
        let name = format!("{}/app:v1", server.host());
        let run = pull_with(&mote, &config, &name);
        run.expect_failure(&[&format!("cannot pull {name}"), "sha256:"]);
        assert!(mote.images().is_empty());
        assert_eq!(blob_count(&mote), 0);
        mote.assert_consistent();
    }
    Ok(())
}

fn no_images() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let image = Image::of(vec![layer(&[("file", b"x")])]);
    let good = image.push(&registry, "good")?;
    let changed = |name: &str, change: &dyn Fn(&mut Value)| -> Result<(), Failed> {
        let mut manifest = good.clone();
        change(&mut manifest);
        push_manifest(&registry, name, &manifest, OCI_MANIFEST)?;
        Ok(())
    };
    changed("artifact", &|manifest| {
        manifest["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    })?;
    changed("unknown", &|manifest| {
        manifest["layers"][0]["mediaType"] = json!("application/vnd.example.something");
    })?;
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    changed("encrypted", &|manifest| {
        manifest["layers"][0]["mediaType"] = json!(format!("{LAYER}+encrypted"));
    })?;
    let mote = Mote::new();
    let refused = |name: &str, words: &[&str]| {
        let name = format!("{}/app:{name}", registry.host());
        let run = mote.run(&["pull", &name]);
        run.expect_failure(&[&name]).expect_failure(words);
    };
    refused("artifact", &["is no image", "helm"]);
    refused("unknown", &["vnd.example.something", "no layer"]);
    refused("encrypted", &["encrypted", "sha256:"]);
    assert_eq!(blob_count(&mote), 0);

    // What a registry would not take, a server may send.
    let mut with_foreign = good.clone();
    with_foreign["layers"][0]["mediaType"] = json!(foreign);
    let mut too_short = good.clone();
    too_short["layers"][0]["digest"] = json!("sha256:00");
    let mut other_algorithm = good.clone();
    other_algorithm["layers"][0]["digest"] = json!(format!("sha512:{}", "0".repeat(128)));
    let schema1 = json!({"schemaVersion": 1, "name": "x", "fsLayers": [], "history": []});
    for (manifest, words) in [
        (with_foreign, ["is foreign", "sha256:"]),
        (too_short, ["sha256:00", "64"]),
        (other_algorithm, ["sha512", "sha256"]),
        (schema1, ["schema 1", "not supported"]),
    ] {
        let address = registry.address;
        let server = Server::start(move |request| {
            if request.path().contains("/manifests/") {
                return http_server::Reply::new(200, manifest.to_string())
                    .with("Content-Type", OCI_MANIFEST);
            }
            fault_proxy::forward(address, request)
        });
        let (mote, config) = impatient(&[server.host()]);
        let run = pull_with(&mote, &config, &format!("{}/app:x", server.host()));
        run.expect_failure(&words);
        assert_eq!(blob_count(&mote), 0);
    }
    Ok(())
}

fn bomb() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let mut image = Image::of(vec![layer(&[("zeroes", &vec![0; 50_000_000])])]);
    image.stored = Stored::Zstd;
    image.push(&registry, "bomb")?;
    let (mote, config) = impatient(&[registry.host()]);
    let limits = "max_layer_bytes = 1000000\n";
    std::fs::write(config.path().join("limits.toml"), limits)?;
    let name = format!("{}/app:bomb", registry.host());
    let run = pull_with(&mote, &config, &name);
    run.expect_failure(&[&name, "sha256:", "1000000 bytes", "limits.toml"]);
    assert_eq!(blob_count(&mote), 0);
    std::fs::write(config.path().join("limits.toml"), "max_layer = 1\n")?;
    pull_with(&mote, &config, &name).expect_failure(&["limits.toml", "max_layer"]);
    std::fs::remove_file(config.path().join("limits.toml"))?;
    pull_with(&mote, &config, &name).expect(0);
    Ok(())
}

/// Waits until `condition`; a bound against hanging, not a measurement.
fn wait_until(condition: impl Fn() -> bool) {
    for _ in 0..1200 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("it did not come about in a minute");
}

fn interrupted() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    Image::of(layers()).push(&registry, "v1")?;
    let stall: Mishap = |reply| reply.fault(Fault::StallAfter(700_000));
    let server = faulty_proxy(registry.address, [|reply| reply, stall, stall, stall]);
    let mote = Mote::new();
    // The usual patience, which is longer than the test's.
    let mut command = mote.command(&["pull", &format!("{}/app:v1", server.host())]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    wait_until(|| server.count("/blobs/") == 4);
    kill_process(Pid::from_child(&child), Signal::INT)?;
    let run = Run::of(child.wait_with_output()?).expect(130);
    assert!(run.stderr.contains("interrupted"), "{run:?}");
    assert!(mote.images().is_empty());
    mote.assert_consistent();
    assert_eq!(blob_count(&mote), 0);
    Ok(())
}

fn killed() -> Result<(), Failed> {
    const ROUNDS: u32 = 24;
    let registry = DockerRegistry::plain()?;
    Image::of(layers()).push(&registry, "v1")?;
    let name = format!("{}/app:v1", registry.host());
    let whole = {
        let mote = Mote::new();
        let start = std::time::Instant::now();
        pulled(&mote, &name);
        start.elapsed()
    };
    let mote = Mote::new();
    let mut killed = 0;
    for round in 0..ROUNDS {
        let mut child = mote
            .command(&["pull", "-q", &name])
            .stdout(Stdio::null())
            .spawn()?;
        let fraction = f64::from(round * 37 % ROUNDS) / f64::from(ROUNDS);
        std::thread::sleep(whole.mul_f64(fraction * 1.1));
        child.kill()?;
        killed += u32::from(child.wait()?.code().is_none());
        // Another command in between, which collects.
        mote.run(&["image", "prune", "-f"]).expect(0);
        mote.assert_consistent();
        if round % 6 == 5 {
            pulled(&mote, &name);
            mote.assert_consistent();
            mote.run(&["rmi", &name]).expect(0);
            assert_eq!(blob_count(&mote), 0);
        }
    }
    assert!(killed > 0, "every pull ended before it was killed");
    Ok(())
}

fn full_disk() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    Image::of(layers()).push(&registry, "v1")?;
    let name = format!("{}/app:v1", registry.host());
    let mote = Mote::new();
    // A limit on a file's size stands for a full disk: the errors go the same way.
    let script = "trap '' XFSZ; ulimit -f 1000; exec \"$@\"";
    let mut command = Command::new("/bin/sh");
    command
        .args([
            "-c",
            script,
            "sh",
            env!("CARGO_BIN_EXE_mote"),
            "pull",
            &name,
        ])
        .env("MOTE_ROOT", mote.root.path());
    Run::of(command.output()?).expect_failure(&[&name, "File too large"]);
    mote.assert_consistent();
    assert_eq!(blob_count(&mote), 0);
    Ok(())
}

fn mended() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    Image::of(layers()).push(&registry, "v1")?;
    let name = format!("{}/app:v1", registry.host());
    let mote = Mote::new();
    pulled(&mote, &name);
    let data = mote.layer_blob(Digest::of(&layers()[1])).join("data");
    let flip = || {
        let mut bytes = std::fs::read(&data).unwrap();
        bytes[1_000_000] ^= 1;
        std::fs::write(&data, bytes).unwrap();
    };
    flip();
    let run = mote.run(&["store", "verify", "--no-fetch"]).expect(1);
    assert!(run.stdout.contains("Broken: "), "{run:?}");
    let run = mote.run(&["store", "verify"]).expect(0);
    assert!(
        run.stdout.contains(&format!("Fetched again: {name}")),
        "{run:?}"
    );
    mote.assert_consistent();
    assert_eq!(mote.images(), [name]);
    flip();
    drop(registry);
    let run = mote.run(&["store", "verify"]).expect(1);
    assert!(
        run.stdout.contains("Broken: ") && run.stderr.contains("cannot pull"),
        "{run:?}"
    );
    Ok(())
}

fn policy() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    let image = Image::of(layers());
    let manifest = image.push(&registry, "v1")?;
    let digest = Digest::of(manifest.to_string().as_bytes());
    let server = faulty_proxy(registry.address, []);
    let host = server.host();
    let (mote, config) = impatient(std::slice::from_ref(&host));
    let directory = config.path();
    let tool = docker_registry::tool;
    let key = [
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        "key.pem",
    ];
    tool("openssl", &key, directory)?;
    tool(
        "openssl",
        &["pkey", "-in", "key.pem", "-pubout", "-out", "key.pub"],
        directory,
    )?;
    let says = |require: &str| {
        let keys = match require {
            "signature" => format!("keys = [\"{}/key.pub\"]\n", directory.display()),
            _ => String::new(),
        };
        let text = format!(
            "default = \"accept\"\n[[repository]]\nmatch = \"{host}/app\"\nrequire = \"{require}\"\n{keys}"
        );
        std::fs::write(directory.join("policy.toml"), text).unwrap();
    };
    let name = format!("{host}/app:v1");
    says("reject");
    pull_with(&mote, &config, &name).expect_failure(&[&name, "policy"]);
    assert_eq!(server.count(""), 0, "nothing is asked for");
    says("digest");
    pull_with(&mote, &config, &name).expect_failure(&["digest"]);
    says("signature");
    pull_with(&mote, &config, &name).expect_failure(&[&name, "sign"]);
    assert_eq!(
        server.count(&image_blob(&manifest)),
        0,
        "no layer is asked for"
    );
    // Nor from a file, under that name.
    let layout = support::Layout::with_image(&layers(), Stored::Plain, &name);
    put_assets(&mote)?;
    for verb in ["load", "run"] {
        let mut command = mote.command(&[verb, &layout.reference(&name)]);
        Run::of(command.env("MOTE_CONFIG", directory).output()?).expect_failure(&["policy"]);
        assert_eq!(blob_count(&mote), 0, "{verb}");
    }
    says("digest");
    pull_with(&mote, &config, &format!("{host}/app@{digest}")).expect(0);
    std::fs::write(
        directory.join("policy.toml"),
        "default = \"accept\"\nunknown = 1\n",
    )?;
    pull_with(&mote, &config, &name).expect_failure(&["policy.toml", "unknown"]);
    Ok(())
}

/// The digest of an image's first layer.
fn image_blob(manifest: &Value) -> String {
    manifest["layers"][0]["digest"].as_str().unwrap().to_owned()
}

/// What a run looks for before it looks for its image. The VMM is none.
fn put_assets(mote: &Mote) -> std::io::Result<()> {
    for asset in ["vmlinux", "initrd"] {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = 62;
        std::fs::write(mote.assets().join(asset), bytes)?;
    }
    let text = mote.assets().join("text");
    std::fs::write(&text, "#!/bin/sh\nexit 3\n")?;
    let vmm = mote.assets().join("mote-vmm");
    let mut install = Command::new("install");
    assert!(install.arg("-m755").args([&text, &vmm]).status()?.success());
    Ok(())
}

fn run_pulls() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    Image::of(layers()).push(&registry, "v1")?;
    let name = format!("{}/app:v1", registry.host());
    let mote = Mote::new();
    put_assets(&mote)?;
    mote.run(&["run", "--pull", "never", &name, "x"])
        .expect_failure(&["no such image"]);
    assert!(mote.images().is_empty());
    // That the VMM is none is found later.
    let run = mote.run(&["run", &name, "x"]).expect(125);
    assert!(!run.stderr.contains("no such image"), "{run:?}");
    assert_eq!(mote.images(), [name]);
    Ok(())
}
