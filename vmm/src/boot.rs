//! Puts kernel, initrd and command line where the Linux boot protocol wants
//! them (Linux, Documentation/x86/boot.rst and zero-page.rst).

pub mod blob;

use std::io::{self, Read, Seek, SeekFrom};

use linux_loader::bootparam::boot_params;
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::arch::layout;
use crate::block::verified::Corrupt;
use crate::config::boot::BootConfig;
use crate::memory::GuestMemory;
use blob::BootBlob;

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const BZIMAGE_MAGIC_OFFSET: u64 = 0x202;
const BZIMAGE_MAGIC: [u8; 4] = *b"HdrS";
/// The 64-bit entry point of a bzImage, from where it was loaded.
const BZIMAGE_ENTRY_64: u64 = 0x200;
/// `xloadflags`: the kernel has a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1 << 0;

const BOOT_SIGNATURE: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// For an ELF kernel, which says nothing: what any x86-64 Linux takes.
const INITRD_ADDRESS_MAX: u32 = 0x7fff_ffff;
const MIN_ALIGNMENT: u32 = 0x100_0000;
const PAGE_BYTES: u64 = 4096;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Neither an ELF file nor a bzImage.
    #[error("boot.kernel is neither an ELF vmlinux nor a bzImage (no magic number of either)")]
    NotAKernel,
    /// A kernel that starts in 32-bit mode only.
    #[error("boot.kernel has no 64-bit entry point; mote boots x86-64 kernels only")]
    Not64Bit,
    /// The kernel file is damaged, or too large for the guest's memory.
    #[error("cannot load boot.kernel into {memory_bytes} bytes of guest memory: {reason}")]
    Load {
        /// The guest's memory.
        memory_bytes: u64,
        /// What the loader said.
        reason: linux_loader::loader::Error,
    },
    /// The kernel's memory, what it clears for itself included, does not fit.
    #[error(
        "boot.kernel needs the first {needed} bytes of memory, the guest has {available}; \
         give the guest more memory"
    )]
    KernelTooLarge {
        /// One past the last address the kernel takes at its start.
        needed: u64,
        /// The end of the guest's low memory.
        available: u64,
    },
    /// Reading failed.
    #[error("cannot read {what}")]
    Read {
        /// The field of the spec.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It is not what the spec names.
    #[error("cannot load {what}")]
    Corrupt {
        /// The field of the spec.
        what: &'static str,
        /// What is wrong.
        source: Corrupt,
    },
    /// The initrd does not fit.
    #[error(
        "boot.initrd, of {bytes} bytes, does not fit above the kernel; give the guest more memory"
    )]
    InitrdTooLarge {
        /// Its size.
        bytes: u64,
    },
    /// A structure does not fit: the guest has too little memory.
    #[error("cannot write {what} to guest memory")]
    Write {
        /// Which structure, or the field of the spec it comes from.
        what: &'static str,
        /// Why.
        source: GuestMemoryError,
    },
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct LoadedKernel {
    /// Where the boot vCPU starts, in 64-bit mode.
    pub entry: GuestAddress,
    end: u64,
    params: boot_params,
}

/// Loads the kernel. It comes before the rest that goes above 1 MiB, as the kernel
/// decides where there is room.
pub fn load_kernel(memory: &GuestMemory, kernel: &mut BootBlob) -> Result<LoadedKernel, BootError> {
    let loaded = load_either(memory, kernel);
    told_apart("boot.kernel", kernel, loaded)
}

/// What a blob is not says more than what came of it.
fn told_apart<T>(
    what: &'static str,
    blob: &mut BootBlob,
    outcome: Result<T, BootError>,
) -> Result<T, BootError> {
    outcome.map_err(|error| match blob.take_corruption() {
        Some(source) => BootError::Corrupt { what, source },
        None => error,
    })
}

fn load_either(memory: &GuestMemory, kernel: &mut BootBlob) -> Result<LoadedKernel, BootError> {
    let read = |source| BootError::Read {
        what: "boot.kernel",
        source,
    };
    let mut magic = [0; 4];
    let loaded = if read_at(kernel, 0, &mut magic).map_err(read)? && magic == ELF_MAGIC {
        load_elf(memory, kernel)?
    } else if read_at(kernel, BZIMAGE_MAGIC_OFFSET, &mut magic).map_err(read)?
        && magic == BZIMAGE_MAGIC
    {
        load_bzimage(memory, kernel)?
    } else {
        return Err(BootError::NotAKernel);
    };
    let available = low_memory_end(memory);
    if loaded.end > available {
        return Err(BootError::KernelTooLarge {
            needed: loaded.end,
            available,
        });
    }
    Ok(loaded)
}

/// Whether the blob was long enough to fill `bytes` from `offset`.
fn read_at(file: &mut BootBlob, offset: u64, bytes: &mut [u8]) -> io::Result<bool> {
    file.seek(SeekFrom::Start(offset))?;
    match file.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

fn load_error(memory: &GuestMemory) -> impl FnOnce(linux_loader::loader::Error) -> BootError {
    let memory_bytes = memory.iter().map(vm_memory::GuestMemoryRegion::len).sum();
    move |reason| BootError::Load {
        memory_bytes,
        reason,
    }
}

fn load_elf(memory: &GuestMemory, kernel: &mut BootBlob) -> Result<LoadedKernel, BootError> {
    let lowest = Some(GuestAddress(layout::HIGH_MEMORY));
    let loaded: KernelLoaderResult =
        Elf::load(memory, None, kernel, lowest).map_err(load_error(memory))?;
    let mut params = boot_params::default();
    params.hdr.initrd_addr_max = INITRD_ADDRESS_MAX;
    params.hdr.kernel_alignment = MIN_ALIGNMENT;
    Ok(LoadedKernel {
        entry: loaded.kernel_load,
        end: loaded.kernel_end,
        params,
    })
}

fn load_bzimage(memory: &GuestMemory, kernel: &mut BootBlob) -> Result<LoadedKernel, BootError> {
    let lowest = Some(GuestAddress(layout::HIGH_MEMORY));
    let loaded: KernelLoaderResult =
        BzImage::load(memory, None, kernel, lowest).map_err(load_error(memory))?;
    let header = loaded.setup_header.ok_or(BootError::NotAKernel)?;
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::Not64Bit);
    }
    let params = boot_params {
        hdr: header,
        ..Default::default()
    };
    // It unpacks itself to `pref_address` and needs `init_size` bytes there.
    let unpacked = { header.pref_address }.saturating_add(u64::from(header.init_size));
    Ok(LoadedKernel {
        entry: loaded.kernel_load.unchecked_add(BZIMAGE_ENTRY_64),
        end: loaded.kernel_end.max(unpacked),
        params,
    })
}

/// Loads the initrd and writes the command line and `boot_params`.
pub fn finish(
    memory: &GuestMemory,
    mut kernel: LoadedKernel,
    boot: BootConfig,
    rsdp: GuestAddress,
) -> Result<GuestAddress, BootError> {
    let params = &mut kernel.params;
    params.hdr.boot_flag = BOOT_SIGNATURE;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.acpi_rsdp_addr = rsdp.raw_value();
    write_command_line(memory, params, &boot.command_line)?;
    if let Some(mut initrd) = boot.initrd {
        let loaded = load_initrd(memory, &mut initrd, kernel.end, params);
        let (address, bytes) = told_apart("boot.initrd", &mut initrd, loaded)?;
        params.hdr.ramdisk_image = address;
        params.hdr.ramdisk_size = bytes;
    }
    write_memory_map(memory, params);
    memory
        .write_obj(*params, layout::BOOT_PARAMS)
        .map_err(|source| BootError::Write {
            what: "the boot parameters",
            source,
        })?;
    Ok(kernel.entry)
}

fn write_command_line(
    memory: &GuestMemory,
    params: &mut boot_params,
    text: &str,
) -> Result<(), BootError> {
    let mut bytes = Vec::with_capacity(text.len() + 1);
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    memory
        .write_slice(&bytes, layout::COMMAND_LINE)
        .map_err(|source| BootError::Write {
            what: "boot.command_line",
            source,
        })?;
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE.raw_value() as u32;
    params.hdr.cmdline_size = bytes.len() as u32;
    Ok(())
}

/// Puts the initrd at the end of low memory, and returns where and how long.
fn load_initrd(
    memory: &GuestMemory,
    initrd: &mut BootBlob,
    kernel_end: u64,
    params: &boot_params,
) -> Result<(u32, u32), BootError> {
    let bytes = initrd.length_bytes();
    let too_large = || BootError::InitrdTooLarge { bytes };
    let low_end = low_memory_end(memory).min(u64::from(params.hdr.initrd_addr_max) + 1);
    let address = low_end.checked_sub(bytes).ok_or_else(too_large)? / PAGE_BYTES * PAGE_BYTES;
    if address < kernel_end {
        return Err(too_large());
    }
    memory
        .read_exact_volatile_from(GuestAddress(address), initrd, bytes as usize)
        .map_err(|source| BootError::Write {
            what: "boot.initrd",
            source,
        })?;
    // Both are below `initrd_addr_max`, a u32.
    Ok((address as u32, bytes as u32))
}

fn low_memory_end(memory: &GuestMemory) -> u64 {
    let low = memory.find_region(GuestAddress(0));
    low.map_or(0, vm_memory::GuestMemoryRegion::len)
}

fn write_memory_map(memory: &GuestMemory, params: &mut boot_params) {
    let mut entries = 0;
    let mut add = |address: u64, size: u64, kind: u32| {
        let entry = &mut params.e820_table[entries];
        (entry.addr, entry.size, entry.r#type) = (address, size, kind);
        entries += 1;
    };
    let conventional = layout::CONVENTIONAL_MEMORY_END;
    add(0, conventional, E820_RAM);
    add(
        conventional,
        layout::HIGH_MEMORY - conventional,
        E820_RESERVED,
    );
    for region in memory.iter() {
        let (start, length) = region_range(region);
        if start == 0 {
            add(layout::HIGH_MEMORY, length - layout::HIGH_MEMORY, E820_RAM);
        } else {
            add(start, length, E820_RAM);
        }
    }
    params.e820_entries = entries as u8;
}

fn region_range(region: &impl vm_memory::GuestMemoryRegion) -> (u64, u64) {
    (region.start_addr().raw_value(), region.len())
}
