//! Network namespaces joined by veth pairs, for tests.

use std::net::Ipv4Addr;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where a node is.
#[derive(Clone)]
pub struct Place {
    namespace: String,
    pub address: Ipv4Addr,
}

/// Three namespaces: the second has a link to each of the others. They go when this is
/// dropped.
pub struct Namespaces(Vec<String>);

/// Why there can be no namespaces here, if so.
pub fn missing() -> Option<String> {
    let name = format!("mote-probe-{}", std::process::id());
    let made = ip(&["netns", "add", &name]).and_then(|()| {
        let pair = [
            "link", "add", "veth0", "type", "veth", "peer", "name", "veth1",
        ];
        let linked = ip(&[&["-n", &name], &pair[..]].concat());
        let _ = ip(&["netns", "del", &name]);
        linked
    });
    made.err().map(|error| {
        format!("no network namespaces with veth pairs can be made here (as root, with iproute2): {error}")
    })
}

impl Namespaces {
    pub fn new() -> (Self, [Place; 3]) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |node: &str| format!("mote-{}-{number}-{node}", std::process::id());
        let [a, b, c] = ["a", "b", "c"].map(name);
        let made = Self(vec![a.clone(), b.clone(), c.clone()]);
        for namespace in &made.0 {
            must(&["netns", "add", namespace]);
            must(&["-n", namespace, "link", "set", "lo", "up"]);
        }
        for (other, subnet) in [(&a, 1), (&c, 2)] {
            let near = format!("veth{subnet}");
            let pair = [
                "link", "add", &near, "type", "veth", "peer", "name", "veth0",
            ];
            let of_peer = ["netns", other];
            must(&[&["-n", &b], &pair[..], &of_peer].concat());
            let near_address = format!("10.77.{subnet}.2/24");
            let far_address = format!("10.77.{subnet}.1/24");
            for (namespace, link, address) in [
                (&b, near.as_str(), near_address),
                (other, "veth0", far_address),
            ] {
                must(&["-n", namespace, "addr", "add", &address, "dev", link]);
                must(&["-n", namespace, "link", "set", link, "up"]);
            }
        }
        let place = |namespace, address| Place { namespace, address };
        let places = [
            place(a, Ipv4Addr::new(10, 77, 1, 1)),
            place(b, Ipv4Addr::new(10, 77, 1, 2)),
            place(c, Ipv4Addr::new(10, 77, 2, 1)),
        ];
        (made, places)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for namespace in &self.0 {
            let _ = ip(&["netns", "del", namespace]);
        }
    }
}

impl Place {
    /// The same command, run there; the process is that of the command itself.
    pub fn enter(&self, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.namespace]);
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    /// How many UDP and TCP sockets there are, of whatever state.
    pub fn sockets(&self) -> usize {
        let tables = ["udp", "udp6", "tcp", "tcp6"].map(|table| format!("/proc/net/{table}"));
        let mut command = Command::new("cat");
        command.args(tables);
        let output = self.enter(&command).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines()
            .filter(|line| !line.contains("local_address"))
            .count()
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new("ip");
    let output: Output = command
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

#[track_caller]
fn must(arguments: &[&str]) {
    ip(arguments).unwrap_or_else(|error| panic!("ip {arguments:?}: {error}"));
}
