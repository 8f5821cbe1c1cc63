//! Guests that break the rules: nobody but the device they break them with takes
//! notice, and that one works again after a reset.

use std::io::Write;

use crate::machine::{Outcome, memory_file, pattern, probe, sealed_file};

/// Plays a scenario on a machine with one of each device, and an agent that
/// accepts every connection and reads none.
fn play(scenario: &str) -> Option<Outcome> {
    let disk = memory_file(&pattern(8, 64));
    let machine = probe(&format!("{scenario} seed=8"))?;
    let mut running = machine
        .disk(&disk, true)
        .entropy()
        .vsock()
        .balloon()
        .terminal()
        .pmem(&sealed_file(&pattern(9, 8)), true)
        .start();
    // For who has buffers for it, if the guest has not come to its end before.
    let _ = running.terminal().keyboard.write_all(b"typed");
    running.take_agent().accept_all();
    Some(running.finish())
}

/// One test for each attack of a scenario: its name in the guest, and whether the
/// device asks for reset, or answers.
macro_rules! attacks {
    ($scenario:literal on $device:literal: $($test:ident, $attack:literal, $outcome:ident;)*) => {$(
        #[test]
        fn $test() {
            let Some(outcome) = play(concat!($scenario, " attack=", $attack)) else { return };
            outcome.expect_success_after_faults("survived", attacks!($outcome $device));
        }
    )*};
    (reset $device:literal) => { &[$device] };
    (answer $device:literal) => { &[] };
}

attacks! { "hostile-block" on "blk0":
    readable_data_after_writable, "readable-after-writable", reset;
    a_chain_that_returns_to_its_header, "loop-through-the-header", reset;
    a_chain_that_loops_in_its_data, "loop-of-data", answer;
    a_next_descriptor_past_the_table, "next-past-the-table", reset;
    a_head_past_the_table, "head-past-the-table", reset;
    an_available_index_that_jumps, "available-index-jumps", reset;
    a_header_that_is_too_short, "header-too-short", reset;
    a_header_that_is_writable, "header-writable", reset;
    a_header_alone, "header-alone", reset;
    a_request_without_a_status, "no-status", reset;
    a_status_of_no_length, "empty-status", reset;
    a_header_outside_memory, "header-outside-memory", reset;
    data_outside_memory, "data-outside-memory", reset;
    data_that_wraps_around, "data-wraps-around", reset;
    a_status_outside_memory, "status-outside-memory", reset;
    data_of_four_gigabytes, "data-of-four-gigabytes", reset;
    an_indirect_table_of_no_length, "indirect-table-of-no-length", reset;
    an_indirect_table_cut_short, "indirect-table-cut-short", reset;
    an_indirect_table_outside_memory, "indirect-table-outside-memory", reset;
    an_indirect_table_in_an_indirect_table, "indirect-within-indirect", reset;
    an_indirect_table_longer_than_the_queue, "indirect-table-longer-than-the-queue", answer;
    a_request_for_half_a_sector, "half-a-sector", answer;
    a_request_for_nothing, "nothing-to-read", answer;
    an_identity_without_room, "identity-without-room", answer;
}

attacks! { "hostile-entropy" on "rng":
    random_bytes_where_nothing_is_writable, "nothing-writable", answer;
    no_random_bytes, "no-length", answer;
    random_bytes_outside_memory, "outside-memory", answer;
    four_gigabytes_of_random_bytes, "four-gigabytes", answer;
    random_bytes_by_a_table_outside_memory, "indirect-table-outside-memory", answer;
    random_bytes_by_an_index_that_jumps, "available-index-jumps", reset;
}

attacks! { "hostile-vsock" on "vsock":
    a_packet_that_is_too_short, "packet-too-short", reset;
    a_packet_that_is_writable, "packet-writable", reset;
    a_packet_outside_memory, "packet-outside-memory", reset;
    a_packet_whose_payload_is_missing, "payload-missing", reset;
    a_payload_shorter_than_said, "payload-shorter-than-said", reset;
    a_payload_outside_memory, "payload-outside-memory", reset;
    a_payload_of_four_gigabytes, "payload-of-four-gigabytes", reset;
    a_buffer_that_is_not_writable, "buffer-not-writable", reset;
    a_buffer_that_is_too_short, "buffer-too-short", reset;
    a_buffer_outside_memory, "buffer-outside-memory", reset;
    packets_by_an_index_that_jumps, "available-index-jumps", reset;
}

attacks! { "hostile-balloon" on "balloon":
    a_page_outside_memory, "page-outside-memory", reset;
    a_page_in_the_hole, "page-in-the-hole", reset;
    a_page_past_the_end, "page-past-the-end", reset;
    a_deflated_page_outside_memory, "deflated-page-outside-memory", reset;
    a_list_outside_memory, "list-outside-memory", reset;
    a_list_of_four_gigabytes, "list-of-four-gigabytes", reset;
    a_list_longer_than_allowed, "list-longer-than-allowed", reset;
    a_list_in_many_pieces, "list-in-many-pieces", answer;
    a_list_of_no_pages, "list-of-nothing", answer;
    a_list_of_half_a_number, "list-of-half-a-number", answer;
    a_list_to_be_written, "list-to-be-written", answer;
    the_same_page_inflated_again_and_again, "the-same-page-again-and-again", answer;
    a_page_with_the_rings, "page-with-the-rings", reset;
    a_report_outside_memory, "report-outside-memory", reset;
    a_report_past_the_end, "report-past-the-end", reset;
    a_report_of_four_gigabytes, "report-of-four-gigabytes", reset;
    a_report_that_wraps_around, "report-that-wraps-around", reset;
    a_report_of_less_than_a_page, "report-of-less-than-a-page", answer;
    a_report_to_be_read, "report-to-be-read", answer;
    reports_without_end, "reports-without-end", answer;
    statistics_outside_memory, "statistics-outside-memory", reset;
    statistics_of_four_gigabytes, "statistics-of-four-gigabytes", reset;
    statistics_longer_than_there_are_tags, "statistics-longer-than-there-are-tags", answer;
    statistics_told_again_and_again, "statistics-again-and-again", answer;
    pages_by_an_indirect_table_of_no_length, "indirect-table-of-no-length", answer;
    reports_by_an_index_that_jumps, "available-index-jumps", reset;
}

attacks! { "hostile-console" on "console0":
    text_outside_memory, "text-outside-memory", reset;
    text_past_the_end, "text-past-the-end", reset;
    text_in_a_device, "text-in-a-device", reset;
    text_that_wraps_around, "text-that-wraps-around", reset;
    text_of_four_gigabytes, "text-of-four-gigabytes", answer;
    text_without_end, "text-without-end", answer;
    text_that_loops, "text-that-loops", answer;
    text_to_be_written, "text-to-be-written", answer;
    text_by_an_indirect_table_of_no_length, "text-by-an-indirect-table-of-no-length", answer;
    text_by_an_index_that_jumps, "text-by-an-index-that-jumps", reset;
    a_buffer_for_input_outside_memory, "buffer-outside-memory", reset;
    a_buffer_for_input_past_the_end, "buffer-past-the-end", reset;
    a_buffer_for_input_that_is_not_writable, "buffer-not-writable", answer;
    a_buffer_for_input_of_no_length, "buffer-of-no-length", answer;
}

attacks! { "hostile-pmem" on "pmem0":
    a_request_of_no_kind, "request-of-no-kind", answer;
    a_request_in_pieces, "request-in-pieces", answer;
    an_answer_with_too_much_room, "answer-with-too-much-room", answer;
    flushes_without_end, "flushes-without-end", answer;
    a_flush_that_is_too_short, "request-too-short", reset;
    a_flush_that_is_writable, "request-writable", reset;
    a_flush_outside_memory, "request-outside-memory", reset;
    a_flush_in_persistent_memory, "request-in-the-device-itself", reset;
    a_flush_without_room_for_an_answer, "no-answer", reset;
    an_answer_that_is_too_short, "answer-too-short", reset;
    an_answer_past_the_end, "answer-past-the-end", reset;
    an_answer_that_wraps_around, "answer-that-wraps-around", reset;
    an_answer_in_persistent_memory, "answer-in-the-device-itself", reset;
    a_flush_that_loops, "request-that-loops", reset;
    flushes_by_an_indirect_table_of_no_length, "indirect-table-of-no-length", reset;
    flushes_by_an_index_that_jumps, "available-index-jumps", reset;
}

/// Scenarios in which no device has reason to ask for reset.
macro_rules! scenarios {
    ($($test:ident: $scenario:literal, $line:literal;)*) => {$(
        #[test]
        fn $test() {
            let Some(outcome) = play($scenario) else { return };
            outcome.expect_success($line);
        }
    )*};
}

scenarios! {
    steps_out_of_order_are_refused_one_by_one: "life-cycle", "in order";
    registers_bear_any_access: "registers", "registers";
    doorbells_may_be_rung_without_end: "doorbells", "4000 rings";
    a_device_at_work_can_be_reset: "reset-in-flight", "50 resets";
    packets_of_no_connection_are_answered_with_a_reset: "vsock-strangers", "answered";
    a_guest_that_sends_past_its_credit_is_reset: "vsock-past-credit", "reset";
    connections_past_the_bound_are_refused: "vsock-too-many", "256 accepted";
    a_guest_that_takes_no_answers_is_not_listened_to: "vsock-deaf", "heard";
}

#[test]
fn discards_of_what_is_not_there_are_refused_one_by_one() {
    let Some(machine) = probe("hostile-discard seed=8") else {
        return;
    };
    let file = memory_file(&pattern(8, 64));
    let outcome = machine.disk(&file, false).entropy().run();
    outcome.expect_success("refused");
    assert_eq!(file.metadata().unwrap().len(), 64 * 512);
}

#[test]
fn rings_outside_memory_are_refused_at_the_start() {
    let Some(outcome) = play("rings-outside-memory") else {
        return;
    };
    outcome.expect_success_after_faults("outside", &["blk0"; 9]);
    // What was wrong is said, once each.
    assert!(
        outcome
            .fault_reasons()
            .all(|reason| reason.contains("rings"))
    );
}

/// Memory of a VMM whose guest has touched next to nothing of its own, in KiB.
const MEMORY_KIB: u64 = 8 << 10;

/// Plays a flood. While it lasts, another microVM reads its disk, and what the flood
/// costs is looked at.
fn flood(scenario: &str) {
    let disk = memory_file(&pattern(8, 64));
    let Some(machine) = probe(scenario) else {
        return;
    };
    let mut flooding = machine.disk(&disk, true).vsock().serial_input().start();
    flooding.take_agent().refuse_all();
    assert_eq!(flooding.console_line(), "flooding");
    let Some(other) = probe("block-read seed=8") else {
        return;
    };
    other.disk(&disk, true).run().expect_success("64 sectors");
    let status = std::fs::read_to_string(format!("/proc/{}/status", flooding.child.id())).unwrap();
    let most = status.lines().find_map(|line| {
        let kib = line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?;
        kib.parse::<u64>().ok()
    });
    assert!(most.is_some_and(|kib| kib < MEMORY_KIB), "{status}");
    flooding.nudge();
    let outcome = flooding.finish();
    assert_eq!(outcome.code, Some(0), "{outcome:#?}");
    assert_eq!(outcome.errors, "");
    // It started, was confined, and powered off.
    assert!(outcome.events.len() < 8, "{outcome:#?}");
}

macro_rules! floods {
    ($($test:ident: $scenario:literal;)*) => {$(
        #[test]
        fn $test() {
            flood($scenario);
        }
    )*};
}

floods! {
    a_flood_of_port_accesses_costs_others_nothing: "flood-of-port-accesses";
    a_flood_of_memory_accesses_costs_others_nothing: "flood-of-memory-accesses";
    a_flood_of_doorbells_costs_others_nothing: "flood-of-doorbells";
    a_flood_of_interrupts_costs_others_nothing: "flood-of-interrupts";
    a_flood_of_text_that_nobody_reads_costs_others_nothing: "flood-of-text";
    a_flood_of_connections_that_are_given_up_costs_others_nothing: "flood-of-connections";
}
