//! `mote run --network`: a guest on a tap interface of the host.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use e2e::{finish, image, mote, mote_in_background};

const GUEST: &str = "10.99.0.2";
const HOST: &str = "10.99.0.1";
/// A guest that has not answered by then never will.
const PATIENCE: Duration = Duration::from_secs(120);

/// A tap interface with several queues and the address [`HOST`]; deleted when
/// dropped.
struct Tap(&'static str);

impl Tap {
    fn new(name: &'static str) -> Self {
        let this = Self(name);
        ip(&format!(
            "tuntap add dev {name} mode tap vnet_hdr multi_queue"
        ));
        ip(&format!("address add {HOST}/24 dev {name}"));
        ip(&format!("link set {name} up"));
        this
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", self.0]).status();
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .expect("iproute2 is installed");
    assert!(status.success(), "ip {arguments}: {status}; are we root?");
}

/// Sets and gets a value of `length` bytes in the guest's redis, and expects it to
/// come back as it went.
fn round_trip(key: usize, length: usize) {
    let value: Vec<u8> = (0..length)
        .map(|n| ((n + key) * 37 / 11 % 251) as u8)
        .collect();
    let stream = TcpStream::connect((GUEST, 6379)).expect("the guest's server accepts");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a time limit");
    let mut writer = stream.try_clone().expect("a copy");
    let mut reader = BufReader::new(stream);
    let key = format!("key{key}");
    let head = format!(
        "*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${length}\r\n",
        key.len()
    );
    let request = [head.as_bytes(), &value, b"\r\n"].concat();
    writer.write_all(&request).expect("the guest reads");
    let mut line = String::new();
    reader.read_line(&mut line).expect("the guest answers");
    assert_eq!(line, "+OK\r\n");
    let request = format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len());
    writer
        .write_all(request.as_bytes())
        .expect("the guest reads");
    line.clear();
    reader.read_line(&mut line).expect("the guest answers");
    assert_eq!(line, format!("${length}\r\n"));
    let mut answer = vec![0; length];
    reader.read_exact(&mut answer).expect("the guest answers");
    assert!(answer == value, "another value came back");
}

#[test]
fn a_guest_with_two_queues_connects_to_the_host_and_serves_it() {
    connects_and_serves("motetest0", "");
}

#[test]
fn so_it_does_within_limits() {
    let limits = ",transmit-bps=4m,receive-bps=4m:128k,transmit-pps=4k,receive-pps=4k";
    connects_and_serves("motetest3", limits);
}

#[test]
fn so_it_does_where_the_hosts_kernel_moves_the_frames() {
    // Opening it loads the driver where that is not loaded.
    if let Err(error) = std::fs::File::open("/dev/vhost-net") {
        eprintln!("skipped: vhost-net: cannot open /dev/vhost-net: {error}");
        return;
    }
    connects_and_serves("motetest2", ",vhost=on");
}

/// Both ways over the tap interface `name`, with more of the option at its end.
fn connects_and_serves(name: &'static str, more: &str) {
    // One at a time: there is one network for all.
    static NETWORK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _network = NETWORK.lock();
    let _tap = Tap::new(name);
    let listener = TcpListener::bind((HOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    // What a client asks first, and the answer of a server that knows one word.
    let host_server = thread::spawn(move || {
        let (mut stream, from) = listener.accept().expect("the guest connects");
        let mut request = [0; 64];
        let length = stream.read(&mut request).expect("the guest asks");
        stream.write_all(b"+PONG\r\n").expect("the guest listens");
        (from.ip().to_string(), request[..length].to_vec())
    });
    let script = format!(
        "echo $(ls /sys/class/net/eth0/queues) $(cat /sys/class/net/eth0/address); \
         redis-server --bind 0.0.0.0 --protected-mode no --save '' --daemonize yes >/dev/null; \
         redis-cli -h {HOST} -p {port} ping; grep {GUEST} /etc/hosts | cut -f2; \
         until redis-cli ping >/dev/null 2>&1; do sleep 0.2; done; echo serving; \
         redis-cli blpop done 0"
    );
    let option = format!("tap={name},mac=02:00:00:00:09:02,ip={GUEST}/24,gateway={HOST}{more}");
    let image = image();
    let mut child = mote_in_background([
        "run",
        "--cpus",
        "2",
        "--hostname",
        "box",
        "--network",
        &option,
        &image,
        "/bin/sh",
        "-c",
        &script,
    ]);
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut lines = Vec::new();
    while lines.last().map(String::as_str) != Some("serving") {
        let mut line = String::new();
        let length = output.read_line(&mut line).expect("the guest prints");
        if length == 0 {
            panic!("{lines:?}, {:?}", finish(child).errors());
        }
        lines.push(line.trim_end().to_owned());
    }
    let expected = [
        "rx-0 rx-1 tx-0 tx-1 02:00:00:00:09:02",
        "PONG",
        "box",
        "serving",
    ];
    assert_eq!(lines, expected);
    let (from, request) = host_server.join().expect("the host's server");
    assert_eq!(from, GUEST);
    assert!(request.to_ascii_lowercase().ends_with(b"ping\r\n"));

    // Several connections at once, so that both queues have some.
    let clients: Vec<_> = (0..4)
        .map(|key| thread::spawn(move || round_trip(key, (1 << 20) + key)))
        .collect();
    for client in clients {
        client.join().expect("a round trip");
    }
    let mut stream = TcpStream::connect((GUEST, 6379)).expect("the guest's server accepts");
    stream
        .write_all(b"*3\r\n$5\r\nRPUSH\r\n$4\r\ndone\r\n$1\r\n1\r\n")
        .expect("the guest reads");
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("the guest prints");
    assert_eq!(rest, "done\n1\n");
    finish(child).expect(0);
}

#[test]
fn networks_that_cannot_be_are_refused_by_name() {
    let refused = |option: &str| {
        mote(["run", "--network", option, &image(), "true"])
            .expect(125)
            .errors()
    };
    assert!(refused("bridge").contains("--network bridge"));
    assert!(refused("tap=lo").contains("lo"));
    let errors = refused("tap=motetest1,ip=10.0.0.2/24,gateway=10.0.1.1");
    assert!(errors.contains("10.0.1.1"), "{errors}");
}
