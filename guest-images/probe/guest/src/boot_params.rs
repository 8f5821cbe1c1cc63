//! What the boot loader says (Linux, Documentation/x86/zero-page.rst).

const RSDP_ADDRESS: usize = 0x070;
const MEMORY_MAP_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const COMMAND_LINE: usize = 0x228;
const MEMORY_MAP: usize = 0x2d0;
const MEMORY_MAP_ENTRY_BYTES: usize = 20;
const COMMAND_LINE_MAX_BYTES: usize = 2048;
const USABLE: u32 = 1;

/// `struct boot_params`.
pub struct BootParams(*const u8);

/// A usable range of memory.
#[derive(Clone, Copy)]
pub struct Range {
    /// Its first byte.
    pub start: u64,
    /// One past its last byte.
    pub end: u64,
}

impl BootParams {
    /// # Safety
    ///
    /// `address` must point at a page of boot parameters that never changes.
    pub unsafe fn at(address: *const u8) -> Self {
        Self(address)
    }

    fn field<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: all offsets used here lie in the page (`at`), and every type
        // read here is an integer.
        unsafe { self.0.wrapping_add(offset).cast::<T>().read_unaligned() }
    }

    /// Whether the signatures are in place.
    pub fn has_signatures(&self) -> bool {
        self.field::<u16>(BOOT_FLAG) == 0xaa55 && self.field::<[u8; 4]>(HEADER) == *b"HdrS"
    }

    /// Where the ACPI tables start.
    pub fn rsdp(&self) -> u64 {
        self.field(RSDP_ADDRESS)
    }

    /// The command line.
    pub fn command_line(&self) -> &'static str {
        let start = self.field::<u32>(COMMAND_LINE) as usize as *const u8;
        // SAFETY: by the boot protocol a string ends within the limit, and
        // nobody writes there.
        let bytes = unsafe { core::slice::from_raw_parts(start, COMMAND_LINE_MAX_BYTES) };
        let length = bytes.iter().position(|byte| *byte == 0);
        let length = length.expect("the command line ends");
        core::str::from_utf8(&bytes[..length]).expect("the command line is text")
    }

    /// The initrd; empty if there is none.
    pub fn initrd(&self) -> &'static [u8] {
        let start = self.field::<u32>(RAMDISK_IMAGE) as usize as *const u8;
        let length = self.field::<u32>(RAMDISK_SIZE) as usize;
        if length == 0 {
            return &[];
        }
        // SAFETY: by the boot protocol that is where it is, in memory that this
        // program is not linked into, and nobody writes there.
        unsafe { core::slice::from_raw_parts(start, length) }
    }

    /// The usable memory.
    pub fn memory(&self) -> impl Iterator<Item = Range> + '_ {
        let entries = self.field::<u8>(MEMORY_MAP_ENTRIES) as usize;
        (0..entries).filter_map(|index| {
            let entry = MEMORY_MAP + index * MEMORY_MAP_ENTRY_BYTES;
            let (start, length) = (self.field::<u64>(entry), self.field::<u64>(entry + 8));
            let range = Range {
                start,
                end: start + length,
            };
            (self.field::<u32>(entry + 16) == USABLE).then_some(range)
        })
    }
}
