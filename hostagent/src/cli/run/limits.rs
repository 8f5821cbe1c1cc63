//! How much memory and how many CPUs a microVM may have.

/// The least memory: below it our kernel and its initramfs do not come up.
pub const MIN_MEMORY_BYTES: u64 = 64 << 20;
/// What a microVM gets unless `-m` says otherwise. Pages are taken from the host
/// when the guest touches them first.
pub const DEFAULT_MEMORY: &str = "512m";
/// The most vCPUs.
pub const MAX_CPUS: u32 = 32;
/// Guest memory is a multiple of a page.
const PAGE_BYTES: u64 = 4096;

/// Checks `-m`. `host_bytes` is what the host has in all.
pub fn memory(bytes: u64, host_bytes: u64) -> Result<u64, String> {
    if bytes < MIN_MEMORY_BYTES {
        return Err(format!(
            "-m asks for {} of memory; a microVM needs at least {}",
            mebibytes(bytes),
            mebibytes(MIN_MEMORY_BYTES)
        ));
    }
    if bytes > host_bytes {
        return Err(format!(
            "-m asks for {} of memory; this host has {}",
            mebibytes(bytes),
            mebibytes(host_bytes)
        ));
    }
    Ok(bytes - bytes % PAGE_BYTES)
}

/// Checks `--cpus`. A vCPU is a thread, so there are no parts of one.
pub fn cpus(text: &str) -> Result<u32, String> {
    let refused = |reason| format!("--cpus {text}: {reason}");
    // Docker's are numbers such as 2.0.
    let whole = text.strip_suffix(".0").unwrap_or(text);
    match whole.parse::<u32>() {
        Ok(count @ 1..=MAX_CPUS) => Ok(count),
        Ok(_) => Err(refused(format!(
            "a microVM has 1 to {MAX_CPUS} virtual CPUs"
        ))),
        Err(_) if text.parse::<f64>().is_ok_and(|n| n.is_finite()) => Err(refused(format!(
            "a microVM has whole virtual CPUs, 1 to {MAX_CPUS}"
        ))),
        Err(_) => Err(refused("it is not a number".to_owned())),
    }
}

/// What this host has, from `/proc/meminfo`.
pub fn host_memory_bytes() -> std::io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    hostagent::doctor::memory_total_bytes(&text)
        .ok_or_else(|| std::io::Error::other("/proc/meminfo has no MemTotal"))
}

fn mebibytes(bytes: u64) -> String {
    if bytes < 1 << 20 {
        format!("{bytes} bytes")
    } else {
        format!("{} MiB", bytes >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_and_too_much_memory_is_refused() {
        let host = 8 << 30;
        assert!(memory(0, host).is_err());
        assert!(memory(MIN_MEMORY_BYTES - 1, host).is_err());
        assert!(memory(host + 1, host).is_err());
        assert_eq!(memory(MIN_MEMORY_BYTES, host), Ok(MIN_MEMORY_BYTES));
        assert_eq!(memory((128 << 20) + 5, host), Ok(128 << 20));
    }

    #[test]
    fn cpus_are_whole_and_1_to_32() {
        assert_eq!(cpus("1"), Ok(1));
        assert_eq!(cpus("32"), Ok(32));
        assert_eq!(cpus("2.0"), Ok(2));
        for text in ["0", "33", "1000", "-1", "1.5", "two", "", "99999999999"] {
            assert!(cpus(text).is_err(), "{text}");
        }
        assert!(cpus("1.5").unwrap_err().contains("whole"));
    }
}
