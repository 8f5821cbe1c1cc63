//! `mote run`.

pub mod boundary;
mod env;
mod identity;
mod image;
mod limits;
mod machine;
mod messages;
mod observer;
mod timing;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{ArgAction, Args};
use hostagent::assets::Assets;
use hostagent::disk;
use hostagent::guest::{self, Streams, Timeline};
use hostagent::image::progress::Progress;
use hostagent::image::reference::ImageReference;
use hostagent::io_limits;
use hostagent::lazy::start::Running;
use hostagent::network::{self, NetworkOption};
use hostagent::running::RunningMachine;
use hostagent::stop_signal;
use hostagent::store::{ImportError, Store};
use hostagent::vm_process::{Filesystem, Nic, Program};
use hostagent::volume::{self, VolumeOption};
use hostagent::workload::{EnvChange, WorkloadOptions};
use jail::{Cgroups, NewNamespaces};
use vmm::arch::x86_64::cpuid::template::Template;
use vmm::spec::LimitsSpec;

use super::interrupt;
use super::progress::TerminalProgress;
pub use identity::SHORT_ID;
use identity::{hostname, new_id, run_name};
use image::{PullWhen, RunImage, obtain};
use messages::Messages;
use observer::RunObserver;
use timing::TimingFormat;

const EXAMPLES: &str = "\
Examples:
  mote run demo:latest                          The command the image names
  mote run demo:latest /bin/sh -c 'uname -a'    Another command; flags after IMAGE are its own
  mote run oci:images:debian ls /               From an OCI layout, DIR and TAG
  mote run docker-archive:demo.tar nproc        From an archive of `docker save`
  mote run -e LANG=C -e HOME -w /srv -u www-data demo:latest env
  tar c . | mote run -i demo:latest tar t       With standard input
  mote run --cpus 2 -m 1g --timing demo:latest nproc
  mote run -v /srv/www:/www:ro demo:latest ls /www
  mote run --network tap=tap0,ip=10.0.0.2/24,gateway=10.0.0.1 demo:latest

IMAGE is a name that `mote images` lists, an image id or the start of one,
oci:DIR[:TAG], or docker-archive:FILE[:NAME].

Exit codes: that of the command; 128 and the number of the signal that ended it;
127 if the command is not found in the image, 126 if it cannot be executed, 125 if
mote itself failed.";

/// Run a command of an image in a new microVM.
#[derive(Debug, Args)]
#[command(
    after_help = EXAMPLES,
    override_usage = "mote run [OPTIONS] IMAGE [COMMAND] [ARGUMENT...]",
    args_override_self = true,
    disable_help_flag = true
)]
pub struct RunArgs {
    /// Remove what the microVM wrote when it ends. What it writes is in its
    /// memory and goes with it, so that is always so; scripts may say it.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    rm: Option<bool>,
    /// Set a variable; NAME alone takes the value it has here.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Set the variables that FILE lists, one NAME=VALUE a line.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Start in this directory instead of the image's.
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Run as this user: a name or number, perhaps with :GROUP.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Run this program instead of the image's entrypoint, without the image's
    /// command.
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Memory: a number and b, k, m or g.
    #[arg(short, long, value_name = "SIZE", value_parser = hostagent::size::parse, allow_hyphen_values = true, default_value = limits::DEFAULT_MEMORY)]
    memory: u64,
    /// Virtual CPUs, 1 to 32.
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        allow_hyphen_values = true
    )]
    cpus: String,
    /// Make the CPUs the same on every host that has what NAME promises
    /// [default: like this host's].
    #[arg(long, value_name = "NAME", value_parser = cpu_template)]
    cpu_template: Option<&'static Template>,
    /// The guest's host name [default: the start of the microVM's id].
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// A name for the microVM; no two that run have the same.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Give the guest a NIC, eth0, on the tap interface NAME of this host, which is
    /// made for the run if it does not exist; `none` gives it none. The address
    /// and route are set up in the guest; on the host they are yours to set.
    /// vhost=on lets this host's kernel move the frames. transmit-bps and receive-bps
    /// limit the bytes a second from and to the guest, transmit-pps and receive-pps the
    /// packets: RATE or RATE:BURST, sizes as for --memory.
    #[arg(
        long,
        value_name = "tap=NAME[,mac=MAC][,ip=ADDRESS/PREFIX[,gateway=ADDRESS]][,vhost=on|,transmit-bps=RATE...]",
        default_value = "none"
    )]
    network: String,
    /// Limit the guest's disk, reads and writes together: RATE or RATE:BURST, sizes as
    /// for --memory; `none` is no limit.
    #[arg(long, value_name = "bps=RATE[:BURST],iops=RATE[:BURST]", value_parser = disk::limits::parse_list)]
    disk: Option<LimitsSpec>,
    /// Limit the bytes a second that are read from a disk of this host, such as
    /// /dev/sda:10m.
    #[arg(long, value_name = "DISK:RATE")]
    device_read_bps: Vec<String>,
    /// Limit the bytes a second that are written to it.
    #[arg(long, value_name = "DISK:RATE")]
    device_write_bps: Vec<String>,
    /// Limit the reads a second.
    #[arg(long, value_name = "DISK:RATE")]
    device_read_iops: Vec<String>,
    /// Limit the writes a second.
    #[arg(long, value_name = "DISK:RATE")]
    device_write_iops: Vec<String>,
    /// Show the directory HOSTDIR of this host in the guest at GUESTPATH, which is
    /// made if it does not exist. With ro the guest cannot write to it, and does not
    /// see what is mounted below it.
    #[arg(short, long, value_name = "HOSTDIR:/GUESTPATH[:ro]")]
    volume: Vec<String>,
    /// The virtiofsd that serves volumes [default: the first on PATH, then Debian's].
    #[arg(long, value_name = "FILE", requires = "volume")]
    virtiofsd: Option<PathBuf>,
    /// Carry standard input to the command.
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    interactive: Option<bool>,
    /// Boot this kernel, a vmlinux or a bzImage, instead of mote's own.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Where the modules of --kernel are [default: ../lib/modules/VERSION beside
    /// the kernel, then /lib/modules/VERSION].
    #[arg(long, value_name = "DIR", requires = "kernel")]
    kernel_modules: Option<PathBuf>,
    /// Say on standard error when each phase was reached, in ms.
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "table"
    )]
    timing: Option<TimingFormat>,
    /// Print help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// When to pull the image from its registry.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = PullWhen::Missing)]
    pull: PullWhen,
    /// The name of an image, oci:DIR[:TAG] or docker-archive:FILE[:NAME]; then the
    /// command and its arguments instead of the image's.
    #[arg(
        value_name = "IMAGE [COMMAND]",
        required = true,
        num_args = 1..
    )]
    image_and_command: Vec<String>,
}

/// Runs the workload; its exit code is ours.
pub fn main(args: RunArgs, mut timeline: Timeline) -> anyhow::Result<ExitCode> {
    let timing = args.timing;
    let outcome = run(args, &mut timeline);
    if let Some(format) = timing {
        timing::print(&timeline, format);
    }
    outcome
}

fn run(args: RunArgs, timeline: &mut Timeline) -> anyhow::Result<ExitCode> {
    // All that can be wrong with the flags, before anything is done.
    let (image, command) = match args.image_and_command.split_first() {
        Some((image, command)) => (image, command.to_vec()),
        None => bail!("no image is named\nSee 'mote run --help'."),
    };
    let reference: ImageReference = image.parse()?;
    let vcpus = limits::cpus(&args.cpus).map_err(anyhow::Error::msg)?;
    let host_memory = limits::host_memory_bytes().context("cannot read this host's memory")?;
    let memory_bytes = limits::memory(args.memory, host_memory).map_err(anyhow::Error::msg)?;
    let network = NetworkOption::parse(&args.network)?;
    let io_limits = io_limits::parse([
        &args.device_read_bps,
        &args.device_write_bps,
        &args.device_read_iops,
        &args.device_write_iops,
    ])?;
    let volumes = args.volume.iter().map(|text| VolumeOption::parse(text));
    let volumes: Vec<_> = volumes.collect::<Result<_, _>>()?;
    let virtiofsd = match volumes.is_empty() {
        true => None,
        false => Some(volume::find_server(args.virtiofsd.as_deref())?),
    };
    let id = new_id().context("cannot make an id")?;
    let options = WorkloadOptions {
        env: environment(&args)?,
        hostname: hostname(unless_empty(args.hostname.as_deref()), &id)?,
        entrypoint: args.entrypoint,
        command,
        working_dir: args.workdir,
        user: args.user,
        network: network.as_ref().map(NetworkOption::for_guest),
        mounts: volume::mounts(&volumes),
    };
    let name = unless_empty(args.name.as_deref())
        .map(run_name)
        .transpose()?;
    // Made while the rest is looked for.
    let namespaces =
        NewNamespaces::begin().context("cannot make namespaces for the VMM's process")?;
    let assets = Assets::locate();
    let boot = machine::Boot::prepare(
        &assets,
        args.kernel.as_deref(),
        args.kernel_modules.as_deref(),
    )?;
    let program = Program::vmm(assets.vmm()?);
    let cgroups = Cgroups::open().context("cannot prepare this host's cgroups for a microVM's")?;

    interrupt::watch().context("cannot catch signals")?;
    let limits = hostagent::store::limits::of_this_machine()?;
    let store = Arc::new(Store::open(&Store::default_root())?.with_limits(limits));
    // Held until the microVM has ended.
    let _name = match name {
        Some(name) => Some(store.take_run_name(name)?.with_context(|| {
            format!("the name {name:?} is in use by a microVM that runs; stop it or choose another")
        })?),
        None => None,
    };
    let progress = TerminalProgress::new();
    // Held until the microVM has ended.
    let lease = store.lease()?;
    let RunImage {
        image: stored,
        mut disk,
        fetching,
    } = obtain(&store, &reference, args.pull, &lease, &progress)?;
    let boot = boot.stored(&store, &lease)?;
    let config = store.config(stored.id)?;
    let stop_signal = match &config.stop_signal {
        Some(text) => stop_signal::parse(text)?,
        None => stop_signal::DEFAULT,
    };
    let workload = options.apply(&config)?;
    disk.limits = args.disk;
    let blobs = disk::blobs(&disk);
    let booted = boot.blobs();
    let partials = fetching.as_ref().map(Running::partials).unwrap_or_default();
    if progress.cancelled() {
        return Err(ImportError::Cancelled.into());
    }
    drop(progress);
    timeline.image_is_ready();

    let nics = network
        .map(|network| nic(&network, &id, vcpus))
        .transpose()?;
    // Held until the microVM has ended, as they do then.
    let mut servers = Vec::new();
    let mut filesystems = Vec::new();
    let client = volume::Client {
        id: &id,
        vcpus,
        memory_bytes,
        io_limits: &io_limits,
        cgroups: cgroups.as_ref(),
    };
    for ((volume, program), index) in volumes.iter().zip(virtiofsd.iter().cycle()).zip(0..) {
        let tag = volume::tag(index);
        let source = volume.source.display().to_string();
        let mut messages = Messages::about("the servers of volumes");
        let tell = move |line: &str| messages.tell(format_args!("volume {source}: {line}"));
        let (socket, server) = volume::serve(program, volume, &tag, client, tell)?;
        servers.push(server);
        let socket = socket.into();
        filesystems.push(Filesystem { tag, socket });
    }
    let nics = Vec::from_iter(nics);
    let mut machine = boot.into_machine(&id, vcpus, memory_bytes, disk, nics, filesystems)?;
    let cpu_template = args.cpu_template.map(|template| template.name().to_owned());
    machine.cpu_template.clone_from(&cpu_template);
    machine.io_limits = io_limits;
    machine.namespaces = namespaces;
    // Another run is another copy, and never the same.
    machine.generation_id = Some(new_id().context("cannot make an id")?.split_off(32));
    let streams = Streams::inherited(args.interactive == Some(true))
        .context("cannot use standard streams")?;
    let mut request = guest::Request {
        control: None,
        program,
        machine,
        cgroups,
        workload,
        streams,
        stop_signal,
        boot_timeout: guest::BOOT_TIMEOUT,
    };
    let registration = store
        .running()
        .register(RunningMachine {
            id: id.clone(),
            name: name.map(str::to_owned),
            image: image.to_owned(),
            image_id: Some(stored.id),
            command: request.workload.args.clone(),
            cpu_template,
            memory_bytes,
            started_unix_seconds: unix_seconds(),
            vmm_pid: None,
            landlock: None,
            metrics: None,
        })
        .context("cannot make the microVM known to `mote ps`")?;
    request.control = Some(registration.control().clone());
    let start_up = fetching.as_ref().map(Running::start_up);
    let mut observer = RunObserver::new(registration, store, blobs, booted, partials, start_up);
    timeline.fetched_bytes = fetching.as_ref().map(Running::fetched_bytes);
    let outcome = guest::run(request, timeline, &mut observer);
    // Waits for what is looked at because of the run.
    drop(observer);
    // What was read is kept for the next start.
    drop(fetching);
    let outcome = outcome?;
    Ok(ExitCode::from(outcome.exit_code()))
}

fn cpu_template(name: &str) -> Result<&'static Template, String> {
    let unknown = || format!("there is no such template; there are {}", Template::names());
    Template::named(name).ok_or_else(unknown)
}

fn unix_seconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// The NIC that `network` asks for, its tap open.
fn nic(network: &NetworkOption, id: &str, vcpus: u32) -> anyhow::Result<Nic> {
    let taps = network::open_tap(&network.tap, vcpus)?;
    let vhost = match network.vhost {
        true => network::open_vhost(taps.len())?,
        false => Vec::new(),
    };
    Ok(Nic {
        mac: match &network.mac {
            Some(mac) => mac.clone(),
            None => network::mac_of(id),
        },
        taps,
        vhost,
        limits: network.limits,
    })
}

/// A flag whose value is empty was not given, as in Docker.
fn unless_empty(value: Option<&str>) -> Option<&str> {
    value.filter(|value| !value.is_empty())
}

/// Files first, then flags, so that a flag wins.
fn environment(args: &RunArgs) -> anyhow::Result<Vec<EnvChange>> {
    let lookup = |name: &str| std::env::var(name).ok();
    let mut changes = Vec::new();
    for file in &args.env_file {
        changes.extend(env::from_file(file, &lookup)?);
    }
    for flag in &args.env {
        changes.push(env::from_flag(flag, &lookup)?);
    }
    Ok(changes)
}
