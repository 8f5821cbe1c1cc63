//! Devices that other parts of the system use.

use std::fs::File;
use std::io::ErrorKind;

use super::{Check, Finding, Host};

/// The TUN/TAP driver.
pub const TUN: Check = Check {
    name: "tun",
    purpose: "gives guests a network",
    required: false,
    run: |host| device(host, "/dev/net/tun", "tun"),
};

/// The in-kernel network backend.
pub const VHOST_NET: Check = Check {
    name: "vhost-net",
    purpose: "makes a guest's network fast",
    required: false,
    run: |host| device(host, "/dev/vhost-net", "vhost_net"),
};

/// The in-kernel vsock backend.
pub const VHOST_VSOCK: Check = Check {
    name: "vhost-vsock",
    purpose: "connects guests by AF_VSOCK; mote-vmm does so without it",
    required: false,
    run: |host| device(host, "/dev/vhost-vsock", "vhost_vsock"),
};

fn device(host: &Host, path: &str, module: &str) -> Finding {
    match File::options().read(true).write(true).open(host.path(path)) {
        Ok(_) => Finding::ok(path),
        Err(error) => match error.kind() {
            ErrorKind::PermissionDenied => {
                Finding::missing(format!("{path} may not be opened"), "run as root")
            }
            ErrorKind::NotFound => Finding::missing(
                format!("there is no {path}"),
                format!("load the module: modprobe {module}"),
            ),
            _ => Finding::missing(
                format!("{path} cannot be opened: {error}"),
                format!("load the module: modprobe {module}"),
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::tests::{empty_host, put};
    use super::*;

    #[test]
    fn a_missing_device_is_answered_with_its_module() {
        let (_directory, host) = empty_host();
        let finding = (VHOST_NET.run)(&host);
        assert_eq!(finding.status, Status::Missing);
        assert!(finding.advice.unwrap().contains("modprobe vhost_net"));
        put(&host, "/dev/vhost-net", "");
        assert_eq!((VHOST_NET.run)(&host).status, Status::Ok);
    }
}
