//! Builds a microVM from its configuration and runs it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use vm_memory::{Address, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::layout;
use crate::arch::x86_64::acpi::{self, AcpiError, Hardware, MmioDevice};
use crate::arch::x86_64::cpuid;
use crate::arch::x86_64::registers::{self, RegisterError};
use crate::block;
use crate::block::extents::{Extent, ExtentDisk};
use crate::boot::{self, BootError};
use crate::bus::{Bus, BusDevice, Overlap};
use crate::config::pmem::PmemConfig;
use crate::config::{BootConfig, Config, SerialConfig};
use crate::confinement::Landlock;
use crate::control::server::{ControlServer, Handles};
use crate::devices::generation_id::{GENERATION_ID_BYTES, GenerationId, GenerationIdError};
use crate::devices::power::{self, KeyboardReset, PowerButton, PowerRegisters};
use crate::devices::serial::{SerialInput, SerialPort};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::balloon::handle::BalloonHandle;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::console::Console;
use crate::devices::virtio::console::handle::ConsoleHandle;
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY, TransportError};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::pmem::Pmem;
use crate::devices::virtio::pmem::mapping::Mapping;
use crate::devices::virtio::vsock::Vsock;
use crate::devices::virtio::worker::QueueWorker;
use crate::event::{EventKind, EventSink};
use crate::event_loop::{EventLoop, EventLoopError, Subscriber};
use crate::exit::{ExitLine, ExitReason};
use crate::kvm::pause::PauseGate;
use crate::kvm::vcpu::{self, Shared, StartLine};
use crate::kvm::vm::{Vm, VmError, kvm};
use crate::memory::{self, GuestMemory, MemoryError};
use crate::seccomp::{self, ThreadKind};
use crate::signals;

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
    /// The boot vCPU.
    #[error(transparent)]
    Registers(#[from] RegisterError),
    /// A virtio device.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The VM generation id.
    #[error(transparent)]
    GenerationId(#[from] GenerationIdError),
    /// Two devices at one address: a defect of the layout.
    #[error(transparent)]
    Overlap(#[from] Overlap),
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
    vm: Vm,
    boot: BootConfig,
    /// Its interrupt is connected for as long as it lives.
    generation_id: Option<GenerationId>,
    vcpus: Vec<VcpuFd>,
    shared: Arc<Shared>,
    event_loop: EventLoop,
    hardware: Hardware,
}

/// What grows while devices are added.
struct Builder<'a> {
    vm: &'a Vm,
    memory: &'a GuestMemory,
    exit: Arc<ExitLine>,
    gate: Arc<PauseGate>,
    events: Arc<EventSink>,
    ports: Bus,
    mmio: Bus,
    event_loop: EventLoop,
    mmio_devices: Vec<MmioDevice>,
    transports: Vec<Arc<MmioTransport>>,
    balloon: Option<BalloonHandle>,
    consoles: Vec<ConsoleHandle>,
}

impl Machine {
    /// Builds all of the microVM but its guest. The order is that of the start
    /// path, cheapest first: see [`Vm::new`] for the one that matters most.
    pub fn build(config: Config, events: Arc<EventSink>) -> Result<Self, MachineError> {
        let exit = ExitLine::new().map_err(host("an eventfd"))?;
        let gate = PauseGate::new(config.vcpus.into()).map_err(host("the pause gate"))?;
        let memory = memory::create(config.memory_bytes)?;
        let vm = Vm::new(config.kvm, &memory)?;

        let mut builder = Builder {
            vm: &vm,
            memory: &memory,
            exit: Arc::clone(&exit),
            gate: Arc::clone(&gate),
            events: Arc::clone(&events),
            ports: Bus::default(),
            mmio: Bus::default(),
            event_loop: EventLoop::new(Arc::clone(&exit), Arc::clone(&gate))?,
            mmio_devices: Vec::new(),
            transports: Vec::new(),
            balloon: None,
            consoles: Vec::new(),
        };
        builder.add_power()?;
        let has_serial = config.serial.is_some();
        if let Some(serial) = config.serial {
            builder.add_serial(serial)?;
        }
        for (disk, index) in config.disks.into_iter().zip(0..) {
            let name = format!("blk{index}");
            let backend = block::open(disk.disk);
            let events = Arc::clone(&events);
            let block = Block::new(name, disk.serial, backend, disk.limits, events)
                .map_err(host("a timer for a disk"))?;
            builder.add_virtio(Box::new(block))?;
        }
        if let Some(source) = config.entropy {
            builder.add_virtio(Box::new(Entropy::new(source)))?;
        }
        if let Some(vsock) = config.vsock {
            let device = Vsock::new(vsock.guest_cid, vsock.channel)
                .map_err(host("the vsock device's epoll"))?;
            builder.add_virtio(Box::new(device))?;
        }
        for (options, index) in config.nics.into_iter().zip(0..) {
            let device = Net::new(format!("net{index}"), options, &memory, Arc::clone(&events))
                .map_err(host("a network device"))?;
            builder.add_virtio(Box::new(device))?;
        }
        if let Some(features) = config.balloon {
            let (device, handle) = Balloon::new(features, config.memory_bytes)
                .map_err(host("the balloon's eventfds"))?;
            builder.add_virtio(Box::new(device))?;
            builder.balloon = Some(handle);
        }
        for (console, index) in config.consoles.into_iter().zip(0..) {
            let name = format!("console{index}");
            let (device, handle) = Console::new(name, console.input, console.output, console.size)
                .map_err(host("a console"))?;
            builder.add_virtio(Box::new(device))?;
            builder.consoles.push(handle);
        }
        builder.add_pmem(config.pmem, config.memory_bytes)?;
        let generation_id = config
            .generation_id
            .map(|id| builder.add_generation_id(id))
            .transpose()?;
        let has_control = config.control.is_some();
        if let Some(socket) = config.control {
            builder.add_control(socket)?;
        }
        let Builder {
            ports,
            mmio,
            event_loop,
            mmio_devices,
            ..
        } = builder;
        let hardware = Hardware {
            vcpus: config.vcpus,
            serial: has_serial,
            power_button: has_control,
            generation_id: generation_id.is_some(),
            mmio_devices,
        };
        let vcpus = create_vcpus(&vm, config.vcpus)?;
        Ok(Self {
            memory,
            vm,
            boot: config.boot,
            generation_id,
            vcpus,
            shared: Arc::new(Shared {
                ports,
                mmio,
                exit,
                start: StartLine::new(),
                events,
                gate,
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

    /// Puts every thread behind its filter, then reads the guest's kernel, then runs
    /// until the guest ends.
    pub fn run(mut self, landlock: Landlock) -> Result<ExitReason, MachineError> {
        let blocked = signals::Blocked::new();
        for (vcpu, index) in self.vcpus.into_iter().zip(0..) {
            let shared = Arc::clone(&self.shared);
            std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .stack_size(VCPU_STACK_BYTES)
                .spawn(move || vcpu::live(vcpu, index, &shared))
                .map_err(host("a vCPU thread"))?;
        }
        drop(blocked);
        seccomp::install(ThreadKind::EventLoop)
            .map_err(host("the system call filter of the event loop"))?;
        let events = &self.shared.events;
        events.send(EventKind::Confined { landlock });

        let mut boot = self.boot;
        let kernel = boot::load_kernel(&self.memory, &mut boot.kernel)?;
        let rsdp = acpi::write_tables(&self.memory, &self.hardware)?;
        registers::write_boot_tables(&self.memory)?;
        let entry = boot::finish(&self.memory, kernel, boot, rsdp)?;
        // Nobody else sets it.
        let _ = self.shared.start.set(entry);

        let reason = self.event_loop.run()?;
        match &reason {
            ExitReason::PoweredOff => events.send(EventKind::PoweredOff),
            ExitReason::Reset => events.send(EventKind::Reset),
            ExitReason::Quit => events.send(EventKind::Quit),
            ExitReason::GuestFault(reason) => events.send(EventKind::GuestFault {
                reason: reason.clone(),
            }),
            ExitReason::HostFailure(_) => {}
        }
        // The vCPUs still run in it; it goes with the process.
        std::mem::forget((self.memory, self.vm, self.event_loop, self.generation_id));
        Ok(reason)
    }
}

fn create_vcpus(vm: &Vm, count: u8) -> Result<Vec<VcpuFd>, MachineError> {
    let supported = vm.supported_cpuid()?;
    let mut vcpus = Vec::with_capacity(count.into());
    for index in 0..count {
        let vcpu = vm.create_vcpu(index)?;
        vcpu.set_cpuid2(&cpuid::for_vcpu(&supported, index, count))
            .map_err(kvm("set what CPUID says (KVM_SET_CPUID2)"))?;
        registers::set_firmware_msrs(&vcpu)?;
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

impl Builder<'_> {
    fn add_power(&mut self) -> Result<(), MachineError> {
        let power = Arc::new(PowerRegisters::new(Arc::clone(&self.exit)));
        self.ports
            .insert(layout::POWER_PORT.into(), power::PORTS.into(), power)?;
        let keyboard = Arc::new(KeyboardReset::new(Arc::clone(&self.exit)));
        self.ports
            .insert(power::KEYBOARD_COMMAND_PORT.into(), 1, keyboard)?;
        Ok(())
    }

    fn add_serial(&mut self, serial: SerialConfig) -> Result<(), MachineError> {
        let interrupt = EventFd::new(0).map_err(host("an eventfd"))?;
        self.vm.connect_interrupt(&interrupt, layout::SERIAL_GSI)?;
        let port = SerialPort::new(serial.output, interrupt).map_err(host("an eventfd"))?;
        if let Some(input) = serial.input {
            let input = SerialInput::new(input, Arc::clone(&port)).map_err(host("an eventfd"))?;
            self.event_loop.add(Box::new(input));
        }
        self.ports
            .insert(layout::SERIAL_PORT.into(), 8, port)
            .map_err(Into::into)
    }

    fn add_generation_id(
        &mut self,
        id: [u8; GENERATION_ID_BYTES],
    ) -> Result<GenerationId, MachineError> {
        let line = EventFd::new(0).map_err(host("an eventfd"))?;
        self.vm
            .connect_interrupt(&line, layout::GENERATION_ID_GSI)?;
        Ok(GenerationId::new(self.memory.clone(), line, id)?)
    }

    /// Maps files above the guest's memory, of `memory_bytes`.
    fn add_pmem(
        &mut self,
        configs: Vec<PmemConfig>,
        memory_bytes: u64,
    ) -> Result<(), MachineError> {
        let mut start = layout::pmem_start(memory_bytes);
        let slots = self.memory.num_regions() as u32..;
        for ((pmem, slot), index) in configs.into_iter().zip(slots).zip(0..) {
            let mapping = Mapping::new(&pmem.file, pmem.bytes, pmem.read_only)
                .map_err(host("a mapping of the file of a pmem device"))?;
            self.vm.attach_mapping(slot, start, &mapping)?;
            let extent = Extent {
                file: pmem.file,
                offset_bytes: 0,
                length_bytes: pmem.bytes,
            };
            let disk = ExtentDisk::new(vec![extent], false).filter(|_| !pmem.read_only);
            let name = format!("pmem{index}");
            let device = Pmem::new(name, start, mapping.bytes(), disk.map(block::open));
            self.add_virtio(Box::new(device))?;
            // `config` knows no sizes that could overflow.
            start = start.unchecked_add(mapping.bytes());
        }
        Ok(())
    }

    /// Serves the agent at the other end of `socket`; after all devices have been
    /// added, to know them.
    fn add_control(&mut self, socket: OwnedFd) -> Result<(), MachineError> {
        let button = EventFd::new(0).map_err(host("an eventfd"))?;
        self.vm
            .connect_interrupt(&button, layout::POWER_BUTTON_GSI)?;
        let handles = Handles {
            exit: Arc::clone(&self.exit),
            gate: Arc::clone(&self.gate),
            events: Arc::clone(&self.events),
            power_button: PowerButton::new(button),
            devices: self.transports.clone(),
            balloon: self.balloon.clone(),
            consoles: self.consoles.clone(),
        };
        let server = ControlServer::new(socket, handles).map_err(host("a timer"))?;
        self.event_loop.add_always(Box::new(server));
        Ok(())
    }

    /// Gives a device the next window and interrupt. `config` has made sure
    /// that there are enough.
    fn add_virtio(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), MachineError> {
        let index = self.mmio_devices.len() as u32;
        let window = layout::MMIO_WINDOWS + u64::from(index) * layout::MMIO_WINDOW_BYTES;
        let gsi = layout::FIRST_DEVICE_GSI + index;
        let transport = MmioTransport::new(device, self.memory.clone(), Arc::clone(&self.events))?;
        for (doorbell, queue) in transport.doorbells().iter().zip(0..) {
            self.vm
                .connect_doorbell(doorbell, window + QUEUE_NOTIFY, queue)?;
        }
        self.vm.connect_interrupt(transport.interrupt_line(), gsi)?;
        self.mmio.insert(
            window,
            layout::MMIO_WINDOW_BYTES,
            Arc::clone(&transport) as _,
        )?;
        self.transports.push(Arc::clone(&transport));
        self.event_loop.add(Box::new(QueueWorker::new(transport)));
        self.mmio_devices.push(MmioDevice {
            window: window as u32,
            gsi,
        });
        Ok(())
    }
}
