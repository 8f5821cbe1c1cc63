//! Devices that `mote run` gives no workload, with a Linux guest: its root on
//! virtio-pmem, its console on virtio-console.

#[path = "../../guest-images/erofs/tests/support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::installed;
use jail::{Jail, Jailed};
use outboard::Builder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use serde_json::json;
use support::tools;
use vmm::spec::{SPEC_VERSION, VmSpec};

/// Longer than a start takes, and what else a test waits for.
const PATIENCE: Duration = Duration::from_secs(120);
/// The size of a huge page: what DAX maps at once.
const PMEM_ALIGNMENT: usize = 2 << 20;

/// A file system with these programs of the host, and all they are linked with.
fn root_with(programs: &[&str]) -> File {
    let mut files: BTreeSet<PathBuf> = BTreeSet::new();
    for program in programs {
        let path = Path::new("/bin").join(program);
        let linked = Command::new("ldd").arg(&path).output().expect("ldd runs");
        let linked = String::from_utf8(linked.stdout).expect("ldd prints text");
        let libraries = linked
            .split_whitespace()
            .filter(|word| word.starts_with('/'));
        files.extend(libraries.map(PathBuf::from));
        files.insert(path);
    }
    let mut tar = support::tar_builder::TarBuilder::new();
    for directory in ["dev", "proc"] {
        tar = tar.directory(directory, 0o755);
    }
    for file in &files {
        let content = std::fs::read(file).expect("the host has its own programs");
        let name = file.strip_prefix("/").expect("the path is absolute");
        let header = support::tar_builder::Header {
            path: name.as_os_str().as_bytes(),
            mode: 0o755,
            data: &content,
            ..Default::default()
        };
        tar = tar.add(&header);
    }
    let mut disk = tools::disk_of(&[tools::blob_of(&tar.finish())]);
    disk.resize(disk.len().next_multiple_of(PMEM_ALIGNMENT), 0);
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(&disk).expect("there is room");
    file
}

/// A guest with a terminal.
struct Guest {
    keyboard: PipeWriter,
    screen: BufReader<PipeReader>,
    control: OwnedFd,
    vmm: Jailed,
}

impl Guest {
    /// Boots mote's kernel with `root` as its root file system and `script` for its
    /// init, on a terminal of 80 by 25 characters.
    fn start(root: &File, script: &str) -> Self {
        let mut passed: Vec<OwnedFd> = Vec::new();
        let mut pass = |descriptor: OwnedFd| {
            let number = descriptor.as_raw_fd();
            passed.push(descriptor);
            number
        };
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        let kernel = File::open(installed("vmlinux")).expect("mote is installed");
        let outboard = tempfile::tempfile().expect("a temporary file");
        let tree = outboard.try_clone().expect("a descriptor");
        let built = Builder::new(tree).build(&kernel).expect("there is room");
        let (input, keyboard) = std::io::pipe().expect("a pipe");
        let (screen, output) = std::io::pipe().expect("a pipe");
        let flags = SocketFlags::CLOEXEC;
        let (control, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("sockets");
        let length = root.metadata().expect("a file").len();
        let root = root.try_clone().expect("a descriptor");
        let command_line = format!(
            "console=hvc0 quiet panic=-1 reboot=k pci=off root=/dev/pmem0 rootwait ro rootfstype=erofs \
             rootflags=dax=always init=/bin/sh -- -c \"{script}\""
        );
        let spec = json!({
            "version": SPEC_VERSION,
            "kvm": pass(kvm.expect("KVM").into()),
            "vcpus": 1,
            "memory_bytes": 256 << 20,
            "boot": {
                "kernel": {
                    "hash": built.hash,
                    "file": pass(kernel.into()),
                    "outboard": pass(outboard.into()),
                },
                "command_line": command_line,
            },
            "pmem": [{ "file": pass(root.into()), "length_bytes": length, "read_only": true }],
            "consoles": [{
                "input": pass(input.into()),
                "output": pass(output.into()),
                "columns": 80,
                "rows": 25,
            }],
            "control": pass(theirs),
        });
        let text = spec.to_string();
        let spec: VmSpec = serde_json::from_value(spec).expect("the spec is one");
        let memory = memfd_create("spec", MemfdFlags::CLOEXEC).expect("a file in memory");
        let mut file = File::from(memory);
        file.write_all(text.as_bytes()).expect("there is room");
        file.rewind().expect("a file");
        let number = pass(file.into());
        let program = File::open(installed("../../bin/mote-vmm")).expect("mote is installed");
        let null = File::options().read(true).write(true).open("/dev/null");
        let null = null.expect("/dev/null");
        let errors = std::io::stderr().as_fd().try_clone_to_owned();
        let errors = errors.expect("a descriptor");
        let arguments = ["mote-vmm", "--spec-fd", &number.to_string()];
        let vmm = Jail {
            program: program.as_fd(),
            arguments: arguments.map(|text| CString::new(text).unwrap()).to_vec(),
            standard: [null.as_fd(), null.as_fd(), errors.as_fd()],
            descriptors: passed.iter().map(AsFd::as_fd).collect(),
            limits: vmm::limits::of(&spec, number),
            namespaces: None,
            cgroup: None,
            dies_with_parent: true,
        }
        .spawn()
        .expect("mote-vmm starts");
        Self {
            keyboard,
            screen: BufReader::new(screen),
            control,
            vmm,
        }
    }

    /// The next line on the screen that begins with `start`; the kernel prints too.
    #[track_caller]
    fn line(&mut self, start: &str) -> String {
        let mut seen = String::new();
        loop {
            if self.screen.buffer().is_empty() {
                let mut watched = [PollFd::new(self.screen.get_ref(), PollFlags::IN)];
                let patience = Timespec::try_from(PATIENCE).expect("a short time");
                let readable = poll(&mut watched, Some(&patience));
                assert_eq!(
                    readable,
                    Ok(1),
                    "no line with {start:?} in {PATIENCE:?}, but {seen}"
                );
            }
            let mut line = String::new();
            let read = self.screen.read_line(&mut line).expect("a pipe");
            assert!(read > 0, "the guest ended before {start:?}, after {seen}");
            seen += &line;
            if line.starts_with(start) {
                return line.trim_end().to_owned();
            }
        }
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.keyboard, "{line}").expect("the VMM reads");
    }

    fn resize(&self, columns: u16, rows: u16) {
        let request = json!({
            "version": 1,
            "id": 1,
            "command": { "resize": { "device": "console0", "columns": columns, "rows": rows } },
        });
        let text = request.to_string();
        send(&self.control, text.as_bytes(), SendFlags::NOSIGNAL).expect("the VMM listens");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.vmm.kill();
        let _ = self.vmm.wait();
    }
}

#[test]
fn linux_boots_from_pmem_that_guests_share_and_has_its_terminal_resized() {
    let root = root_with(&["sh", "mount", "grep", "stty", "sleep", "cat"]);
    let script = "mount -t devtmpfs none /dev; mount -t proc none /proc; \
                  grep ^/dev/root /proc/mounts; stty size </dev/hvc0 2>&1; echo ready; \
                  read word </dev/hvc0; echo word $word; \
                  while stty size </dev/hvc0 | grep -q ^25; do sleep 0.1; done; \
                  echo size $(stty size </dev/hvc0); exec sleep 1000";
    let mut first = Guest::start(&root, script);
    let mounted = first.line("/dev/root");
    assert!(mounted.contains("dax=always"), "{mounted}");
    assert_eq!(first.line("25"), "25 80");
    first.line("ready");
    let mut second = Guest::start(&root, script);
    second.line("ready");
    first.type_line("one");
    second.type_line("other");
    assert_eq!(first.line("word"), "word one");
    assert_eq!(second.line("word"), "word other");
    first.resize(132, 43);
    assert_eq!(first.line("size"), "size 43 132");
}
