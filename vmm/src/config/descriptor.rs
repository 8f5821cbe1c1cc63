//! Descriptors of the kind that a field needs.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl};

use super::error::{ConfigError, kind};
use crate::descriptors::{Descriptors, access};

/// A descriptor open for reading.
pub fn readable(number: i32, field: &str, fds: &mut Descriptors) -> Result<File, ConfigError> {
    let file = File::from(fds.take(number, field)?);
    if !access(&file).0 {
        return Err(kind(field, "open for reading"));
    }
    Ok(file)
}

/// A descriptor open for writing.
pub fn writable(number: i32, field: &str, fds: &mut Descriptors) -> Result<File, ConfigError> {
    let file = File::from(fds.take(number, field)?);
    if !access(&file).1 {
        return Err(kind(field, "open for writing"));
    }
    Ok(file)
}

/// `file`, to be waited for by nobody who uses it: made non-blocking, for everyone who
/// shares it too (`O_NONBLOCK`, fcntl(2)). No vCPU and no other device waits for who is
/// at the other end.
pub fn non_blocking(file: File, field: &str) -> Result<File, ConfigError> {
    let flags = fcntl_getfl(&file);
    let set = flags.and_then(|flags| fcntl_setfl(&file, flags | OFlags::NONBLOCK));
    set.map_err(|_| kind(field, "a descriptor that can be made non-blocking"))?;
    Ok(file)
}

/// Whether a file beside a blob of so many bytes has the size that is wanted for it.
pub fn check_size(
    file: &File,
    wanted: u64,
    blob_bytes: u64,
    field: &str,
) -> Result<(), ConfigError> {
    let found = stored_size(file).ok_or_else(|| kind(field, "a regular file"))?;
    if found == wanted {
        return Ok(());
    }
    Err(ConfigError::Range {
        field: format!("the size of {field}"),
        found,
        wanted: format!("{wanted}, for a blob of {blob_bytes} bytes"),
    })
}

/// A socket that keeps messages apart and has another end.
pub fn seqpacket(number: i32, field: &str, fds: &mut Descriptors) -> Result<OwnedFd, ConfigError> {
    let socket = fds.take(number, field)?;
    let seqpacket = rustix::net::sockopt::socket_type(&socket)
        .is_ok_and(|kind| kind == rustix::net::SocketType::SEQPACKET);
    if !seqpacket || rustix::net::getpeername(&socket).is_err() {
        return Err(kind(field, "a connected SOCK_SEQPACKET socket"));
    }
    Ok(socket)
}

/// A Unix socket without message boundaries that has another end.
pub fn connected_stream(
    number: i32,
    field: &str,
    fds: &mut Descriptors,
) -> Result<OwnedFd, ConfigError> {
    use rustix::net::sockopt::{socket_domain, socket_type};
    use rustix::net::{AddressFamily, SocketType, getpeername};
    let socket = fds.take(number, field)?;
    let stream = socket_domain(&socket).is_ok_and(|domain| domain == AddressFamily::UNIX)
        && socket_type(&socket).is_ok_and(|kind| kind == SocketType::STREAM)
        && getpeername(&socket).is_ok();
    if !stream {
        return Err(kind(field, "a connected Unix SOCK_STREAM socket"));
    }
    Ok(socket)
}

/// The size of a regular file or block device; `None` for anything else.
pub fn stored_size(file: &File) -> Option<u64> {
    let stat = rustix::fs::fstat(file).ok()?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => u64::try_from(stat.st_size).ok(),
        FileType::BlockDevice => {
            let end = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0)).ok()?;
            Some(end)
        }
        _ => None,
    }
}
