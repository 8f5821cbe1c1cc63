//! Writes the inputs that are no bytes of chance to `corpus/`, and the layer that
//! `erofs_image` damages: `cargo run --example seeds` in `fuzz/`. The others, acts
//! of drivers, were found by running their targets and are kept small by
//! `cargo fuzz cmin`.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

fn main() -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::write(root.join("everything.tar"), everything())?;
    for (target, seeds) in [
        ("tar", tars()),
        ("skeleton", skeletons()),
        ("image_archive", archives()),
        ("oci_documents", documents()),
        ("spec", specs()),
        ("control", conversations()),
        ("boot", kernels()),
        ("vhost_user", answers()),
        ("peer_messages", said_by_peers()),
        ("registry_headers", headers()),
        ("signatures", signatures()),
        ("acpi", vec![vec![0; 4], vec![0xff; 200]]),
        (
            "erofs_image",
            vec![vec![0, 0, 0], b"\x10\x00\x01\x20\x10\xff".to_vec()],
        ),
    ] {
        let directory = root.join("corpus").join(target);
        fs::create_dir_all(&directory)?;
        for (seed, number) in seeds.iter().zip(0..) {
            fs::write(directory.join(format!("seed-{number:02}")), seed)?;
        }
    }
    Ok(())
}

/// A tar stream under construction.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(mut self, kind: u8, path: &str, link: &str, data: &[u8]) -> Self {
        let mut block = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, path.as_bytes());
        put(100, b"0000755\0");
        put(108, b"0000001\0");
        put(116, b"0000002\0");
        put(124, format!("{:011o}\0", data.len()).as_bytes());
        put(136, b"14524210400\0");
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        put(329, b"0000001\0");
        put(337, b"0000003\0");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(block);
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(b'0', path, "", data)
    }

    /// Records for the next entry.
    fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut data = String::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            let length = (1..).find(|n| n.to_string().len() + rest.len() == *n);
            data += &format!("{}{rest}", length.unwrap_or_default());
        }
        self.entry(b'x', "pax", "", data.as_bytes())
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// One of everything that a blob holds.
fn everything() -> Vec<u8> {
    let mut tar = Tar::default()
        .entry(b'5', "d", "", b"")
        .pax(&[("SCHILY.xattr.user.a", "b"), ("SCHILY.xattr.user.c", "")])
        .file("f", &[1; 5000])
        .entry(b'1', "g", "f", b"")
        .entry(b'2', "s", "target", b"")
        .entry(b'3', "null", "", b"")
        .entry(b'6', "fifo", "", b"")
        .pax(&[
            ("GNU.sparse.size", "900000"),
            ("GNU.sparse.map", "0,5,800000,5"),
        ])
        .file("sparse", b"helloworld")
        .file("d/.wh.gone", b"");
    for n in 0..90 {
        tar = tar.file(&format!("d/a rather long name, to fill blocks {n}"), b"");
    }
    tar.end()
}

fn tars() -> Vec<Vec<u8>> {
    let one = |tar: Tar| [&[0, 0][..], &tar.end()].concat();
    let lower = Tar::default()
        .entry(b'5', "d", "", b"")
        .file("d/f", b"lower")
        .end();
    let upper = Tar::default()
        .file("d/.wh.f", b"")
        .file("d/.wh..wh..opq", b"")
        .end();
    let blocks = (lower.len() / 512) as u16;
    vec![
        one(Tar::default().file("f", b"hello")),
        one(Tar::default()
            .entry(b'5', "d", "", b"")
            .file("d/f", b"")
            .entry(b'1', "g", "d/f", b"")),
        one(Tar::default()
            .entry(b'2', "s", "d/f", b"")
            .entry(b'3', "null", "", b"")
            .entry(b'6', "p", "", b"")),
        one(Tar::default()
            .pax(&[
                ("path", "a/b/c"),
                ("mtime", "1700000000.5"),
                ("uid", "70000"),
            ])
            .file("x", b"1")),
        one(Tar::default()
            .pax(&[
                ("SCHILY.xattr.user.a", "b"),
                ("SCHILY.xattr.security.capability", "c"),
            ])
            .file("x", b"")),
        one(Tar::default()
            .pax(&[
                ("GNU.sparse.size", "900000"),
                ("GNU.sparse.map", "0,5,800000,5"),
            ])
            .file("sparse", b"helloworld")),
        one(Tar::default()
            .pax(&[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.name", "s"),
                ("GNU.sparse.realsize", "9000"),
            ])
            .file(
                "sparse",
                &[&b"1\n8192\n3\n"[..], &[0; 503], b"abc"].concat(),
            )),
        one(Tar::default()
            .entry(b'L', "././@LongLink", "", &[b'n'; 200])
            .file("x", b"")),
        one(Tar::default()
            .entry(b'g', "pax_global_header", "", b"16 comment=hello")
            .file("f", b"")),
        [&blocks.to_le_bytes()[..], &lower, &upper].concat(),
    ]
}

/// Tar streams, segments, and damages, by the first byte.
fn skeletons() -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> = tars()
        .iter()
        .map(|tar| [&[0], &tar[2..]].concat())
        .collect();
    let segments: [&[u8]; 5] = [
        b"\x0ahello\x00\x05",
        b"\x0ahello\x91\x4e\x00\x04tail\x00\x8f\x27",
        b"\x03\x00\x03\xfd\x3f\x00\x02",
        b"\x03\x01\x00\x01",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00",
    ];
    seeds.extend(segments.map(|segments| [&[1], segments].concat()));
    seeds.push(b"\x02\x00\x00\x00".to_vec());
    seeds.push(b"\x02\x10\x00\x01\x20\x10\xff".to_vec());
    seeds
}

const DIGEST_OF_CONFIG_NAME: &str = "config.json";

fn image_config() -> Value {
    let digest = format!("sha256:{}", "1".repeat(64));
    json!({
        "architecture": "amd64", "os": "linux", "created": "2026-11-01T00:00:00Z",
        "config": {
            "Entrypoint": ["/e"], "Cmd": ["a"], "Env": ["PATH=/bin"], "WorkingDir": "/srv",
            "User": "www-data:1", "StopSignal": "SIGQUIT", "ExposedPorts": {"80/tcp": {}},
            "Volumes": {"/data": {}}, "Labels": {"a": "b"},
        },
        "rootfs": {"type": "layers", "diff_ids": [digest]},
    })
}

fn manifest() -> Value {
    let digest = format!("sha256:{}", "2".repeat(64));
    json!({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 7},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": 9}],
    })
}

fn index() -> Value {
    let digest = format!("sha256:{}", "3".repeat(64));
    json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 5,
            "platform": {"architecture": "amd64", "os": "linux"},
            "annotations": {"org.opencontainers.image.ref.name": "latest", "io.containerd.image.name": "docker.io/library/a:b"},
        }],
    })
}

fn documents() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [image_config(), manifest(), index()]
        .iter()
        .map(|document| document.to_string().into_bytes())
        .collect();
    for text in [
        "oci:dir:tag",
        "docker-archive:file.tar:a/b:c",
        "localhost:5000/a/b_c:tag",
        "name@sha256:1111111111111111111111111111111111111111111111111111111111111111",
        "docker.io/library/redis:7",
        r#"{"schemaVersion":1,"fsLayers":[]}"#,
        r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":null}}"#,
    ] {
        all.push(text.as_bytes().to_vec());
    }
    all
}

fn archives() -> Vec<Vec<u8>> {
    let config = image_config().to_string();
    let listed = |config: &str, layer: &str| {
        json!([{"Config": config, "RepoTags": ["a:b"], "Layers": [layer]}]).to_string()
    };
    let layout = index().to_string();
    vec![
        Tar::default()
            .file(
                "manifest.json",
                listed(DIGEST_OF_CONFIG_NAME, "1/layer.tar").as_bytes(),
            )
            .file(DIGEST_OF_CONFIG_NAME, config.as_bytes())
            .file("1/layer.tar", b"")
            .end(),
        Tar::default()
            .file(DIGEST_OF_CONFIG_NAME, config.as_bytes())
            .file("1/layer.tar", b"x")
            .entry(b'2', "2/layer.tar", "../1/layer.tar", b"")
            .file(
                "manifest.json",
                listed(DIGEST_OF_CONFIG_NAME, "2/layer.tar").as_bytes(),
            )
            .end(),
        Tar::default()
            .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
            .file("index.json", layout.as_bytes())
            .end(),
    ]
}

/// Requests, answers, and a piece of a blob, by the first byte.
fn said_by_peers() -> Vec<Vec<u8>> {
    let hash = format!("blake3:{}", "1".repeat(64));
    let digest = format!("sha256:{}", "2".repeat(64));
    let blob = json!({"hash": hash, "bytes": 20_000});
    let layer = json!({"diff_id": digest, "tar_bytes": 512, "blob": blob, "skeleton": blob});
    let requests = [
        json!({"blob": {"hash": hash, "groups": [0, 64]}}),
        json!({"image": {"id": digest}}),
        json!({"image": {"name": "registry.example/app:v1"}}),
    ];
    let answers = [
        json!({"blob": {"bytes": 20_000, "has": [[0, 2], [5, 9]]}}),
        json!({"image": {"id": digest, "config_bytes": 9, "manifest_bytes": null, "layers": [layer]}}),
        json!("not_here"),
        json!({"failed": {"problem": "it is corrupt"}}),
    ];
    let kind = |kind: u8, document: &Value| [&[kind], document.to_string().as_bytes()].concat();
    let mut seeds: Vec<_> = requests.iter().map(|request| kind(0, request)).collect();
    seeds.extend(answers.iter().map(|answer| kind(1, answer)));
    let numbers = [3_u64 << 20, 60, 70].map(u64::to_le_bytes).concat();
    seeds.push([&[2], &numbers[..], &[7; 300]].concat());
    seeds
}

/// Headers of registries, by the first byte.
fn headers() -> Vec<Vec<u8>> {
    [
        (
            0,
            r#"Bearer realm="https://auth.example/token",service="s",scope="repository:a:pull""#,
        ),
        (
            0,
            "Basic realm=\"a \\\"b\\\"\", Newauth x=1\nNegotiate YWJj/+==, Basic realm=a",
        ),
        (1, "bytes 0-9/100"),
        (1, "bytes 18446744073709551614-18446744073709551614/*"),
        (2, "</v2/a/referrers/b?n=2&last=c>; rel=\"next\""),
        (2, "<//elsewhere.example/>;rel=next"),
        (
            3,
            "application/vnd.oci.image.index.v1+json; charset=utf-8\n{}",
        ),
        (
            3,
            "text/plain\n{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\"}",
        ),
    ]
    .map(|(kind, text)| [&[kind], text.as_bytes()].concat())
    .to_vec()
}

/// Payloads, signatures and keys, by the first byte.
fn signatures() -> Vec<Vec<u8>> {
    let payload = json!({
        "critical": {
            "identity": {"docker-reference": "registry.example/team/app"},
            "image": {"docker-manifest-digest": format!("sha256:{}", "4".repeat(64))},
            "type": "cosign container image signature",
        },
        "optional": {"creator": "a"},
    });
    let key = "-----BEGIN PUBLIC KEY-----\n\
               MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
               -----END PUBLIC KEY-----\n";
    [
        (0, payload.to_string()),
        (1, format!("{}==", "A".repeat(86))),
        (1, "MEUCIQ==".to_owned()),
        (2, key.to_owned()),
    ]
    .map(|(kind, text)| [&[kind], text.as_bytes()].concat())
    .to_vec()
}

/// Descriptors by what the target makes of them: 3 is /dev/null, 4 a file of 4096
/// bytes, 5 a seqpacket socket, 7 a pipe; 8 more is another one.
/// So many good answers of a vhost-user backend, and one more of each kind.
fn answers() -> Vec<Vec<u8>> {
    let answer = |request: u32, number: u64| {
        let header = [request, 5, 8].map(u32::to_ne_bytes).concat();
        [&header[..], &number.to_ne_bytes()].concat()
    };
    let requests = [
        (0, 1),
        (1, 15),
        (2, 17),
        (3, 5),
        (4, 2),
        (9, 12),
        (16, 18),
        (17, 11),
    ];
    let mut seeds: Vec<_> = requests
        .into_iter()
        .map(|(good, request)| [vec![good], answer(request, 1)].concat())
        .collect();
    seeds.push(vec![19]);
    seeds.push(
        [
            vec![0],
            answer(1, u64::MAX),
            answer(15, u64::MAX),
            answer(17, 2),
        ]
        .concat(),
    );
    seeds
}

fn specs() -> Vec<Vec<u8>> {
    // Nothing is read, so any hash will do.
    let hash = format!("blake3:{}", "0".repeat(64));
    let boot_blob =
        |file: u32, outboard: u32| json!({"hash": hash, "file": file, "outboard": outboard});
    let small = json!({
        "version": 2, "kvm": 3, "vcpus": 1, "memory_bytes": 2 << 20,
        "boot": {"kernel": boot_blob(4, 12)},
    });
    let all = json!({
        "version": 2, "kvm": 3, "vcpus": 4, "memory_bytes": 64 << 20,
        "boot": {"kernel": boot_blob(4, 12), "initrd": boot_blob(36, 44), "command_line": "console=ttyS0"},
        "serial": {"output": 2, "input": 7},
        "disks": [
            {"read_only": true, "serial": "disk", "extents": [
                {"file": 20, "offset_bytes": 0, "length_bytes": 512},
                {"file": 20, "offset_bytes": 1024, "length_bytes": 3072},
            ]},
            {"read_only": false, "extents": [{"file": 28, "offset_bytes": 0, "length_bytes": 4096}],
             "limits": {"bandwidth": {"per_second": 1, "burst": 1}, "operations": {"per_second": 9, "burst": 9}}},
        ],
        "entropy": 1, "vsock": {"guest_cid": 3, "channel": 5},
        "balloon": {"deflate_on_oom": true, "statistics": true, "free_page_reporting": true},
        "generation_id": "0123456789abcdef0123456789ABCDEF",
        "control": 13, "events": 10,
    });
    let mut with_blobs = small.clone();
    with_blobs["disks"] = json!([{"read_only": true, "source": 5, "extents": [
        {"file": 52, "offset_bytes": 0, "length_bytes": 4096,
         "blob": {"hash": hash, "outboard": 76, "partial": true}},
        {"file": 60, "offset_bytes": 0, "length_bytes": 4096,
         "blob": {"hash": hash, "outboard": 84, "blocks": 92}},
    ]}]);
    let mut with_nic = small.clone();
    with_nic["nics"] =
        json!([{"mac": "02:00:00:00:00:01", "taps": [11], "mtu": 1400, "vhost": [19]}]);
    let mut with_terminals = small.clone();
    with_terminals["consoles"] = json!([{"output": 2, "input": 7, "columns": 80, "rows": 25}]);
    with_terminals["pmem"] = json!([{"file": 4, "length_bytes": 4096, "read_only": true}]);
    let mut with_filesystem = small.clone();
    with_filesystem["filesystems"] = json!([{"tag": "home", "socket": 6}]);
    let mut with_cpuid = small.clone();
    with_cpuid["cpu_template"] = json!("x86-64-v1.1");
    with_cpuid["supported_cpuid"] = json!([
        {"leaf": 1, "eax": 1, "ebx": 2, "ecx": 3, "edx": 4},
        {"leaf": 4, "subleaf": 0, "eax": 1, "ebx": 2, "ecx": 3, "edx": 4},
    ]);
    with_cpuid["metrics"] = json!({"page": 4, "latencies": true});
    let mut not_open = small.clone();
    not_open["kvm"] = json!(8);
    [
        small,
        all,
        with_blobs,
        with_nic,
        with_terminals,
        with_filesystem,
        not_open,
        with_cpuid,
    ]
    .iter()
    .map(|spec| spec.to_string().into_bytes())
    .collect()
}

fn conversations() -> Vec<Vec<u8>> {
    let say = |commands: &[Value]| {
        let line = |(command, id): (&Value, usize)| {
            json!({"version": 1, "id": id, "command": command}).to_string()
        };
        commands
            .iter()
            .zip(1..)
            .map(line)
            .collect::<Vec<_>>()
            .join("\n")
    };
    let limits = json!({"bandwidth": {"per_second": 1, "burst": 2}});
    vec![
        [say(&[json!("pause")]), say(&[json!("status")])]
            .join("\n!c\n")
            .into_bytes(),
        say(&[
            json!("pause"),
            json!("pause"),
            json!("resume"),
            json!("status"),
        ])
        .into_bytes(),
        say(&[
            json!({"set_balloon": {"target_bytes": 4096}}),
            json!("balloon_statistics"),
        ])
        .into_bytes(),
        say(&[
            json!({"set_limits": {"device": "blk0", "limits": limits}}),
            json!("power_button"),
        ])
        .into_bytes(),
        say(&[json!({"resize": {"device": "console0", "columns": 1, "rows": 2}})]).into_bytes(),
        [say(&[json!("quit")]), "!s".to_owned()]
            .join("\n")
            .into_bytes(),
        b"!nothing\n\n{}\n[]\n{\"version\":2,\"id\":1}\n!b\n{\"id\":7}".to_vec(),
    ]
}

/// An ELF file with one segment, and a bzImage with nothing but a header.
fn kernels() -> Vec<Vec<u8>> {
    let head = |initrd: u16, flags: u8| [&initrd.to_le_bytes()[..], &[3, flags]].concat();
    let mut elf = vec![0; 64 + 56 + 16];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16..20].copy_from_slice(&[2, 0, 62, 0]);
    elf[20] = 1;
    elf[24..32].copy_from_slice(&0x10_0000_u64.to_le_bytes());
    elf[32] = 64;
    elf[52..58].copy_from_slice(&[64, 0, 56, 0, 1, 0]);
    let mut segment = vec![1, 0, 0, 0, 5, 0, 0, 0];
    for number in [120_u64, 0x10_0000, 0x10_0000, 16, 16, 8] {
        segment.extend(number.to_le_bytes());
    }
    elf[64..120].copy_from_slice(&segment);
    let mut note = elf.clone();
    note[64] = 4;
    note[120..136].copy_from_slice(b"\x04\0\0\0\0\0\0\0\x12\0\0\0Xen\0");
    let mut image = vec![0; 0x400 + 512];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    image[0x234] = 1;
    image[0x236] = 3;
    image[0x258..0x260].copy_from_slice(&0x10_0000_u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x1_0000_u32.to_le_bytes());
    vec![
        [head(0, 0), elf.clone()].concat(),
        [head(64, 1), elf, vec![0x11; 64]].concat(),
        [head(0, 0), note].concat(),
        [head(0, 0), image.clone()].concat(),
        [head(100, 1), image, vec![0x22; 100]].concat(),
    ]
}
