//! Builds a microVM from its configuration and runs it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::arch::layout;
use crate::arch::x86_64::acpi::{self, AcpiError, MmioDevice};
use crate::arch::x86_64::cpuid;
use crate::arch::x86_64::registers::{self, RegisterError};
use crate::boot::{self, BootError};
use crate::bus::{Bus, Overlap};
use crate::config::{Config, SerialConfig};
use crate::devices::power::{self, KeyboardReset, PowerRegisters};
use crate::devices::serial::{SerialInput, SerialPort};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY, TransportError};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::vsock::Vsock;
use crate::devices::virtio::worker::QueueWorker;
use crate::event::{EventKind, EventSink};
use crate::event_loop::{EventLoop, EventLoopError};
use crate::exit::{ExitLine, ExitReason};
use crate::kvm::vcpu::{self, Shared};
use crate::kvm::vm::{Vm, VmError, kvm};
use crate::memory::{self, GuestMemory, MemoryError};

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

/// A microVM that is ready to run.
pub struct Machine {
    /// Kept for as long as the VM runs on it.
    _memory: GuestMemory,
    _vm: Vm,
    vcpus: Vec<VcpuFd>,
    shared: Arc<Shared>,
    event_loop: EventLoop,
    events: Arc<EventSink>,
}

/// What grows while devices are added.
struct Builder<'a> {
    vm: &'a Vm,
    memory: &'a GuestMemory,
    exit: Arc<ExitLine>,
    events: Arc<EventSink>,
    ports: Bus,
    mmio: Bus,
    event_loop: EventLoop,
    mmio_devices: Vec<MmioDevice>,
}

impl Machine {
    /// Builds the microVM. The order is that of the start path, cheapest first:
    /// see [`Vm::new`] for the one that matters most.
    pub fn build(config: Config, events: Arc<EventSink>) -> Result<Self, MachineError> {
        let exit = ExitLine::new().map_err(host("an eventfd"))?;
        let memory = memory::create(config.memory_bytes)?;
        let vm = Vm::new(config.kvm, &memory)?;
        let mut boot = config.boot;
        let kernel = boot::load_kernel(&memory, &mut boot.kernel)?;

        let mut builder = Builder {
            vm: &vm,
            memory: &memory,
            exit: Arc::clone(&exit),
            events: Arc::clone(&events),
            ports: Bus::default(),
            mmio: Bus::default(),
            event_loop: EventLoop::new(Arc::clone(&exit))?,
            mmio_devices: Vec::new(),
        };
        builder.add_power()?;
        let has_serial = config.serial.is_some();
        if let Some(serial) = config.serial {
            builder.add_serial(serial)?;
        }
        for (disk, index) in config.disks.into_iter().zip(0..) {
            let name = format!("blk{index}");
            let block = Block::new(name, disk.serial, Box::new(disk.disk));
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
        let Builder {
            ports,
            mmio,
            event_loop,
            mmio_devices,
            ..
        } = builder;

        let rsdp = acpi::write_tables(&memory, config.vcpus, has_serial, &mmio_devices)?;
        registers::write_boot_tables(&memory)?;
        let entry = boot::finish(&memory, kernel, boot, rsdp)?;
        let vcpus = create_vcpus(&vm, config.vcpus, entry)?;
        Ok(Self {
            _memory: memory,
            _vm: vm,
            vcpus,
            shared: Arc::new(Shared { ports, mmio, exit }),
            event_loop,
            events,
        })
    }

    /// Runs until the guest ends.
    pub fn run(self) -> Result<ExitReason, MachineError> {
        // The boot vCPU last: the others wait for it anyway.
        for (index, vcpu) in self.vcpus.into_iter().enumerate().rev() {
            let shared = Arc::clone(&self.shared);
            let events = Arc::clone(&self.events);
            let run = move || {
                if index == 0 {
                    events.send(EventKind::GuestEntered);
                }
                // A panic is a defect of the VMM. It must end the microVM, not
                // leave it hanging with a vCPU less.
                let run = AssertUnwindSafe(|| vcpu::run(vcpu, &shared));
                if catch_unwind(run).is_err() {
                    let reason = format!("the VMM panicked in the thread of vCPU {index}");
                    shared.exit.pull(ExitReason::GuestFault(reason));
                }
            };
            std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(run)
                .map_err(host("a vCPU thread"))?;
        }
        let reason = self.event_loop.run()?;
        self.events.send(match &reason {
            ExitReason::PoweredOff => EventKind::PoweredOff,
            ExitReason::Reset => EventKind::Reset,
            ExitReason::GuestFault(reason) => EventKind::GuestFault {
                reason: reason.clone(),
            },
        });
        Ok(reason)
    }
}

fn create_vcpus(vm: &Vm, count: u8, entry: GuestAddress) -> Result<Vec<VcpuFd>, MachineError> {
    let supported = vm.supported_cpuid()?;
    let mut vcpus = Vec::with_capacity(count.into());
    for index in 0..count {
        let vcpu = vm.create_vcpu(index)?;
        vcpu.set_cpuid2(&cpuid::for_vcpu(&supported, index, count))
            .map_err(kvm("set what CPUID says (KVM_SET_CPUID2)"))?;
        registers::set_firmware_msrs(&vcpu)?;
        vcpus.push(vcpu);
    }
    if let Some(first) = vcpus.first() {
        registers::set_boot_registers(first, entry)?;
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
        self.event_loop.add(Box::new(QueueWorker::new(transport)));
        self.mmio_devices.push(MmioDevice {
            window: window as u32,
            gsi,
        });
        Ok(())
    }
}
