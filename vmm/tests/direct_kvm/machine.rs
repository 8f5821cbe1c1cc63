//! Starts `mote-vmm` as the agent does, and collects all it says.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::Duration;

use jail::{Ended, Jail, Jailed};
use outboard::{BlobHash, Builder};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Signal, pidfd_send_signal};
use vmm::event::{Event, EventKind};
use vmm::metrics;
use vmm::metrics::reader::Snapshot;
use vmm::spec::{
    BalloonSpec, BootBlobSpec, BootSpec, ConsoleSpec, Descriptor, DiskSpec, ExtentSpec,
    FilesystemSpec, LimitsSpec, MetricsSpec, NicLimitsSpec, NicSpec, PmemSpec, SPEC_VERSION,
    SerialSpec, VmSpec, VsockSpec,
};

use crate::agent::Agent;
use crate::controller::Controller;
use crate::tap::TapInterface;

const MIB: u64 = 1 << 20;
/// A guest that has not ended by then never will.
const PATIENCE: Duration = Duration::from_secs(60);
/// The guest's context id, known to the hostile vsock driver.
pub const GUEST_CID: u64 = 3;

/// Exit codes of `mote-vmm`.
pub const POWERED_OFF: i32 = 0;
pub const HOST_FAILURE: i32 = 1;
pub const WRONG_USE: i32 = 2;
pub const RESET: i32 = 3;
pub const CRASHED: i32 = 4;

/// A microVM to be started.
pub struct Machine {
    /// What `mote-vmm` is told. Its descriptors are numbers that [`Machine::pass`]
    /// has returned.
    pub spec: VmSpec,
    passed: Vec<OwnedFd>,
    console: Option<io::PipeReader>,
    events: Option<io::PipeReader>,
    input: Option<io::PipeWriter>,
    agent: Option<Agent>,
    controller: Option<Controller>,
    terminal: Option<Terminal>,
    /// Where it counts.
    metrics: File,
}

/// The other ends of a console.
pub struct Terminal {
    pub keyboard: io::PipeWriter,
    pub screen: BufReader<io::PipeReader>,
}

/// A machine that boots the probe guest with this command line. `None`, and a line
/// that says why, where there is no `/dev/kvm`.
pub fn probe(command_line: &str) -> Option<Machine> {
    let kvm = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(error) => {
            let test = std::thread::current();
            let test = test.name().unwrap_or("a test");
            // Past the test harness, which knows no skipping and shows nothing of
            // a test that passes. In one piece, as other threads print too.
            let line = format!("skipped: {test}: cannot open /dev/kvm: {error}\n");
            let _ = io::stderr().write_all(line.as_bytes());
            return None;
        }
    };
    Some(Machine::new(kvm, command_line))
}

/// The hash of a file, and a file with the hash tree over it.
pub fn hash_tree(mut file: &File) -> (BlobHash, File) {
    let outboard = memory_file(b"");
    let builder = Builder::new(outboard.try_clone().unwrap());
    file.rewind().unwrap();
    let built = builder.build(file).unwrap();
    (built.hash, outboard)
}

impl Machine {
    /// The probe guest on what pretends to be, or is, `/dev/kvm`.
    pub fn new(kvm: File, command_line: &str) -> Self {
        let no_blob = BootBlobSpec {
            hash: BlobHash::of(b""),
            file: -1,
            outboard: -1,
        };
        let spec = VmSpec {
            version: SPEC_VERSION,
            kvm: -1,
            vcpus: 1,
            cpu_template: None,
            supported_cpuid: None,
            memory_bytes: 64 * MIB,
            boot: BootSpec {
                kernel: no_blob,
                initrd: None,
                command_line: command_line.to_owned(),
            },
            serial: None,
            disks: Vec::new(),
            entropy: None,
            vsock: None,
            balloon: None,
            generation_id: None,
            control: None,
            nics: Vec::new(),
            consoles: Vec::new(),
            pmem: Vec::new(),
            metrics: None,
            filesystems: Vec::new(),
            events: None,
        };
        let mut machine = Self {
            spec,
            passed: Vec::new(),
            console: None,
            events: None,
            input: None,
            agent: None,
            controller: None,
            terminal: None,
            metrics: metrics::create().unwrap(),
        };
        machine.spec.kvm = machine.pass(kvm);
        machine.spec.boot.kernel = machine.pass_blob(memory_file(probe_guests::PROBE));
        let (reader, writer) = io::pipe().unwrap();
        let output = machine.pass(writer);
        machine.spec.serial = Some(SerialSpec {
            output,
            input: None,
        });
        machine.console = Some(reader);
        let (reader, writer) = io::pipe().unwrap();
        machine.spec.events = Some(machine.pass(writer));
        machine.events = Some(reader);
        let page = machine.metrics.try_clone().unwrap();
        machine.spec.metrics = Some(MetricsSpec {
            page: machine.pass(page),
            latencies: true,
        });
        machine
    }

    /// Lets `mote-vmm` inherit a descriptor; returns its number there.
    pub fn pass(&mut self, fd: impl Into<OwnedFd>) -> Descriptor {
        let fd = fd.into();
        let number = fd.as_raw_fd();
        self.passed.push(fd);
        number
    }

    /// The same with a file that becomes the kernel or the initrd, and its hash tree.
    pub fn pass_blob(&mut self, file: File) -> BootBlobSpec {
        let (hash, outboard) = hash_tree(&file);
        BootBlobSpec {
            hash,
            file: self.pass(file),
            outboard: self.pass(outboard),
        }
    }

    pub fn vcpus(mut self, count: u32) -> Self {
        self.spec.vcpus = count;
        self
    }

    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.spec.memory_bytes = mib * MIB;
        self
    }

    pub fn kernel(mut self, content: &[u8]) -> Self {
        self.spec.boot.kernel = self.pass_blob(memory_file(content));
        self
    }

    pub fn initrd(mut self, file: File) -> Self {
        self.spec.boot.initrd = Some(self.pass_blob(file));
        self
    }

    pub fn entropy(mut self) -> Self {
        let source = File::open("/dev/urandom").unwrap();
        self.spec.entropy = Some(self.pass(source));
        self
    }

    /// A disk made of all of `file`.
    pub fn disk(self, file: &File, read_only: bool) -> Self {
        let length = file.metadata().unwrap().len();
        self.disk_of(&[(file, 0, length)], read_only, None)
    }

    /// A disk made of ranges of files: file, offset, length.
    pub fn disk_of(
        mut self,
        extents: &[(&File, u64, u64)],
        read_only: bool,
        serial: Option<&str>,
    ) -> Self {
        let extents = extents
            .iter()
            .map(|(file, offset_bytes, length_bytes)| ExtentSpec {
                file: self.pass(file.try_clone().unwrap()),
                offset_bytes: *offset_bytes,
                length_bytes: *length_bytes,
                blob: None,
            })
            .collect();
        self.spec.disks.push(DiskSpec {
            source: None,
            read_only,
            extents,
            serial: serial.map(str::to_owned),
            limits: None,
        });
        self
    }

    /// Limits the last disk.
    pub fn limits(mut self, limits: LimitsSpec) -> Self {
        self.spec.disks.last_mut().unwrap().limits = Some(limits);
        self
    }

    /// A NIC with all queues of `tap`.
    pub fn nic(mut self, mac: &str, tap: &TapInterface) -> Self {
        let taps = tap.queues.iter().map(|queue| queue.try_clone().unwrap());
        let taps = taps.collect::<Vec<_>>();
        let taps = taps.into_iter().map(|queue| self.pass(queue)).collect();
        self.spec.nics.push(NicSpec {
            mac: mac.to_owned(),
            taps,
            mtu: None,
            vhost: Vec::new(),
            limits: None,
        });
        self
    }

    /// Limits the last NIC.
    pub fn nic_limits(mut self, limits: NicLimitsSpec) -> Self {
        self.spec.nics.last_mut().unwrap().limits = Some(limits);
        self
    }

    /// A vsock device; its other end is [`Running::agent`].
    pub fn vsock(mut self) -> Self {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let channel = self.pass(theirs);
        self.spec.vsock = Some(VsockSpec {
            guest_cid: GUEST_CID,
            channel,
        });
        self.agent = Some(Agent::new(ours));
        self
    }

    /// A control socket; its other end is [`Running::controller`].
    pub fn control(mut self) -> Self {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        self.spec.control = Some(self.pass(theirs));
        self.controller = Some(Controller::new(ours));
        self
    }

    /// A balloon with everything.
    pub fn balloon(mut self) -> Self {
        self.spec.balloon = Some(BalloonSpec {
            deflate_on_oom: true,
            statistics: true,
            free_page_reporting: true,
        });
        self
    }

    /// All of `file` as persistent memory.
    pub fn pmem(mut self, file: &File, read_only: bool) -> Self {
        let pmem = PmemSpec {
            file: self.pass(file.try_clone().unwrap()),
            length_bytes: file.metadata().unwrap().len(),
            read_only,
        };
        self.spec.pmem.push(pmem);
        self
    }

    /// A file system called `tag`, served by whoever is behind `socket`.
    pub fn filesystem(mut self, tag: &str, socket: impl Into<OwnedFd>) -> Self {
        let filesystem = FilesystemSpec {
            tag: tag.to_owned(),
            socket: self.pass(socket),
        };
        self.spec.filesystems.push(filesystem);
        self
    }

    /// A console of 80 by 25 characters; its other ends are [`Running::terminal`].
    pub fn terminal(mut self) -> Self {
        let (input, keyboard) = io::pipe().unwrap();
        let (screen, output) = io::pipe().unwrap();
        let console = ConsoleSpec {
            input: Some(self.pass(input)),
            output: self.pass(output),
            columns: 80,
            rows: 25,
        };
        self.spec.consoles.push(console);
        self.terminal = Some(Terminal {
            keyboard,
            screen: BufReader::new(screen),
        });
        self
    }

    /// A pipe into the serial port: [`Running::input`].
    pub fn serial_input(mut self) -> Self {
        let (reader, writer) = io::pipe().unwrap();
        let number = self.pass(reader);
        self.spec.serial.as_mut().unwrap().input = Some(number);
        self.input = Some(writer);
        self
    }

    /// Starts it.
    pub fn start(self) -> Running {
        let spec = serde_json::to_vec(&self.spec).unwrap();
        self.start_with(&spec)
    }

    /// Starts it with this text for its spec.
    pub fn start_with(mut self, spec: &[u8]) -> Running {
        let spec = self.pass(memory_file(spec));
        let arguments = ["mote-vmm", "--spec-fd", &spec.to_string()];
        let program = File::open(env!("CARGO_BIN_EXE_mote-vmm")).unwrap();
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        let (errors, errors_end) = io::pipe().unwrap();
        let child = Jail {
            program: program.as_fd(),
            arguments: arguments.map(|text| CString::new(text).unwrap()).to_vec(),
            standard: [null.as_fd(), null.as_fd(), errors_end.as_fd()],
            descriptors: self.passed.iter().map(AsFd::as_fd).collect(),
            limits: vmm::limits::of(&self.spec, spec),
            namespaces: None,
            cgroup: None,
            dies_with_parent: true,
        }
        .spawn()
        .unwrap();
        // Else its ends of pipes would stay open here.
        drop((self.passed, errors_end));
        watch(&child);
        Running {
            errors: collect(errors),
            events: collect(self.events.take().unwrap()),
            console: BufReader::new(self.console.take().unwrap()),
            printed: String::new(),
            input: self.input.take(),
            agent: self.agent.take(),
            controller: self.controller.take(),
            terminal: self.terminal.take(),
            metrics: self.metrics,
            child,
        }
    }

    /// Starts it and waits for its end.
    pub fn run(self) -> Outcome {
        self.start().finish()
    }
}

/// Kills `child` if it outlives all patience, so that what waits for it fails.
fn watch(child: &Jailed) {
    let pidfd = child.as_fd().try_clone_to_owned().unwrap();
    std::thread::spawn(move || {
        let mut watched = [PollFd::new(&pidfd, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).unwrap();
        if poll(&mut watched, Some(&patience)) == Ok(0) {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
    });
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        text
    })
}

/// What stands in a page of metrics.
pub fn counts(page: &File) -> Snapshot {
    let reader = metrics::reader::Reader::new(page).unwrap();
    reader.snapshot().unwrap()
}

/// A file in memory, open for reading and writing.
pub fn memory_file(content: &[u8]) -> File {
    let mut file = File::from(rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(content).unwrap();
    file.rewind().unwrap();
    file
}

/// A file in memory that nobody can shrink.
pub fn sealed_file(content: &[u8]) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("test", flags).unwrap());
    file.write_all(content).unwrap();
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    file
}

/// A file without a name where the host keeps temporary ones: on a disk, mostly,
/// unlike [`memory_file`].
pub fn stored_file(content: &[u8]) -> File {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(std::env::temp_dir(), flags, Mode::from(0o600)).unwrap();
    let mut file = File::from(file);
    file.write_all(content).unwrap();
    file
}

/// `sectors` sectors of the pattern that the guest knows by `seed`.
pub fn pattern(seed: u64, sectors: u64) -> Vec<u8> {
    let mut bytes = vec![0; sectors as usize * 512];
    probe_guests::pattern::fill(seed, 0, &mut bytes);
    bytes
}

/// A microVM that runs.
pub struct Running {
    pub child: Jailed,
    /// What the guest reads from its serial port.
    pub input: Option<io::PipeWriter>,
    agent: Option<Agent>,
    controller: Option<Controller>,
    terminal: Option<Terminal>,
    console: BufReader<io::PipeReader>,
    printed: String,
    errors: JoinHandle<String>,
    events: JoinHandle<String>,
    /// Where it counts.
    pub metrics: File,
}

impl Running {
    /// The agent's end of vsock.
    pub fn agent(&mut self) -> &mut Agent {
        self.agent.as_mut().unwrap()
    }

    /// The agent's end of the control socket.
    pub fn controller(&mut self) -> &mut Controller {
        self.controller.as_mut().unwrap()
    }

    /// The other ends of the console.
    pub fn terminal(&mut self) -> &mut Terminal {
        self.terminal.as_mut().unwrap()
    }

    /// Nobody has the console any more.
    pub fn drop_terminal(&mut self) {
        self.terminal = None;
    }

    /// The controller, to go its own way. Dropped, it closes the socket.
    pub fn take_controller(&mut self) -> Controller {
        self.controller.take().unwrap()
    }

    /// Lets the guest read one byte.
    pub fn nudge(&mut self) {
        self.input.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    /// What the guest has printed and nobody has read.
    pub fn unread_console(&mut self) -> usize {
        let unread = rustix::io::ioctl_fionread(self.console.get_ref()).unwrap();
        self.console.buffer().len() + unread as usize
    }

    /// How much the console's pipe holds at most.
    pub fn console_capacity(&self) -> usize {
        rustix::pipe::fcntl_getpipe_size(self.console.get_ref()).unwrap()
    }

    /// The agent, to go its own way. Dropped, it is a dead one.
    pub fn take_agent(&mut self) -> Agent {
        self.agent.take().unwrap()
    }

    /// Waits for the guest's next line.
    pub fn console_line(&mut self) -> String {
        let mut line = String::new();
        self.console.read_line(&mut line).unwrap();
        self.printed.push_str(&line);
        line.trim_end().to_owned()
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Outcome {
        self.console.read_to_string(&mut self.printed).unwrap();
        let ended = self.child.wait().unwrap();
        let events = self.events.join().unwrap();
        Outcome {
            code: match ended {
                Ended::Exited(code) => Some(code),
                Ended::Killed(_) => None,
            },
            console: self.printed,
            errors: self.errors.join().unwrap(),
            events: events
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect(),
        }
    }

    /// A descriptor that is readable once the process is gone.
    pub fn pidfd(&self) -> OwnedFd {
        self.child.as_fd().try_clone_to_owned().unwrap()
    }
}

/// How it ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// What the guest printed.
    pub console: String,
    /// What `mote-vmm` printed on standard error.
    pub errors: String,
    /// What it reported.
    pub events: Vec<Event>,
}

impl Outcome {
    /// The guest printed this line, the last one, and powered off; no device
    /// refused anything.
    #[track_caller]
    pub fn expect_success(&self, last_line: &str) {
        self.expect_end(last_line);
        assert_eq!(self.faults(), [""; 0], "{self:#?}");
    }

    /// The guest printed this line and powered off, after devices called `faulty`
    /// refused something, in this order.
    #[track_caller]
    pub fn expect_success_after_faults(&self, last_line: &str, faulty: &[&str]) {
        self.expect_end(last_line);
        assert_eq!(self.faults(), faulty, "{self:#?}");
    }

    #[track_caller]
    fn expect_end(&self, last_line: &str) {
        assert_eq!(self.code, Some(POWERED_OFF), "{self:#?}");
        assert_eq!(self.console.lines().last(), Some(last_line), "{self:#?}");
        assert_eq!(self.errors, "", "{self:#?}");
    }

    /// `mote-vmm` ended with `code`, and its error says all of `parts`.
    #[track_caller]
    pub fn expect_error(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for part in parts {
            assert!(self.errors.contains(part), "{part:?} is missing: {self:#?}");
        }
    }

    fn device_faults(&self) -> impl Iterator<Item = (&str, &str)> {
        self.events.iter().filter_map(|event| match &event.kind {
            EventKind::DeviceFault { device, reason } => Some((device.as_str(), reason.as_str())),
            _ => None,
        })
    }

    /// The devices that refused something.
    pub fn faults(&self) -> Vec<&str> {
        self.device_faults().map(|(device, _)| device).collect()
    }

    /// What they said it was.
    pub fn fault_reasons(&self) -> impl Iterator<Item = &str> {
        self.device_faults().map(|(_, reason)| reason)
    }

    /// The kinds of its events, in order.
    pub fn event_kinds(&self) -> Vec<&EventKind> {
        self.events.iter().map(|event| &event.kind).collect()
    }
}

/// Waits until `fd` is readable, and fails when all patience is gone.
#[track_caller]
pub fn wait_readable(fd: impl AsFd) {
    let mut watched = [PollFd::new(&fd, PollFlags::IN)];
    let patience = Timespec::try_from(PATIENCE).unwrap();
    assert_eq!(poll(&mut watched, Some(&patience)), Ok(1));
}
