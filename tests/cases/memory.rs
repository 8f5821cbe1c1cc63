//! Memory that a guest no longer uses is the host's again.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::time::{Duration, Instant};

use e2e::{finish, image, mote_in_background_with_input};

const MIB: u64 = 1 << 20;
/// What the process in the guest allocates and frees.
const FREED: u64 = 64 * MIB;
/// How long the guest may keep what was freed: its kernel waits two seconds before
/// it reports, and an emulated one takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

/// The process id of the VMM that `mote` with process id `parent` has started.
fn vmm_of(parent: u32) -> u32 {
    let processes = fs::read_dir("/proc").expect("/proc is there");
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_vmm = |id: &u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let (name, rest) = stat.rsplit_once(") ").unwrap_or_default();
        name.ends_with("(mote-vmm") && rest.split(' ').nth(1) == Some(&parent.to_string())
    };
    ids.into_iter()
        .find(is_vmm)
        .expect("mote has started mote-vmm")
}

/// How much of the host's memory a process has.
fn resident_bytes(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse::<u64>().ok())
        .expect("kilobytes")
        * 1024
}

#[test]
fn the_host_has_back_what_a_process_in_the_guest_has_freed() {
    let script = "b = bytearray(b'x') * (64 << 20); print('full', flush=True); input(); \
                  del b; print('freed', flush=True); input()";
    let arguments = ["run", "-i", "-m", "512M", &image(), "python3", "-c", script];
    let mut child = mote_in_background_with_input(arguments);
    let mut input = child.stdin.take().expect("a pipe");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    output.read_line(&mut line).expect("the guest prints");
    assert_eq!(line, "full\n");
    let vmm = vmm_of(child.id());
    let full = resident_bytes(vmm);
    assert!(full > FREED, "{full} bytes while the guest uses {FREED}");

    input.write_all(b"\n").expect("the guest reads");
    line.clear();
    output.read_line(&mut line).expect("the guest prints");
    assert_eq!(line, "freed\n");
    let begin = Instant::now();
    // The guest reports blocks of 2 MiB, of which some have other pages in them.
    let enough = full - FREED / 4 * 3;
    let mut now = resident_bytes(vmm);
    while now > enough && begin.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(100));
        now = resident_bytes(vmm);
    }
    println!("{} MiB, then {} MiB", full / MIB, now / MIB);
    assert!(now <= enough, "{full} bytes, then {now}");
    drop(input);
    finish(child);
}
