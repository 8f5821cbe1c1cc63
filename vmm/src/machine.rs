//! Builds a microVM from its configuration and runs it.

mod builder;

use std::io;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use crate::arch::x86_64::acpi::{self, AcpiError, Hardware};
use crate::arch::x86_64::cpuid::template::TemplateError;
use crate::boot::{self, BootError};
use crate::bus::{BusDevice, Overlap};
use crate::config::Config;
use crate::config::boot::BootConfig;
use crate::confinement::Landlock;
use crate::devices::generation_id::{GenerationId, GenerationIdError};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::fs::backend::BackendError;
use crate::devices::virtio::mmio::TransportError;
use crate::event::{EventKind, EventSink};
use crate::event_loop::{EventLoop, EventLoopError, Subscriber};
use crate::exit::{ExitLine, ExitReason};
use crate::host_cpuid;
use crate::kvm::pause::{self, PauseGate};
use crate::kvm::vcpu::{self, Plan, Shared, Start, StartLine, VcpuError};
use crate::kvm::vm::{Vm, VmError};
use crate::memory::{self, GuestMemory, MemoryError};
use crate::metrics::page::Metrics;
use crate::seccomp::{self, ThreadKind};
use crate::signals;
use builder::{Builder, Devices};

/// Why a microVM could not be built or run.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The virtual machine.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The kernel or the initrd.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// A vCPU.
    #[error("cannot make vCPU {index}")]
    Vcpu {
        /// Which one.
        index: usize,
        /// Why.
        source: VcpuError,
    },
    /// The host does not have what a CPU template promises.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// More than KVM takes, with those of each vCPU.
    #[error("CPUID has {count} entries, KVM takes {max}", max = host_cpuid::MAX_ENTRIES)]
    CpuidEntries {
        /// How many.
        count: usize,
    },
    /// A virtio device.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The VM generation id.
    #[error(transparent)]
    GenerationId(#[from] GenerationIdError),
    /// Two devices at one address: a defect of the layout.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// A file that cannot be mapped.
    #[error("pmem[{index}].file cannot be mapped")]
    Pmem {
        /// Which pmem device.
        index: usize,
        /// Why it could not.
        source: io::Error,
    },
    /// The vhost-user backend of a file system.
    #[error("filesystems[{index}].socket cannot be used")]
    Filesystem {
        /// Which file system.
        index: usize,
        /// What is wrong with its backend.
        source: BackendError,
    },
    /// The event loop.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// The host is out of descriptors, threads or memory.
    #[error("cannot create {what}")]
    Host {
        /// What was to be created.
        what: &'static str,
        /// Why it could not.
        source: io::Error,
    },
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Host { what, source }
}

/// Exits are served on it, by code that calls a few functions deep and keeps little
/// on the stack; a panic's message needs the most.
const VCPU_STACK_BYTES: usize = 256 << 10;

/// A microVM that holds nothing of its guest yet.
pub struct Machine {
    memory: GuestMemory,
    boot: BootConfig,
    /// Its interrupt is connected for as long as it lives.
    generation_id: Option<GenerationId>,
    /// Where the threads of the vCPUs wait.
    start_lines: Vec<Arc<StartLine>>,
    shared: Arc<Shared>,
    event_loop: EventLoop,
    hardware: Hardware,
}

impl Machine {
    /// Builds all of the microVM but its guest. The order is that of the start
    /// path, cheapest first: see [`Vm::equip`] for the one that matters most.
    pub fn build(config: Config, events: Arc<EventSink>) -> Result<Self, MachineError> {
        Self::build_with(config, events, None)
    }

    /// The same with one device more, such as one for tests.
    pub fn build_with(
        config: Config,
        events: Arc<EventSink>,
        extra: Option<Box<dyn VirtioDevice>>,
    ) -> Result<Self, MachineError> {
        let exit = ExitLine::new().map_err(host("an eventfd"))?;
        let gate = PauseGate::new(config.vcpus.into()).map_err(host("the pause gate"))?;
        let memory = match config.devices.filesystems.is_empty() {
            true => memory::create(config.memory_bytes)?,
            // Their backends have it too.
            false => memory::create_shared(config.memory_bytes)?,
        };
        let vm = Arc::new(Vm::new(config.kvm)?);
        let mut cpuid = match config.supported_cpuid {
            Some(cpuid) => cpuid,
            None => vm.supported_cpuid()?,
        };
        if let Some(template) = config.cpu_template {
            cpuid = template.apply(&cpuid)?;
        }
        if cpuid.as_slice().len() > host_cpuid::MAX_ENTRIES {
            return Err(MachineError::CpuidEntries {
                count: cpuid.as_slice().len(),
            });
        }
        // Here, since KVM waits while it takes the memory.
        let start_lines = start_threads(&Plan {
            vm: Arc::clone(&vm),
            memory: memory.clone(),
            count: config.vcpus,
            cpuid: Arc::new(cpuid),
        })?;
        vm.equip(&memory)?;
        for line in &start_lines {
            line.equipped();
        }

        let metrics = match &config.metrics {
            Some(options) => Metrics::map(options).map_err(host("a mapping of the metrics"))?,
            None => Metrics::none(),
        };
        let mut builder = Builder::new(&vm, &memory, &exit, &gate, &events)?.counting(metrics);
        let generation_id = builder.add_all(config.devices, config.memory_bytes)?;
        if let Some(device) = extra {
            builder.add_virtio(device)?;
        }
        let Devices {
            ports,
            mmio,
            event_loop,
            hardware,
            metrics,
        } = builder.finish(config.vcpus);
        Ok(Self {
            memory,
            boot: config.boot,
            generation_id,
            start_lines,
            shared: Arc::new(Shared {
                ports,
                mmio,
                exit,
                events,
                gate,
                metrics,
            }),
            event_loop,
            hardware,
        })
    }

    /// Adds a device at `ports`, such as one for tests.
    pub fn add_ports(
        &mut self,
        ports: std::ops::Range<u16>,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), Overlap> {
        // Nobody else has it before the vCPUs run.
        let shared = Arc::get_mut(&mut self.shared);
        let length = ports.len() as u64;
        shared.map_or(Ok(()), |shared| {
            shared.ports.insert(ports.start.into(), length, device)
        })
    }

    /// Adds someone for the event loop to wake.
    pub fn add_subscriber(&mut self, subscriber: Subscriber) {
        self.event_loop.add(subscriber);
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Puts this thread behind its filter, waits until all others are behind theirs, then
    /// reads the guest's kernel, and runs until the guest ends.
    pub fn run(self, landlock: Landlock) -> Result<ExitReason, MachineError> {
        let Self {
            mut boot, hardware, ..
        } = self;
        // However this ends, these go with the process: vCPUs run in them, and the filter
        // does not allow what it takes to drop them.
        let memory = ManuallyDrop::new(self.memory);
        let shared = ManuallyDrop::new(self.shared);
        let mut event_loop = ManuallyDrop::new(self.event_loop);
        let _generation_id = ManuallyDrop::new(self.generation_id);

        pause::leave_kicks_to_vcpus().map_err(host("the signal mask of the event loop"))?;
        seccomp::install(ThreadKind::EventLoop)
            .map_err(host("the system call filter of the event loop"))?;
        for (index, line) in self.start_lines.iter().enumerate() {
            line.wait_until_ready()
                .map_err(|source| MachineError::Vcpu { index, source })?;
        }
        let events = &shared.events;
        events.send(EventKind::Confined { landlock });

        let tell = |error| tell_corruption(events, error);
        let kernel = boot::load_kernel(&memory, &mut boot.kernel).map_err(tell)?;
        let rsdp = acpi::write_tables(&memory, &hardware)?;
        let entry = boot::finish(&memory, kernel, boot, rsdp).map_err(tell)?;
        for line in &self.start_lines {
            line.start(Start {
                entry,
                shared: Arc::clone(&shared),
            });
        }

        let reason = event_loop.run()?;
        match &reason {
            ExitReason::PoweredOff => events.send(EventKind::PoweredOff),
            ExitReason::Reset => events.send(EventKind::Reset),
            ExitReason::Quit => events.send(EventKind::Quit),
            ExitReason::GuestFault(reason) => events.send(EventKind::GuestFault {
                reason: reason.clone(),
            }),
            ExitReason::HostFailure(reason) => events.send(EventKind::HostFailure {
                reason: reason.clone(),
            }),
        }
        Ok(reason)
    }
}

/// Tells the agent of a kernel or initrd that is not what the spec names.
fn tell_corruption(events: &EventSink, error: BootError) -> BootError {
    if let BootError::Corrupt { what, source } = &error {
        events.send(EventKind::CorruptBoot {
            field: (*what).to_owned(),
            hash: source.hash,
            reason: source.to_string(),
        });
    }
    error
}

/// A thread for each vCPU, which makes it when the machine is equipped. Returns where they
/// wait.
fn start_threads(plan: &Plan) -> Result<Vec<Arc<StartLine>>, MachineError> {
    let _blocked = signals::Blocked::new();
    let start = |index| {
        let line = Arc::new(StartLine::default());
        let (plan, own) = (plan.clone(), Arc::clone(&line));
        std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(VCPU_STACK_BYTES)
            .spawn(move || vcpu::live(index, &plan, &own))
            .map_err(host("a vCPU thread"))?;
        Ok(line)
    };
    (0..plan.count).map(start).collect()
}
