//! `mote push`, and disks whose blobs are fetched as they are read. The test is the VMM.

#[path = "registry/common.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod common;
#[path = "support/docker_registry.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod docker_registry;
#[path = "support/fault_proxy.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod fault_proxy;
#[path = "support/http_server.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod http_server;
#[path = "lazy/mirrors.rs"]
mod mirrors;
#[path = "lazy/peers.rs"]
mod peers;
mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{never, settings};
use docker_registry::DockerRegistry;
use fault_proxy::forward;
use hostagent::image::remote;
use hostagent::lazy::Clients;
use hostagent::lazy::start::{self, Started};
use hostagent::peer::RangeClient;
use hostagent::registry::Client;
use hostagent::registry::credentials::CredentialStore;
use hostagent::store::{Lease, Store, StoredImage};
use http_server::{Fault, Reply, Server};
use libtest_mimic::{Arguments, Failed, Trial};
use support::{Layout, Mote, Stored, layer, noise, read_record, write_record};
use vmm::fetch;

type Test = (&'static str, fn() -> Result<(), Failed>);

const TESTS: &[Test] = &[
    (
        "an_image_is_pushed_with_its_source_and_again_without_an_upload",
        push_twice,
    ),
    (
        "what_was_pushed_can_be_pulled_by_whoever_knows_nothing_of_it",
        pulled_as_ever,
    ),
    (
        "what_the_vmm_asks_for_comes_before_the_rest_and_all_comes_in_the_end",
        on_demand,
    ),
    ("what_earlier_starts_read_is_fetched_first", accesses),
    (
        "a_fetch_that_was_cut_off_goes_on_in_the_next_start",
        goes_on,
    ),
    (
        "wrong_bytes_are_no_answer_and_a_registry_that_stalls_is_an_error",
        harm,
    ),
    (
        "a_vmm_that_asks_for_what_is_not_there_is_answered_no_more",
        hostile_vmm,
    ),
    ("a_converted_image_of_something_else_is_not_used", not_ours),
    (
        "a_converted_image_that_is_not_accepted_is_not_used",
        refused,
    ),
    (
        "an_image_that_is_here_in_part_is_known_to_the_commands_about_images",
        commands,
    ),
    (
        "an_image_that_is_here_in_part_is_completed_to_be_saved_or_pushed",
        completed,
    ),
    (
        "an_image_whose_blobs_have_all_arrived_is_saved_without_its_registry",
        offline,
    ),
    (
        "what_a_registry_says_a_layer_converts_to_is_not_what_is_saved_of_it",
        lies,
    ),
    (
        "a_registry_that_lies_about_a_length_takes_no_blob_out_of_use",
        false_length,
    ),
    (
        "a_damaged_image_that_came_from_no_registry_is_asked_of_none",
        damaged,
    ),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let has = |tool: &str| {
        let mut probe = Command::new(tool);
        probe.arg("--version").stdin(Stdio::null());
        let probe = probe.stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok()
    };
    let missing = !has("docker-registry") || !has("skopeo");
    if missing {
        println!(
            "ignored: docker-registry or skopeo is not installed; `cargo xtask test` installs them"
        );
    }
    let tests = TESTS.iter().chain(mirrors::TESTS).chain(peers::TESTS);
    let trials = tests.map(|(name, test)| Trial::test(*name, test).with_ignored_flag(missing));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

const GROUP: u64 = 16 << 10;

fn layers() -> Vec<Vec<u8>> {
    (0..2)
        .map(|seed| layer(&[("data", &noise(seed + 30, 6_000_000))]))
        .collect()
}

/// A registry with an image that was pushed to it, and the store it was pushed from.
struct Pushed {
    registry: DockerRegistry,
    mote: Mote,
    name: String,
}

fn pushed() -> Result<Pushed, Failed> {
    let registry = DockerRegistry::plain()?;
    let name = format!("{}/team/app:v1", registry.host());
    let layout = Layout::with_image(&layers(), Stored::Gzip, &name);
    let mote = Mote::new();
    mote.load(&layout.reference(&name));
    let run = mote.run(&["push", "--format", "json", &name]).expect(0);
    assert!(
        run.json()[0]["blobs_uploaded"].as_u64().unwrap() > 8,
        "{run:?}"
    );
    Ok(Pushed {
        registry,
        mote,
        name,
    })
}

/// Another node, which knows nothing yet.
struct Node {
    store: Arc<Store>,
    client: Arc<Client>,
    peers: Option<Arc<RangeClient>>,
    told: Arc<Mutex<Vec<String>>>,
    mote: Mote,
}

impl Node {
    fn new(host: &str) -> Self {
        Self::mirrored(host, &[])
    }

    /// One that asks these for what `host` has.
    fn mirrored(host: &str, mirrors: &[&Server]) -> Self {
        let mote = Mote::new();
        let mut settings = settings(&[host]);
        settings.download.attempts = 2;
        settings.download.stall = Duration::from_secs(2);
        let mirrors = mirrors.iter().map(|mirror| mirror.url("/").parse());
        let registry = settings.registries.get_mut(host).unwrap();
        registry.mirrors = mirrors.map(Result::unwrap).collect();
        Self {
            store: Arc::new(Store::open(mote.root.path()).unwrap()),
            client: Arc::new(Client::new(settings, CredentialStore::empty()).unwrap()),
            peers: None,
            told: Arc::default(),
            mote,
        }
    }

    /// Finds the image in its registry and records it.
    fn record(&self, name: &str, lease: &Lease) -> Result<StoredImage, Failed> {
        let resolved = remote::resolve(&self.client, &name.parse()?, &never())?;
        let source = remote::image(&self.client, &resolved, &never())?;
        let lazy = start::find(&self.client, &source, &|_| Ok(()), &never(), &|_| {})?;
        let lazy = lazy.ok_or("there is no converted image")?;
        let image = self.store.describe_lazy(&source, &lazy);
        self.store.record_lazy(&source, &image, &lazy, lease)?;
        Ok(image)
    }

    fn clients(&self) -> Clients {
        Clients {
            registries: Arc::clone(&self.client),
            peers: self.peers.clone(),
        }
    }

    fn start(&self, image: &StoredImage) -> Result<Started, Failed> {
        let repository = image.sources[0].repository();
        let lazy = self.store.lazy_image(image.id, repository)?;
        let lazy = lazy.ok_or("it is not recorded")?;
        let told = Arc::clone(&self.told);
        let tell = move |error: &hostagent::lazy::fetch::FetchError| {
            told.lock().unwrap().push(format!("{error:?}"));
        };
        let started = start::start(
            &self.store,
            &self.clients(),
            image,
            &lazy,
            &never(),
            Box::new(tell),
        );
        Ok(started?)
    }
}

/// The VMM's side of a disk.
struct Vmm {
    socket: UnixStream,
    files: Vec<(File, u64)>,
    next: u32,
}

impl Vmm {
    fn of(started: &Started) -> Self {
        let socket = started.disk.source.as_ref().expect("a part is missing");
        let socket = UnixStream::from(socket.try_clone().unwrap());
        // A bound against hanging, not a measurement.
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let files = started.disk.extents.iter().map(|extent| {
            let file = extent.file.as_fd().try_clone_to_owned().unwrap();
            (File::from(file), extent.length_bytes)
        });
        Self {
            socket,
            files: files.collect(),
            next: 0,
        }
    }

    fn ask(&mut self, extent: u32, first_group: u64, groups: u32) -> u32 {
        let id = self.next;
        self.next += 1;
        let request = fetch::Request {
            id,
            extent,
            first_group,
            groups,
        };
        self.socket.write_all(&request.encode()).unwrap();
        id
    }

    fn answer(&mut self) -> Option<fetch::Reply> {
        let mut bytes = [0; 64];
        let count = self.socket.read(&mut bytes).ok()?;
        fetch::Reply::decode(&bytes[..count])
    }

    /// Asks for groups and waits.
    fn fetch(&mut self, extent: u32, first_group: u64, groups: u32) -> bool {
        let id = self.ask(extent, first_group, groups);
        let reply = self.answer().expect("an answer");
        assert_eq!(reply.id, id);
        reply.present
    }

    fn bytes(&self, extent: usize, first_group: u64, groups: u64) -> Vec<u8> {
        let (file, length) = &self.files[extent];
        let start = first_group * GROUP;
        let mut bytes = vec![0; (length.min(&(start + groups * GROUP)) - start) as usize];
        file.read_exact_at(&mut bytes, start).unwrap();
        bytes
    }
}

/// The disk as it is where the image was loaded.
fn original(mote: &Mote) -> Vec<Vec<u8>> {
    let store = Store::open(mote.root.path()).unwrap();
    let image = store.images().unwrap().remove(0);
    let merged = store.merged(&image.diff_ids).unwrap();
    let layers = merged.layers.iter().map(|layer| &layer.blob);
    let blobs = std::iter::once(&merged.metadata).chain(layers);
    let read = |blob: &hostagent::store::Blob| {
        let mut bytes = Vec::new();
        blob.read_all(|piece| {
            bytes.extend_from_slice(piece);
            true
        })
        .unwrap();
        bytes
    };
    blobs.map(read).collect()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1200 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what} did not come about in a minute");
}

fn push_twice() -> Result<(), Failed> {
    let Pushed {
        mote,
        name,
        registry: _registry,
    } = pushed()?;
    let again = mote
        .run(&["push", "--format", "json", &name])
        .expect(0)
        .json()
        .remove(0);
    assert_eq!(again["blobs_uploaded"], 0, "{again}");
    mote.run(&["push", "none:v1"])
        .expect_failure(&["no such image"]);
    let run = mote.run(&["push", &name]).expect(0);
    assert!(run.stdout.contains("v1: digest: sha256:"), "{run:?}");
    Ok(())
}

fn pulled_as_ever() -> Result<(), Failed> {
    let Pushed {
        mote,
        name,
        registry,
    } = pushed()?;
    let other = Mote::new();
    other.run(&["pull", &name]).expect(0);
    let inspect = |mote: &Mote| {
        let run = mote.run(&["image", "inspect", "--format", "json", &name]);
        run.expect(0).json().remove(0)
    };
    // The registry has the manifest; the tag it has only now.
    let again = name.replace(":v1", ":v2");
    other.run(&["tag", &name, &again]).expect(0);
    other.run(&["push", &again]).expect(0);
    Mote::new().run(&["pull", &again]).expect(0);
    for key in ["Id", "RootFS", "Config"] {
        assert_eq!(inspect(&mote)[key], inspect(&other)[key]);
    }
    assert_eq!(
        inspect(&mote)["Store"]["Layers"],
        inspect(&other)["Store"]["Layers"]
    );
    // By another tool, too.
    let directory = tempfile::tempdir()?;
    let mut skopeo = Command::new("skopeo");
    skopeo.args([
        "copy",
        "--src-tls-verify=false",
        &format!("docker://{name}"),
    ]);
    skopeo.arg(format!("oci:{}:v1", directory.path().display()));
    let output = skopeo.output()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    drop(registry);
    Ok(())
}

fn on_demand() -> Result<(), Failed> {
    let Pushed {
        registry,
        mote,
        name,
    } = pushed()?;
    let expected = original(&mote);
    let node = Node::new(&registry.host());
    let lease = node.store.lease()?;
    let image = node.record(&name, &lease)?;
    assert_eq!(node.store.images()?.len(), 1);
    node.store.merged(&image.diff_ids).unwrap_err();
    let started = node.start(&image)?;
    let mut vmm = Vmm::of(&started);
    // The superblock, something in the middle of the last layer, the end of the first.
    let end = (expected[1].len() as u64).div_ceil(GROUP);
    for (extent, first, groups) in [(0, 0, 1), (2, 200, 3), (1, end - 2, 2), (2, 0, 40)] {
        assert!(vmm.fetch(extent, first, groups));
        let whole = &expected[extent as usize];
        let start = (first * GROUP) as usize;
        let stop = whole.len().min(start + groups as usize * GROUP as usize);
        assert!(vmm.bytes(extent as usize, first, groups.into()) == whole[start..stop]);
    }
    // Nobody collects what is not all here.
    node.store.collect()?;
    assert!(vmm.fetch(1, 0, 2));
    let partial = node.store.root().join("partial");
    // Whoever starts up has the connection to itself.
    let server = started.server.as_ref().ok_or("a part is missing")?;
    assert!(server.fetched_bytes().load(Ordering::Relaxed) < 2 << 20);
    server.start_up().begun();
    server.start_up().over();
    wait_until("the rest", || {
        std::fs::read_dir(&partial).unwrap().count() == 0
    });
    drop((started, vmm));
    let report = node.store.verify_all(&())?.ok_or("nobody has stopped it")?;
    assert!(
        report.wrong.is_empty() && report.broken.is_empty(),
        "{report:?}"
    );
    // What the registry says a layer converts to is believed for this image alone.
    node.store.merged(&image.diff_ids).unwrap_err();
    assert!(node.store.layer(image.diff_ids[0])?.is_none());
    // From now on nothing is fetched.
    let again = node.start(&image)?.server;
    let missing = again.map(|server| format!("{:?}", server.partials()));
    assert_eq!(missing, None);
    assert!(node.told.lock().unwrap().is_empty(), "{:?}", node.told);
    Ok(())
}

fn accesses() -> Result<(), Failed> {
    let Pushed {
        registry,
        mote,
        name,
    } = pushed()?;
    let host = registry.host();
    let read = |node: &Node, ranges: &[(u32, u64, u32)]| -> Result<StoredImage, Failed> {
        let lease = node.store.lease()?;
        let image = node.record(&name, &lease)?;
        let started = node.start(&image)?;
        let mut vmm = Vmm::of(&started);
        for (extent, first, groups) in ranges {
            assert!(vmm.fetch(*extent, *first, *groups));
        }
        drop(started);
        Ok(image)
    };
    let node = Node::new(&host);
    let image = read(&node, &[(2, 300, 2), (2, 302, 1), (0, 0, 1)])?;
    let kept = || -> Vec<_> {
        let kept = node.store.accesses(image.id).into_iter();
        kept.map(|one| (one.blob, one.first_group, one.groups))
            .collect()
    };
    assert_eq!(kept(), [(2, 300, 3), (0, 0, 1)]);
    // One that reads something else takes nothing away.
    let started = node.start(&image)?;
    assert!(Vmm::of(&started).fetch(2, 200, 1));
    drop(started);
    assert_eq!(kept(), [(2, 300, 3), (0, 0, 1), (2, 200, 1)]);
    // Pushed, they are known elsewhere; and a start there asks the registry for them first.
    let source = Store::open(mote.root.path()).unwrap();
    source.keep_accesses(image.id, &node.store.accesses(image.id))?;
    mote.run(&["push", &name]).expect(0);
    let address = registry.address;
    let server = Server::start(move |request| forward(address, request));
    let other = Node::new(&server.host());
    let lease = other.store.lease()?;
    let there = name.replace(&host, &server.host());
    // The artifact that was pushed last is listed last; both are of one image.
    let resolved = remote::resolve(&other.client, &there.parse()?, &never())?;
    let found = remote::image(&other.client, &resolved, &never())?;
    let all = start::find(&other.client, &found, &|_| Ok(()), &never(), &|_| {})?;
    let lazy = all.ok_or("no converted image")?;
    assert!(
        !lazy.converted.accesses.is_empty(),
        "the latest push is the one to use"
    );
    let image = other.store.describe_lazy(&found, &lazy);
    other.store.record_lazy(&found, &image, &lazy, &lease)?;
    let started = other.start(&image)?;
    wait_until("two ranges", || ranges(&server) >= 2);
    drop(started);
    let seen = server.seen().into_iter();
    let asked = seen.filter_map(|request| request.header("range").map(str::to_owned));
    // Two at a time, so that it may be overtaken by one.
    let first: Vec<String> = asked.take(2).collect();
    assert!(
        first.iter().any(|range| range == "bytes=4915200-4964351"),
        "{first:?}"
    );
    Ok(())
}

fn ranges(server: &Server) -> usize {
    server
        .seen()
        .iter()
        .filter(|request| request.header("range").is_some())
        .count()
}

fn goes_on() -> Result<(), Failed> {
    let Pushed { registry, name, .. } = pushed()?;
    let address = registry.address;
    // Of the last layer the registry gives one piece, and of the rest nothing.
    let (piece, given) = ("bytes=1572864-1835007", Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&given);
    let server = Server::start(move |request| match request.header("range") {
        None => forward(address, request),
        Some(range) if range == piece => {
            counted.fetch_add(1, Ordering::SeqCst);
            forward(address, request)
        }
        Some(_) => Reply::new(404, ""),
    });
    let node = Node::new(&server.host());
    let lease = node.store.lease()?;
    let name = name.replace(&registry.host(), &server.host());
    let image = node.record(&name, &lease)?;
    for _ in 0..2 {
        let started = node.start(&image)?;
        let mut vmm = Vmm::of(&started);
        assert!(vmm.fetch(2, 100, 4));
        assert!(!vmm.fetch(2, 300, 1));
    }
    assert_eq!(given.load(Ordering::SeqCst), 1);
    Ok(())
}

fn harm() -> Result<(), Failed> {
    let Pushed { registry, name, .. } = pushed()?;
    let address = registry.address;
    // What is wrong with the answers for ranges, the first and those after it, and what is
    // told of it.
    for (first, later, words) in [
        (None, None, "Corrupt"),
        (Some(Fault::NoAnswer), Some(Fault::NoAnswer), "Request"),
        (
            Some(Fault::StallAfter(0)),
            Some(Fault::StallAfter(0)),
            "Stalled",
        ),
        (
            Some(Fault::StallAfter(20_000)),
            Some(Fault::StallAfter(0)),
            "Stalled",
        ),
    ] {
        let asked = AtomicUsize::new(0);
        let server = Server::start(move |request| {
            let mut reply = forward(address, request);
            if request.header("range").is_none() {
                return reply;
            }
            let fault = match asked.fetch_add(1, Ordering::Relaxed) {
                0 => first,
                _ => later,
            };
            if let Some(fault) = fault {
                return reply.fault(fault);
            }
            let middle = reply.body.len() / 2;
            reply.body[middle] ^= 4;
            reply
        });
        let node = Node::new(&server.host());
        let lease = node.store.lease()?;
        let image = node.record(&name.replace(&registry.host(), &server.host()), &lease)?;
        let started = node.start(&image)?;
        let mut vmm = Vmm::of(&started);
        assert!(!vmm.fetch(2, 50, 2), "{words}");
        let second = vmm.bytes(2, 51, 1);
        assert!(second.iter().all(|byte| *byte == 0), "{words}");
        drop(started);
        let told = node.told.lock().unwrap().join("\n");
        assert!(told.contains(words), "{told}");
    }
    Ok(())
}

fn hostile_vmm() -> Result<(), Failed> {
    let Pushed { registry, name, .. } = pushed()?;
    let address = registry.address;
    // Nothing arrives, so that there is always something to ask for.
    let server = Server::start(move |request| match request.header("range") {
        None => forward(address, request),
        Some(_) => Reply::new(404, ""),
    });
    let node = Node::new(&server.host());
    let lease = node.store.lease()?;
    let name = name.replace(&registry.host(), &server.host());
    let image = node.record(&name, &lease)?;
    for (extent, first, groups) in [(3, 0, 1), (0, 1 << 40, 1), (1, u64::MAX, 1), (1, 0, 1024)] {
        let started = node.start(&image)?;
        let mut vmm = Vmm::of(&started);
        vmm.ask(extent, first, groups);
        assert_eq!(vmm.answer(), None);
    }
    Ok(())
}

fn not_ours() -> Result<(), Failed> {
    let Pushed {
        registry,
        mote,
        name,
    } = pushed()?;
    // Another image under the same name: nothing was pushed beside it.
    let other = Layout::with_image(&layers()[..1], Stored::Gzip, &name);
    mote.load(&other.reference(&name));
    let pushing = common::client(&registry.host());
    let repository = common::repository(&registry.host(), "team/app");
    let run = mote.run(&["push", "--format", "json", &name]).expect(0);
    let artifact = run.json()[0]["artifact"].as_str().unwrap().to_owned();
    let reference = hostagent::registry::Reference::Digest(artifact.parse()?);
    let fetched = pushing.manifest(&repository, &reference, 1 << 20, &common::go_on)?;
    // Its configuration says which image it is of; the subject is made to be another.
    let third = Layout::with_image(&layers()[1..], Stored::Gzip, &name);
    mote.load(&third.reference(&name));
    let digest = mote
        .run(&["push", "--format", "json", &name])
        .expect(0)
        .json()[0]["digest"]
        .clone();
    let mut manifest: serde_json::Value = serde_json::from_slice(&fetched.bytes)?;
    let resolved = remote::resolve(&pushing, &name.parse()?, &never())?;
    manifest["subject"]["digest"] = digest;
    manifest["subject"]["size"] = serde_json::json!(resolved.document.bytes.len());
    let bytes = manifest.to_string().into_bytes();
    let by_digest =
        hostagent::registry::Reference::Digest(hostagent::image::digest::Digest::of(&bytes));
    pushing.push_manifest(
        &repository,
        &by_digest,
        &bytes,
        common_manifest(),
        &common::go_on,
    )?;
    let node = Node::new(&registry.host());
    let source = remote::image(
        &node.client,
        &remote::resolve(&node.client, &name.parse()?, &never())?,
        &never(),
    )?;
    let notes = Mutex::new(Vec::new());
    let note = |text: &str| notes.lock().unwrap().push(text.to_owned());
    let found = start::find(&node.client, &source, &|_| Ok(()), &never(), &note)?;
    let id = source.config_document.digest;
    assert_eq!(found.map(|lazy| lazy.converted.image), Some(id));
    assert!(
        notes
            .lock()
            .unwrap()
            .iter()
            .any(|note| note.contains("another")),
        "{notes:?}"
    );
    Ok(())
}

fn refused() -> Result<(), Failed> {
    let Pushed { registry, name, .. } = pushed()?;
    let node = Node::new(&registry.host());
    let resolved = remote::resolve(&node.client, &name.parse()?, &never())?;
    let source = remote::image(&node.client, &resolved, &never())?;
    let notes = Mutex::new(Vec::new());
    let note = |text: &str| notes.lock().unwrap().push(text.to_owned());
    let refuse = |_| Err("it is not signed".to_owned());
    let found = start::find(&node.client, &source, &refuse, &never(), &note)?;
    assert!(found.is_none());
    assert!(
        notes.lock().unwrap()[0].contains("it is not signed"),
        "{notes:?}"
    );
    Ok(())
}

/// A node that has recorded the image and fetched a little of it.
fn in_part(registry: &DockerRegistry, name: &str) -> Result<(Node, StoredImage), Failed> {
    let node = Node::new(&registry.host());
    let lease = node.store.lease()?;
    let image = node.record(name, &lease)?;
    let started = node.start(&image)?;
    assert!(Vmm::of(&started).fetch(2, 100, 4));
    drop(started);
    Ok((node, image))
}

fn saved(mote: &Mote, name: &str) -> Vec<u8> {
    let output = mote.command(&["save", name]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    output.stdout
}

fn commands() -> Result<(), Failed> {
    let Pushed {
        registry,
        mote,
        name,
    } = pushed()?;
    let (node, image) = in_part(&registry, &name)?;
    // None of this asks the registry.
    drop(registry);
    assert_eq!(node.mote.images(), std::slice::from_ref(&name));
    let ask = |mote: &Mote, command: &[&str]| {
        let run = mote.run(&[&["image"], command, &["--format", "json", &name]].concat());
        run.expect(0).json()
    };
    let (here, there) = (ask(&node.mote, &["inspect"]), ask(&mote, &["inspect"]));
    for key in ["Id", "RootFS", "Config", "Size", "RepoTags"] {
        assert_eq!(here[0][key], there[0][key], "{key}");
    }
    let (stored, original) = (&here[0]["Store"], &there[0]["Store"]);
    assert_eq!(stored["Layers"], original["Layers"]);
    let missing = stored["MissingBytes"].as_u64().unwrap();
    assert!(missing > 0 && missing < image.bytes, "{stored}");
    let repository = image.sources[0].repository();
    assert_eq!(stored["ConvertedBy"], repository);
    assert!(original.get("ConvertedBy").is_none(), "{original}");
    assert_eq!(ask(&node.mote, &["history"]), ask(&mote, &["history"]));

    let run = node
        .mote
        .run(&["system", "df", "--format", "json"])
        .expect(0);
    assert!(run.json()[0]["SizeBytes"].as_u64().unwrap() > 0, "{run:?}");
    node.mote.run(&["tag", &name, "mine:v1"]).expect(0);
    node.mote.run(&["image", "prune", "-f"]).expect(0);
    assert_eq!(node.mote.images().len(), 2);
    node.mote.run(&["store", "verify"]).expect(0);
    // Without its record nobody knows where the rest is.
    let record = {
        let mut records = std::fs::read_dir(node.mote.root.path().join("lazy"))?;
        records.next().ok_or("no record")??.path()
    };
    let kept = std::fs::read(&record)?;
    std::fs::write(&record, &kept[1..])?;
    let run = node.mote.run(&["store", "verify"]);
    assert!(run.code != Some(0), "{run:?}");
    assert!(run.stdout.contains(&format!("Broken: {name}")), "{run:?}");
    std::fs::write(&record, kept)?;
    node.mote.run(&["rmi", &name]).expect(0);
    node.mote.run(&["rmi", "mine:v1"]).expect(0);
    for directory in ["blobs", "partial", "lazy", "accesses", "content/sha256"] {
        let left = std::fs::read_dir(node.mote.root.path().join(directory))?;
        assert_eq!(left.count(), 0, "{directory}");
    }
    Ok(())
}

fn completed() -> Result<(), Failed> {
    let Pushed {
        registry,
        mote,
        name,
    } = pushed()?;
    let expected = saved(&mote, &name);
    let (node, image) = in_part(&registry, &name)?;
    // Its configuration alone is asked for where the image is as it was.
    let config = node.store.root().join("content/sha256");
    support::flip_bit(&config.join(image.id.hex()));
    assert!(saved(&node.mote, &name) == expected);
    node.mote.assert_consistent();
    // It is one that this machine has converted now.
    node.store.merged(&image.diff_ids)?;

    let (other, _) = in_part(&registry, &name)?;
    let run = other
        .mote
        .run(&["push", "--format", "json", &name])
        .expect(0);
    // Only what this node's start has read is new.
    let uploaded = &run.json()[0]["blobs_uploaded"];
    assert!(uploaded.as_u64().unwrap() <= 1, "{run:?}");

    let (third, image) = in_part(&registry, &name)?;
    drop(registry);
    third
        .mote
        .run(&["save", "-o", "/dev/null", &name])
        .expect_failure(&["is here in part", &format!("mote pull {name}")]);
    third.store.merged(&image.diff_ids).unwrap_err();
    Ok(())
}

fn offline() -> Result<(), Failed> {
    let Pushed {
        registry,
        mote,
        name,
    } = pushed()?;
    let node = Node::new(&registry.host());
    let lease = node.store.lease()?;
    let image = node.record(&name, &lease)?;
    let started = node.start(&image)?;
    let server = started.server.as_ref().ok_or("a part is missing")?;
    server.start_up().begun();
    server.start_up().over();
    let partial = node.store.root().join("partial");
    wait_until("the rest", || {
        std::fs::read_dir(&partial).unwrap().count() == 0
    });
    drop((started, registry));
    node.mote.run(&["tag", &name, "mine:v1"]).expect(0);
    assert!(!saved(&node.mote, "mine:v1").is_empty());
    assert!(saved(&node.mote, &name) == saved(&mote, &name));
    Ok(())
}

fn lies() -> Result<(), Failed> {
    let Pushed {
        registry,
        mote,
        name,
    } = pushed()?;
    let expected = saved(&mote, &name);
    let (node, image) = in_part(&registry, &name)?;
    // As a registry would have it that says the first layer is what the second one is.
    let record = std::fs::read_dir(node.store.root().join("lazy"))?.next();
    let record = record.ok_or("there is no record")??.path();
    let mut lazy = read_record(&record);
    for part in ["blob", "skeleton"] {
        lazy["converted"]["layers"][0][part] = lazy["converted"]["layers"][1][part].clone();
    }
    write_record(&record, &lazy);
    let output = node.mote.command(&["save", &name]).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("is not used"), "{errors}");
    assert!(output.stdout == expected);
    let layers = node.store.merged(&image.diff_ids)?.layers;
    let theirs = Store::open(mote.root.path())?
        .merged(&image.diff_ids)?
        .layers;
    for (one, other) in layers.iter().zip(&theirs) {
        assert_eq!(one.blob.identity, other.blob.identity);
    }
    Ok(())
}

fn false_length() -> Result<(), Failed> {
    let Pushed { registry, name, .. } = pushed()?;
    for difference in [-1_i64, 1 << 20] {
        let node = Node::new(&registry.host());
        let lease = node.store.lease()?;
        let image = node.record(&name, &lease)?;
        // Another image has the first layer.
        let layout = Layout::with_image(&layers()[..1], Stored::Gzip, "docker.io/library/a:b");
        node.mote.load(&layout.reference("docker.io/library/a:b"));
        let record = std::fs::read_dir(node.store.root().join("lazy"))?.next();
        let record = record.ok_or("there is no record")??.path();
        let mut lazy = read_record(&record);
        let bytes = &mut lazy["converted"]["layers"][0]["blob"]["bytes"];
        *bytes = (bytes.as_i64().ok_or("no length")? + difference).into();
        write_record(&record, &lazy);
        let error = node.start(&image).err().ok_or("it was believed")?;
        let message = error.message().unwrap_or_default().to_owned();
        assert!(message.contains("says that blob"), "{message}");
        let report = node.store.verify_all(&())?.ok_or("nobody has stopped it")?;
        assert!(report.wrong.is_empty(), "{:?}", report.wrong);
        node.store.merged(&image.diff_ids[..1])?;
    }
    Ok(())
}

fn damaged() -> Result<(), Failed> {
    let Pushed {
        registry,
        mote,
        name,
    } = pushed()?;
    let id = mote.run(&["images", "-q", "--no-trunc"]).expect(0).stdout;
    // What is made of the layers is made again by whatever needs it; a layer is not.
    let blob = mote.layer_blob(hostagent::image::digest::Digest::of(&layers()[1]));
    std::fs::remove_dir_all(&blob)?;
    mote.install_idle();
    for reference in [&name, id.trim()] {
        mote.run(&["run", reference])
            .expect_failure(&["missing from the store", "mote load"]);
    }
    // One that was pulled is pulled again, by whatever name it is asked for.
    mote.run(&["pull", &name]).expect(0);
    std::fs::remove_dir_all(&blob)?;
    mote.run(&["tag", &name, "mine:v1"]).expect(0);
    let run = mote.run(&["run", "mine:v1"]);
    assert!(run.stderr.contains("completing it"), "{run:?}");
    mote.assert_consistent();
    drop(registry);
    Ok(())
}

fn common_manifest() -> &'static str {
    hostagent::registry::OCI_MANIFEST
}
