//! What a network device does.
//!
//! A Linux guest has one virtio-net device, behind it a tap interface of this process's
//! network namespace, and nothing else is in there. iperf3 sends one TCP stream to the
//! guest and then one from it; then each side asks the other for a byte, over and over.
//! With the frames moved by the monitor, and by the kernel (vhost-net). The monitors
//! take turns, in one order and then in the other.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::comparison::{Better, Comparison, Group};
use crate::error::{BenchError, host};
use crate::interruption;
use crate::linux::{self, Images, Lost};
use crate::monitor::{Machine, Monitor, Nic, Programs};

const TAP: &str = "bench0";
const HOST: &str = "10.0.0.1";
const GUEST: &str = "10.0.0.2";
/// The port of requests on both sides.
const PORT: u16 = 7;
/// How long iperf3 sends in each direction.
const SECONDS: u32 = 5;
/// Requests in each direction; the median is taken.
const REQUESTS: usize = 500;
const PATIENCE: Duration = Duration::from_secs(120);

/// The figures of one machine.
#[derive(Debug, Clone, Copy)]
struct Trial {
    to_guest: f64,
    from_guest: f64,
    host_asks: f64,
    guest_asks: f64,
}

type Figure = (&'static str, fn(&Trial) -> f64);
const STREAMS: [Figure; 2] = [
    ("to the guest", |trial| trial.to_guest),
    ("from the guest", |trial| trial.from_guest),
];
const REQUESTERS: [Figure; 2] = [
    ("the host asks", |trial| trial.host_asks),
    ("the guest asks", |trial| trial.guest_asks),
];
/// Who moves the frames.
const MOVERS: [(bool, &str); 2] = [(false, "by the monitor"), (true, "by vhost-net")];

/// Measures `turns`; `progress` is told what is being done, `finished` gets each turn.
/// Expects to be in a network namespace of its own.
pub fn run(
    programs: &Programs,
    images: &Images,
    turns: Range<usize>,
    mut progress: impl FnMut(&str),
    finished: impl FnMut(Comparison) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    let monitors = programs.without_firecracker()?;
    for arguments in [
        format!("tuntap add dev {TAP} mode tap vnet_hdr"),
        format!("address add {HOST}/24 dev {TAP}"),
        format!("link set {TAP} up"),
    ] {
        program(Command::new("ip").args(arguments.split(' ')))?;
    }
    let listener = TcpListener::bind((HOST, PORT)).map_err(host("listen for the guest"))?;
    let all = turns.end;
    let turn = |turn, lost: &mut Lost| {
        let mut trials = MOVERS.map(|_| vec![None; monitors.len()]);
        for ((vhost, mover), trials) in MOVERS.iter().zip(&mut trials) {
            for index in linux::order(turn, monitors.len()) {
                let monitor = &monitors[index];
                let name = monitor.name();
                progress(&format!("turn {} of {all}, {name}, {mover}", turn + 1));
                let trial = || trial(monitor, images, &listener, *vhost);
                trials[index] = Some(lost.trial(name, &mut progress, trial)?);
            }
        }
        Ok(report(&monitors, &trials))
    };
    linux::turns("net", &monitors, turns, turn, finished)
}

/// One turn, by mover and by monitor.
fn report(monitors: &[Monitor], trials: &[Vec<Option<Trial>>]) -> Comparison {
    let setting = format!("{SECONDS} s and {REQUESTS} requests each way");
    let mut comparison = Comparison::new("net", 1, setting, monitors);
    for (title, unit, better, figures) in [
        ("one TCP stream", "Mbit/s", Better::More, STREAMS),
        (
            "request and response of a byte",
            "µs",
            Better::Less,
            REQUESTERS,
        ),
    ] {
        let mut group = Group {
            title: title.to_owned(),
            unit: unit.to_owned(),
            better,
            rows: Vec::new(),
        };
        for ((_, mover), trials) in MOVERS.iter().zip(trials) {
            for (name, of) in figures {
                let values = trials.iter().map(|trial| trial.iter().map(of).collect());
                group.push(format!("{name}, {mover}"), values.collect());
            }
        }
        comparison.groups.push(group);
    }
    comparison
}

fn trial(
    monitor: &Monitor,
    images: &Images,
    listener: &TcpListener,
    vhost: bool,
) -> Result<Trial, BenchError> {
    let mut guest = images.guest(&format!("net {REQUESTS}"))?;
    guest.nic = Some(Nic {
        tap: TAP.to_owned(),
        vhost,
    });
    let mut machine = monitor.start(&guest)?;
    linux::wait_until_ready(&mut machine)?;
    let to_guest = stream(&[])?;
    let from_guest = stream(&["--reverse"])?;
    let host_asks = ask()?;
    let guest_asks = answer(&mut machine, listener)?;
    linux::lines_until_done(&mut machine, PATIENCE)?;
    Ok(Trial {
        to_guest,
        from_guest,
        host_asks,
        guest_asks,
    })
}

/// The rate of a stream in Mbit/s, as its receiver has it.
fn stream(direction: &[&str]) -> Result<f64, BenchError> {
    let mut command = Command::new("timeout");
    command
        .args([&PATIENCE.as_secs().to_string(), "iperf3", "--json"])
        .args(["--client", GUEST, "--time", &SECONDS.to_string()])
        .args(direction);
    let text = program(&mut command)?;
    received(&text).ok_or_else(|| BenchError::Program {
        command: format!("{command:?}"),
        errors: text,
    })
}

fn received(json: &str) -> Option<f64> {
    let report: serde_json::Value = serde_json::from_str(json).ok()?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64()?;
    (rate > 0.0).then_some(rate / 1e6)
}

/// The median time from a request of the host to the guest's response, in µs.
fn ask() -> Result<f64, BenchError> {
    let ask = || -> io::Result<Vec<f64>> {
        let mut guest = TcpStream::connect((GUEST, PORT))?;
        configure(&guest)?;
        let mut byte = [0];
        let mut times = Vec::with_capacity(REQUESTS);
        for _ in 0..REQUESTS {
            let clock = Instant::now();
            guest.write_all(&byte)?;
            guest.read_exact(&mut byte)?;
            times.push(clock.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    };
    ask().map(median).map_err(host("ask the guest"))
}

/// The median time from one request of the guest to its next, in µs: it asks again as
/// soon as it has the response.
fn answer(machine: &mut Machine<'_>, listener: &TcpListener) -> Result<f64, BenchError> {
    if !interruption::wait_readable(listener, PATIENCE)? {
        return Err(linux::unexpected(machine, "nothing", "a connection"));
    }
    let answer = || -> io::Result<Vec<f64>> {
        let (mut guest, _) = listener.accept()?;
        configure(&guest)?;
        let mut byte = [0];
        let mut times = Vec::with_capacity(REQUESTS);
        let mut last: Option<Instant> = None;
        while guest.read(&mut byte)? == 1 {
            if let Some(last) = last.replace(Instant::now()) {
                times.push(last.elapsed().as_secs_f64() * 1e6);
            }
            guest.write_all(&byte)?;
        }
        Ok(times)
    };
    answer().map(median).map_err(host("answer the guest"))
}

fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs a program and returns what it prints.
fn program(command: &mut Command) -> Result<String, BenchError> {
    let output = command.output().map_err(|source| BenchError::Start {
        path: command.get_program().into(),
        source,
    })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(BenchError::Program {
        command: format!("{command:?}"),
        errors: format!("{text}{}", String::from_utf8_lossy(&output.stderr)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streams_rate_is_what_its_receiver_got() {
        let json = r#"{"end":{"sum_sent":{"bits_per_second":9e9},
            "sum_received":{"bits_per_second":8.5e9}}}"#;
        assert_eq!(received(json), Some(8500.0));
        assert_eq!(received(r#"{"error":"unable to connect"}"#), None);
    }
}
