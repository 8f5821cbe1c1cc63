//! Adds devices to a microVM, each with its window, its interrupts and its turn in the
//! event loop.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::{Address, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::{MachineError, host};
use crate::arch::layout;
use crate::arch::x86_64::acpi::{Hardware, MmioDevice};
use crate::block;
use crate::block::extents::{Extent, ExtentDisk};
use crate::block::lazy::LazyDisk;
use crate::bus::Bus;
use crate::config::DevicesConfig;
use crate::config::filesystem::FilesystemConfig;
use crate::config::pmem::PmemConfig;
use crate::config::serial::SerialConfig;
use crate::control::server::{ControlServer, Handles};
use crate::devices::generation_id::{GENERATION_ID_BYTES, GenerationId};
use crate::devices::power::{self, KeyboardReset, PowerButton, PowerRegisters};
use crate::devices::serial::{SerialInput, SerialPort};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::balloon::handle::BalloonHandle;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::console::Console;
use crate::devices::virtio::console::handle::ConsoleHandle;
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::fs::Filesystem;
use crate::devices::virtio::fs::backend::{Backend, Patience};
use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::pmem::Pmem;
use crate::devices::virtio::pmem::mapping::Mapping;
use crate::devices::virtio::vsock::Vsock;
use crate::devices::virtio::worker::QueueWorker;
use crate::event::EventSink;
use crate::event_loop::EventLoop;
use crate::exit::ExitLine;
use crate::kvm::pause::PauseGate;
use crate::kvm::vm::Vm;
use crate::memory::GuestMemory;
use crate::metrics::page::Metrics;

/// What grows while devices are added.
pub struct Builder<'a> {
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
    has_serial: bool,
    has_power_button: bool,
    has_generation_id: bool,
    metrics: Metrics,
}

/// All devices, where the vCPUs reach them and who serves them.
pub struct Devices {
    /// By port.
    pub ports: Bus,
    /// By guest physical address.
    pub mmio: Bus,
    /// Serves them.
    pub event_loop: EventLoop,
    /// What the ACPI tables tell of them.
    pub hardware: Hardware,
    /// Where the vCPUs count; readers are let in.
    pub metrics: Metrics,
}

impl<'a> Builder<'a> {
    /// Without devices yet.
    pub fn new(
        vm: &'a Vm,
        memory: &'a GuestMemory,
        exit: &Arc<ExitLine>,
        gate: &Arc<PauseGate>,
        events: &Arc<EventSink>,
    ) -> Result<Self, MachineError> {
        Ok(Self {
            vm,
            memory,
            exit: Arc::clone(exit),
            gate: Arc::clone(gate),
            events: Arc::clone(events),
            ports: Bus::default(),
            mmio: Bus::default(),
            event_loop: EventLoop::new(Arc::clone(exit), Arc::clone(gate))?,
            mmio_devices: Vec::new(),
            transports: Vec::new(),
            balloon: None,
            consoles: Vec::new(),
            has_serial: false,
            has_power_button: false,
            has_generation_id: false,
            metrics: Metrics::none(),
        })
    }

    /// Counts in `metrics` what the devices do.
    pub fn counting(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// Adds all devices of a guest with `memory_bytes` of memory. Returns the one
    /// whose interrupt is connected for as long as it lives.
    pub fn add_all(
        &mut self,
        devices: DevicesConfig,
        memory_bytes: u64,
    ) -> Result<Option<GenerationId>, MachineError> {
        self.add_power()?;
        self.has_serial = devices.serial.is_some();
        self.has_power_button = devices.control.is_some();
        self.has_generation_id = devices.generation_id.is_some();
        if let Some(serial) = devices.serial {
            self.add_serial(serial)?;
        }
        for (disk, index) in devices.disks.into_iter().zip(0..) {
            let name = format!("blk{index}");
            let lazy = disk.source.map(|source| (source, disk.disk.presence()));
            let mut backend = block::open(disk.disk);
            if let Some((source, pieces)) = lazy {
                let lazy = LazyDisk::new(backend, pieces, source);
                backend = Box::new(lazy.map_err(host("a watch over a disk"))?);
            }
            let events = Arc::clone(&self.events);
            let block = Block::new(name, disk.serial, backend, disk.limits, events)
                .map_err(host("a timer for a disk"))?;
            self.add_virtio(Box::new(block))?;
        }
        if let Some(source) = devices.entropy {
            self.add_virtio(Box::new(Entropy::new(source)))?;
        }
        if let Some(vsock) = devices.vsock {
            let device = Vsock::new(vsock.guest_cid, vsock.channel)
                .map_err(host("the vsock device's epoll"))?;
            self.add_virtio(Box::new(device))?;
        }
        for (options, index) in devices.nics.into_iter().zip(0..) {
            let device = Net::new(
                format!("net{index}"),
                options,
                self.memory,
                Arc::clone(&self.events),
            )
            .map_err(host("a network device"))?;
            self.add_virtio(Box::new(device))?;
        }
        if let Some(features) = devices.balloon {
            let (device, handle) =
                Balloon::new(features, memory_bytes).map_err(host("the balloon's eventfds"))?;
            self.add_virtio(Box::new(device))?;
            self.balloon = Some(handle);
        }
        for (console, index) in devices.consoles.into_iter().zip(0..) {
            let name = format!("console{index}");
            let (device, handle) = Console::new(name, console.input, console.output, console.size)
                .map_err(host("a console"))?;
            self.add_virtio(Box::new(device))?;
            self.consoles.push(handle);
        }
        self.add_pmem(devices.pmem, memory_bytes)?;
        self.add_filesystems(devices.filesystems)?;
        let generation_id = devices
            .generation_id
            .map(|id| self.add_generation_id(id))
            .transpose()?;
        if let Some(socket) = devices.control {
            self.add_control(socket)?;
        }
        Ok(generation_id)
    }

    /// What `vcpus` vCPUs see and the event loop serves.
    pub fn finish(self, vcpus: u8) -> Devices {
        self.metrics.publish(vcpus);
        Devices {
            metrics: self.metrics,
            ports: self.ports,
            mmio: self.mmio,
            event_loop: self.event_loop,
            hardware: Hardware {
                vcpus,
                serial: self.has_serial,
                power_button: self.has_power_button,
                generation_id: self.has_generation_id,
                mmio_devices: self.mmio_devices,
            },
        }
    }

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
                .map_err(|source| MachineError::Pmem { index, source })?;
            self.vm.attach_mapping(slot, start, &mapping)?;
            let extent = Extent {
                file: pmem.file,
                offset_bytes: 0,
                length_bytes: pmem.bytes,
                blob: None,
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

    /// Gives their backends the guest's memory, and waits for what they say to that.
    fn add_filesystems(&mut self, configs: Vec<FilesystemConfig>) -> Result<(), MachineError> {
        for (config, index) in configs.into_iter().zip(0..) {
            let backend = Backend::new(config.socket, self.memory, Patience::default())
                .map_err(|source| MachineError::Filesystem { index, source })?;
            let name = format!("fs{index}");
            let device = Filesystem::new(name, config.tag, backend)
                .map_err(host("the timer of a file system"))?;
            self.add_virtio(Box::new(device))?;
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
    pub fn add_virtio(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), MachineError> {
        let index = self.mmio_devices.len() as u32;
        let window = layout::MMIO_WINDOWS + u64::from(index) * layout::MMIO_WINDOW_BYTES;
        let gsi = layout::FIRST_DEVICE_GSI + index;
        let metrics = self.metrics.add_device(device.name(), device.device_type());
        let events = Arc::clone(&self.events);
        let transport = MmioTransport::new(device, self.memory.clone(), events, metrics)?;
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
