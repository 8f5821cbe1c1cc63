//! `mote pause`, `mote unpause`, `mote update` and `mote stop`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use hostagent::control::{Verb, ask};
use hostagent::running::{Registry, RunningMachine};
use hostagent::store::Store;
use hostagent::{disk, network, size};
use vmm::devices::virtio::limiter::Direction;
use vmm::spec::{LimitsSpec, NicLimitsSpec};

use super::output::print;

/// How long a VMM may take to answer. A pause waits for vCPUs, which do not take long.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a microVM may take to be gone once it was killed.
const KILLED: Duration = Duration::from_secs(10);
/// How often it is looked whether a microVM is gone.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const PAGE_BYTES: u64 = 4096;

/// Stop all vCPUs and devices of microVMs, until they are unpaused.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mote pause web")]
pub struct PauseArgs {
    /// Names, or ids or starts of them.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Let microVMs go on that were paused.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mote unpause web")]
pub struct UnpauseArgs {
    /// Names, or ids or starts of them.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Change how much microVMs that run may use.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mote update -m 256m web\n  mote update --network transmit-bps=10m,receive-bps=10m web\n  mote update --disk iops=500 --network none web"
)]
pub struct UpdateArgs {
    /// Memory, at most what it was started with: the guest is asked to give up the rest.
    #[arg(short, long, value_name = "SIZE", value_parser = size::parse, allow_hyphen_values = true)]
    memory: Option<u64>,
    /// Limit the NIC, in the directions that are named; `none` lifts all limits.
    #[arg(long, value_name = "transmit-bps=RATE[:BURST],...", value_parser = network::limits::parse_list)]
    network: Option<NicLimitsSpec>,
    /// Limit the disk, both ways together; `none` lifts all limits.
    #[arg(long, value_name = "bps=RATE[:BURST],iops=RATE[:BURST]", value_parser = disk::limits::parse_list)]
    disk: Option<LimitsSpec>,
    /// Names, or ids or starts of them.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Ask the command to end, and end the microVM if it does not.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mote stop web\n  mote stop -t 0 web   At once")]
pub struct StopArgs {
    /// How many seconds the command has.
    #[arg(
        short,
        long,
        visible_alias = "time",
        value_name = "SECONDS",
        default_value_t = 10
    )]
    timeout: u32,
    /// Names, or ids or starts of them.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Pauses.
pub fn pause(args: &PauseArgs) -> anyhow::Result<ExitCode> {
    each(&args.names, |registry, machine| {
        request(registry, machine, &Verb::Pause)
    })
}

/// Lets go on.
pub fn unpause(args: &UnpauseArgs) -> anyhow::Result<ExitCode> {
    each(&args.names, |registry, machine| {
        request(registry, machine, &Verb::Unpause)
    })
}

/// Changes limits.
pub fn update(args: &UpdateArgs) -> anyhow::Result<ExitCode> {
    if args.memory.is_none() && args.network.is_none() && args.disk.is_none() {
        bail!("nothing to change was given\nSee 'mote update --help'.");
    }
    each(&args.names, |registry, machine| {
        for verb in changes(args, machine)? {
            request(registry, machine, &verb)?;
        }
        Ok(())
    })
}

fn changes(args: &UpdateArgs, machine: &RunningMachine) -> anyhow::Result<Vec<Verb>> {
    let mut verbs = Vec::new();
    if let Some(memory) = args.memory {
        let Some(given_up) = machine.memory_bytes.checked_sub(memory) else {
            bail!(
                "it was started with {} bytes of memory and cannot have more",
                machine.memory_bytes
            );
        };
        let target_bytes = given_up / PAGE_BYTES * PAGE_BYTES;
        verbs.push(Verb::SetBalloon { target_bytes });
    }
    let limit = |device: &str, direction, limits| Verb::SetLimits {
        device: device.to_owned(),
        direction,
        limits,
    };
    if let Some(nic) = args.network {
        let directions = [
            (Direction::Transmit, nic.transmit),
            (Direction::Receive, nic.receive),
        ];
        for (direction, limits) in directions {
            verbs.extend(limits.map(|limits| limit("net0", Some(direction), limits)));
        }
    }
    verbs.extend(args.disk.map(|limits| limit("blk0", None, limits)));
    Ok(verbs)
}

/// Stops, or kills.
pub fn stop(args: &StopArgs) -> anyhow::Result<ExitCode> {
    each(&args.names, |registry, machine| {
        if args.timeout > 0 {
            // One that is about to end does not answer any more.
            let _ = request(registry, machine, &Verb::Stop);
            let patience = Duration::from_secs(args.timeout.into());
            if is_gone_within(registry, machine, patience)? {
                return Ok(());
            }
        }
        let killed = request(registry, machine, &Verb::Kill);
        match is_gone_within(registry, machine, KILLED)? {
            true => Ok(()),
            false => killed.and_then(|()| bail!("it still runs")),
        }
    })
}

fn is_gone_within(
    registry: &Registry,
    machine: &RunningMachine,
    patience: Duration,
) -> anyhow::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let machines = registry.list().context("cannot read what runs")?;
        if machines.iter().all(|other| other.id != machine.id) {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn request(registry: &Registry, machine: &RunningMachine, verb: &Verb) -> anyhow::Result<()> {
    Ok(ask(&registry.control(machine), verb, PATIENCE)?)
}

/// Does `act` to each of `names`, and prints those for which it went well. The first
/// error ends it.
fn each(
    names: &[String],
    act: impl Fn(&Registry, &RunningMachine) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let store = Store::open(&Store::default_root())?;
    let registry = store.running();
    for name in names {
        let machine = registry.find(name)?;
        act(&registry, &machine).with_context(|| name.clone())?;
        print(&format!("{name}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
