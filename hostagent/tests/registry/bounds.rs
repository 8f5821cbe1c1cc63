//! Servers that send too much, too little, nothing, or nonsense.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use hostagent::image::digest::Digest;
use hostagent::registry::{Reference, RegistryError};
use libtest_mimic::Failed;

use crate::Test;
use crate::common::{
    LIMIT, NOBODY, assert_says, client, describe, download, go_on, impatient, never,
    registry_error, repository, tag,
};
use crate::http_server::{Fault, Reply, Server};

pub const TESTS: &[Test] = &[
    ("a_manifest_without_end_is_not_read", endless_manifest),
    (
        "a_manifest_that_is_announced_too_long_is_not_read",
        long_manifest,
    ),
    ("a_manifest_is_the_one_that_was_asked_for", wrong_manifest),
    (
        "a_body_that_is_shorter_than_its_descriptor_is_named",
        short_blob,
    ),
    (
        "a_body_that_is_longer_than_its_descriptor_is_named",
        long_blob,
    ),
    (
        "a_length_that_the_server_gives_wrongly_is_named",
        claimed_length,
    ),
    (
        "an_error_that_stays_is_told_with_the_registrys_words",
        lasting_error,
    ),
    (
        "what_the_client_did_wrong_is_not_tried_again",
        client_errors,
    ),
    ("an_error_without_sense_is_still_an_error", broken_error),
    ("a_silent_server_is_given_up", silent_server),
    ("waiting_ends_when_the_caller_wants_to_stop", cancelled),
    (
        "a_reader_ends_when_the_caller_wants_to_stop",
        reader_cancelled,
    ),
    ("dropping_a_reader_ends_its_download", dropped),
    (
        "a_part_of_a_blob_is_refused_where_ranges_are_ignored",
        no_ranges,
    ),
    (
        "a_part_of_a_blob_is_the_part_that_was_asked_for",
        other_range,
    ),
    ("a_server_that_is_not_there_is_named", unreachable),
];

fn endless_manifest() -> Result<(), Failed> {
    let server = Server::start(|_| Reply::new(200, vec![b' '; 64 << 10]).fault(Fault::Endless));
    let outcome = client(&server.host()).manifest(
        &repository(&server.host(), "app"),
        &tag("v1"),
        LIMIT,
        &go_on,
    );
    let error = outcome.unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { .. }), "{error:?}");
    assert_says(&error, &["4194304 bytes", "app:v1"]);
    Ok(())
}

fn long_manifest() -> Result<(), Failed> {
    let server = Server::start(|_| Reply::new(200, "{").fault(Fault::ClaimLength(1 << 30)));
    let from = repository(&server.host(), "app");
    let outcome = client(&server.host()).manifest(&from, &tag("v1"), 1000, &go_on);
    assert!(matches!(
        outcome,
        Err(RegistryError::TooLarge { limit: 1000, .. })
    ));
    Ok(())
}

fn wrong_manifest() -> Result<(), Failed> {
    let announced = Digest::of(b"another");
    let server =
        Server::start(move |_| Reply::new(200, "{}").with("Docker-Content-Digest", announced));
    let from = repository(&server.host(), "app");
    for reference in [tag("v1"), Reference::Digest(announced)] {
        let outcome = client(&server.host()).manifest(&from, &reference, LIMIT, &go_on);
        let error = outcome.unwrap_err();
        assert!(matches!(error, RegistryError::Digest { .. }), "{error:?}");
        let (expected, found) = (announced.to_string(), Digest::of(b"{}").to_string());
        assert_says(&error, &[&expected, &found]);
    }
    Ok(())
}

/// The outcome of a download of ten bytes from a server that answers so.
fn ten_bytes(reply: Reply) -> (Server, std::io::Result<Vec<u8>>) {
    let server = Server::start(move |request| match request.header("range") {
        None => reply.clone(),
        Some(_) => Reply::new(416, ""),
    });
    let from = repository(&server.host(), "app");
    let outcome = download(&client(&server.host()), &from, b"0123456789");
    (server, outcome)
}

fn short_blob() -> Result<(), Failed> {
    for fault in [Fault::None, Fault::Chunked, Fault::UntilClose] {
        let (_server, outcome) = ten_bytes(Reply::new(200, "012345678").fault(fault));
        let error = registry_error(&outcome);
        let is_named = matches!(
            error,
            RegistryError::TooShort {
                expected: 10,
                found: 9,
                ..
            }
        );
        assert!(is_named, "{fault:?}: {error:?}");
    }
    Ok(())
}

fn long_blob() -> Result<(), Failed> {
    for fault in [
        Fault::None,
        Fault::Chunked,
        Fault::UntilClose,
        Fault::Endless,
    ] {
        let (_server, outcome) = ten_bytes(Reply::new(200, "0123456789x").fault(fault));
        let error = registry_error(&outcome);
        assert!(
            matches!(error, RegistryError::TooLong { expected: 10, .. }),
            "{fault:?}: {error:?}"
        );
    }
    Ok(())
}

fn claimed_length() -> Result<(), Failed> {
    let (_server, outcome) = ten_bytes(Reply::new(200, "0123456789").fault(Fault::ClaimLength(5)));
    assert_says(registry_error(&outcome), &["ends after 5 bytes", "says 10"]);
    let (_server, outcome) = ten_bytes(Reply::new(200, "0123456789").fault(Fault::ClaimLength(50)));
    assert_says(registry_error(&outcome), &["longer than the 10 bytes"]);
    Ok(())
}

fn lasting_error() -> Result<(), Failed> {
    let server = Server::start(|_| {
        Reply::new(
            500,
            r#"{"errors":[{"code":"UNKNOWN","message":"disk\u001b[2J full"}]}"#,
        )
    });
    let from = repository(&server.host(), "app");
    let outcome = client(&server.host()).manifest(&from, &tag("v1"), LIMIT, &go_on);
    let error = outcome.unwrap_err();
    let name = format!("{}/app:v1", server.host());
    assert_says(&error, &[&name, "500", "UNKNOWN: disk [2J full"]);
    assert_eq!(server.seen().len(), 5);
    Ok(())
}

fn client_errors() -> Result<(), Failed> {
    for status in [400, 403, 404, 410] {
        let server = Server::start(move |_| Reply::new(status, ""));
        let from = repository(&server.host(), "app");
        let outcome = client(&server.host()).manifest(&from, &tag("v1"), LIMIT, &go_on);
        assert!(outcome.is_err());
        assert_eq!(server.seen().len(), 1, "{status}");
    }
    Ok(())
}

fn broken_error() -> Result<(), Failed> {
    for fault in [
        Fault::None,
        Fault::CutAfter(5),
        Fault::StallAfter(5),
        Fault::Endless,
    ] {
        let server = Server::start(move |_| Reply::new(400, r#"{"errors":[{"co"#).fault(fault));
        let from = repository(&server.host(), "app");
        let outcome = impatient(&server.host()).manifest(&from, &tag("v1"), LIMIT, &go_on);
        assert_says(&outcome.unwrap_err(), &["the server answered 400"]);
    }
    Ok(())
}

fn silent_server() -> Result<(), Failed> {
    let server = Server::start(|_| Reply::new(200, "0123456789").fault(Fault::StallAfter(4)));
    let from = repository(&server.host(), "app");
    let outcome = download(&impatient(&server.host()), &from, b"0123456789");
    let error = registry_error(&outcome);
    assert!(matches!(error, RegistryError::Stalled { .. }), "{error:?}");
    assert_says(error, &["sent nothing for 0.4 s", &server.host()]);
    Ok(())
}

fn cancelled() -> Result<(), Failed> {
    let server = Server::start(|_| {
        thread::sleep(Duration::from_secs(1));
        Reply::new(500, "")
    });
    let from = repository(&server.host(), "app");
    let client = client(&server.host());
    let outcome = client.manifest(&from, &tag("v1"), LIMIT, &|| !server.seen().is_empty());
    assert!(
        matches!(outcome, Err(RegistryError::Cancelled)),
        "{outcome:?}"
    );
    let never_begun = client.manifest(&from, &tag("v1"), LIMIT, &|| true);
    assert!(matches!(never_begun, Err(RegistryError::Cancelled)));
    Ok(())
}

fn reader_cancelled() -> Result<(), Failed> {
    let server = Server::start(|_| Reply::new(200, "0123456789").fault(Fault::StallAfter(4)));
    let from = repository(&server.host(), "app");
    let wanted = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&wanted);
    let cancel = Arc::new(move || !asked.load(Ordering::SeqCst));
    let client = client(&server.host());
    let mut reader = client.blob_reader(&from, &describe(b"0123456789"), cancel)?;
    let mut start = [0; 4];
    reader.read_exact(&mut start)?;
    assert_eq!(&start, b"0123");
    let later = thread::spawn(move || {
        thread::sleep(Duration::from_millis(150));
        wanted.store(false, Ordering::SeqCst);
    });
    let outcome = reader.read(&mut [0]).map(|_| Vec::new());
    assert!(matches!(registry_error(&outcome), RegistryError::Cancelled));
    assert!(later.join().is_ok());
    assert!(reader.read(&mut [0]).is_err());
    Ok(())
}

fn dropped() -> Result<(), Failed> {
    let server = Server::start(|_| Reply::new(200, vec![0; 64 << 10]).fault(Fault::Endless));
    let from = repository(&server.host(), "app");
    let client = client(&server.host());
    let descriptor = serde_json::from_value(serde_json::json!({
        "digest": Digest::of(b"endless"),
        "size": 1u64 << 40,
    }))?;
    let mut reader = client.blob_reader(&from, &descriptor, never())?;
    reader.read_exact(&mut [0; 100_000])?;
    assert_eq!(server.abandoned(), 0);
    drop(reader);
    for _ in 0..500 {
        if server.abandoned() == 1 {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err("the server could go on sending".into())
}

fn no_ranges() -> Result<(), Failed> {
    let server = Server::start(|_| Reply::new(200, "0123456789"));
    let from = repository(&server.host(), "app");
    let client = client(&server.host());
    let digest = Digest::of(b"0123456789");
    let error = client.blob_range(&from, digest, 2..4, &go_on).unwrap_err();
    assert!(matches!(error, RegistryError::NoRanges { .. }), "{error:?}");
    // The whole is what was asked for.
    let whole = client.blob_range(&from, digest, 0..10, &go_on)?.bytes;
    assert_eq!(whole, b"0123456789");
    Ok(())
}

fn other_range() -> Result<(), Failed> {
    for header in ["bytes 3-4/10", "bytes 2-4/10", "bytes 2-3", ""] {
        let server = Server::start(move |_| Reply::new(206, "23").with("Content-Range", header));
        let from = repository(&server.host(), "app");
        let outcome = client(&server.host()).blob_range(&from, Digest::of(b""), 2..4, &go_on);
        assert!(
            matches!(outcome, Err(RegistryError::WrongRange { .. })),
            "{header}"
        );
    }
    let server = Server::start(move |_| Reply::new(206, "2").with("Content-Range", "bytes 2-3/10"));
    let from = repository(&server.host(), "app");
    let outcome = client(&server.host()).blob_range(&from, Digest::of(b""), 2..4, &go_on);
    assert!(matches!(outcome, Err(RegistryError::TooShort { .. })));
    Ok(())
}

fn unreachable() -> Result<(), Failed> {
    let from = repository(NOBODY, "app");
    let outcome = client(NOBODY).manifest(&from, &tag("v1"), LIMIT, &go_on);
    assert_says(
        &outcome.unwrap_err(),
        &[NOBODY, "app:v1", "onnection refused"],
    );
    Ok(())
}
