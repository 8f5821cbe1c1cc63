//! Every scenario by name.

use crate::arguments::Arguments;
use crate::boot_params::BootParams;
use crate::{cpuid, friendly, hostile, machine};

/// What a scenario is given.
pub struct Context<'a> {
    /// The command line.
    pub arguments: Arguments<'a>,
    /// What the boot loader said.
    pub boot: &'a BootParams,
}

type Scenario = fn(&Context);

const SCENARIOS: &[(&str, Scenario)] = &[
    ("hello", machine::hello),
    ("command-line", machine::command_line),
    ("echo", machine::echo),
    ("initrd", machine::initrd),
    ("tables", machine::tables),
    ("processors", machine::processors),
    ("cpuid", cpuid::tell),
    ("count", machine::count),
    ("chatter", machine::chatter),
    ("counted", hostile::transport::counted),
    ("power-button", machine::power_button),
    ("generation-id", machine::generation_id),
    ("memory", machine::memory),
    ("nothing-there", machine::nothing_there),
    ("idle", machine::idle),
    ("reset", machine::reset),
    ("keyboard-reset", machine::keyboard_reset),
    ("triple-fault", machine::triple_fault),
    ("fail", machine::fail),
    ("exploit", machine::exploit),
    ("block-read", friendly::block::read),
    ("block-write", friendly::block::write),
    ("block-read-only", friendly::block::read_only),
    ("block-out-of-range", friendly::block::out_of_range),
    ("block-identity", friendly::block::identity),
    ("block-interrupt", friendly::block::interrupt),
    ("block-shrunk", friendly::block::shrunk),
    ("block-discard", friendly::discard::play),
    ("entropy", friendly::entropy::differs),
    ("balloon-inflate", friendly::balloon::inflate),
    ("balloon-report", friendly::balloon::report),
    ("balloon-target", friendly::balloon::target),
    ("balloon-statistics", friendly::balloon::statistics),
    ("balloon-silent", friendly::balloon::silent),
    ("console-echo", friendly::console::echo),
    ("console-print", friendly::console::print),
    ("console-size", friendly::console::size),
    ("fs-look", friendly::fs::look),
    ("fs-survive", friendly::fs::survive),
    ("fs-restart", friendly::fs::restart),
    ("net-echo", friendly::net::echo),
    ("net-link-down", friendly::net::link_down),
    ("pmem-look", friendly::pmem::look),
    ("pmem-protected", friendly::pmem::protected),
    ("pmem-fill", friendly::pmem::fill),
    ("pmem-touch", friendly::pmem::touch),
    ("pmem-lend", friendly::pmem::lend),
    ("vsock-upload", friendly::vsock::upload),
    ("vsock-download", friendly::vsock::download),
    ("vsock-serve", friendly::vsock::serve),
    ("vsock-refused", friendly::vsock::refused),
    ("vsock-reset-by-host", friendly::vsock::reset_by_host),
    ("life-cycle", hostile::transport::life_cycle),
    ("registers", hostile::transport::registers),
    ("doorbells", hostile::transport::doorbells),
    ("reset-in-flight", hostile::transport::reset_in_flight),
    (
        "rings-outside-memory",
        hostile::transport::rings_outside_memory,
    ),
    ("flood-of-port-accesses", hostile::flood::ports),
    ("flood-of-memory-accesses", hostile::flood::memory),
    ("flood-of-doorbells", hostile::flood::doorbells),
    ("flood-of-interrupts", hostile::flood::interrupts),
    ("flood-of-text", hostile::flood::text),
    ("flood-of-connections", hostile::vsock::flood),
    ("hostile-block", hostile::block::play),
    ("block-unsupported", hostile::block::unsupported),
    ("hostile-discard", hostile::discard::play),
    ("reads-in-flight", hostile::transport::reads_in_flight),
    ("hostile-entropy", hostile::entropy::play),
    ("hostile-balloon", hostile::balloon::play),
    ("hostile-console", hostile::console::play),
    ("hostile-net", hostile::net::play),
    ("net-resets", hostile::net::resets),
    ("hostile-pmem", hostile::pmem::play),
    ("disk-hangs", hostile::hung::disk),
    ("panics", hostile::panics::in_a_device),
    ("panic-elsewhere", hostile::panics::elsewhere),
    ("hostile-vsock", hostile::vsock::play),
    ("vsock-strangers", hostile::vsock::strangers),
    ("vsock-past-credit", hostile::vsock::past_credit),
    ("vsock-too-many", hostile::vsock::too_many),
    ("vsock-deaf", hostile::vsock::deaf),
];

/// Plays the scenario that the command line names.
pub fn play(boot: &BootParams) {
    let context = Context {
        arguments: Arguments::parse(boot.command_line()),
        boot,
    };
    let name = context.arguments.scenario;
    match SCENARIOS.iter().find(|(known, _)| *known == name) {
        Some((_, scenario)) => scenario(&context),
        None => panic!("there is no scenario {name}"),
    }
}
