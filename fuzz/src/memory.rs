//! Guest memory. It stays mapped until the process ends, so there is one of a size.

use std::sync::OnceLock;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm::devices::virtio::mock::MEMORY_BYTES;
use vmm::memory::{GuestMemory, create, create_shared};

/// The memory of a mock driver, all zeroes.
pub fn for_driver() -> GuestMemory {
    static MEMORY: OnceLock<GuestMemory> = OnceLock::new();
    zeroed(MEMORY.get_or_init(|| create(MEMORY_BYTES).expect("memory for the guest")))
}

/// The same in a file.
pub fn shared_for_driver() -> GuestMemory {
    static MEMORY: OnceLock<GuestMemory> = OnceLock::new();
    zeroed(MEMORY.get_or_init(|| create_shared(MEMORY_BYTES).expect("memory for the guest")))
}

fn zeroed(memory: &GuestMemory) -> GuestMemory {
    static ZEROES: [u8; MEMORY_BYTES as usize] = [0; MEMORY_BYTES as usize];
    memory
        .write_slice(&ZEROES, GuestAddress(0))
        .expect("memory of that size");
    memory.clone()
}

/// The memory of a guest that boots, with whatever the last one left in it: what is
/// loaded there does not depend on it.
pub fn for_kernel() -> GuestMemory {
    static MEMORY: OnceLock<GuestMemory> = OnceLock::new();
    let memory = MEMORY.get_or_init(|| create(8 << 20).expect("memory for the guest"));
    assert_eq!(memory.num_regions(), 1);
    memory.clone()
}
