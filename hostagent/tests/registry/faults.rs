//! Connections that break on the way from a real registry.

use hostagent::image::digest::Digest;
use hostagent::registry::{Client, RegistryError};
use libtest_mimic::Failed;

use crate::Test;
use crate::common::{
    LIMIT, assert_says, client, describe, download, go_on, impatient, large, push, registry_error,
    repository,
};
use crate::docker_registry::DockerRegistry;
use crate::fault_proxy::{Mishap, faulty_proxy};
use crate::http_server::{Fault, Reply, Server};

pub const TESTS: &[Test] = &[
    ("a_download_that_is_cut_off_goes_on_where_it_was", cut),
    (
        "a_download_that_stalls_goes_on_on_another_connection",
        stalled,
    ),
    (
        "a_download_survives_a_server_that_ignores_ranges",
        range_ignored,
    ),
    (
        "a_download_survives_answers_that_are_no_success",
        passing_errors,
    ),
    (
        "a_download_of_another_part_than_was_asked_for_is_refused",
        wrong_range,
    ),
    (
        "a_download_that_is_cut_off_again_and_again_ends",
        cut_forever,
    ),
    ("a_blob_with_wrong_bytes_is_refused", wrong_bytes),
];

/// A large blob, downloaded through a proxy with these mishaps.
fn through(mishaps: &[Mishap]) -> Result<(Server, std::io::Result<Vec<u8>>), Failed> {
    through_by(client, mishaps)
}

fn through_by(
    client_of: fn(&str) -> Client,
    mishaps: &[Mishap],
) -> Result<(Server, std::io::Result<Vec<u8>>), Failed> {
    let registry = DockerRegistry::plain()?;
    let blob = large();
    let direct = client(&registry.host());
    push(&direct, &repository(&registry.host(), "app"), &blob)?;
    let proxy = faulty_proxy(registry.address, mishaps.iter().copied());
    let client = client_of(&proxy.host());
    let outcome = download(&client, &repository(&proxy.host(), "app"), &blob);
    Ok((proxy, outcome))
}

/// The ranges that were asked for.
fn ranges(proxy: &Server) -> Vec<Option<String>> {
    let seen = proxy.seen().into_iter();
    seen.map(|request| request.header("range").map(str::to_owned))
        .collect()
}

fn cut() -> Result<(), Failed> {
    let mishaps: [Mishap; 3] = [
        |reply| reply.fault(Fault::CutAfter(1_000_000)),
        |reply| reply.fault(Fault::CutAfter(500_000)),
        |reply| reply.fault(Fault::CutAfter(0)),
    ];
    let (proxy, outcome) = through(&mishaps)?;
    assert!(outcome? == large());
    let rest = |at: u32| Some(format!("bytes={at}-"));
    let expected = [None, rest(1_000_000), rest(1_500_000), rest(1_500_000)];
    assert_eq!(ranges(&proxy), expected);
    Ok(())
}

fn stalled() -> Result<(), Failed> {
    let mishaps: [Mishap; 2] = [
        |reply| reply.fault(Fault::StallAfter(200_000)),
        |reply| reply.fault(Fault::NoAnswer),
    ];
    let (proxy, outcome) = through_by(impatient, &mishaps)?;
    assert!(outcome? == large());
    assert_eq!(
        ranges(&proxy).last().unwrap().as_deref(),
        Some("bytes=200000-")
    );
    Ok(())
}

fn range_ignored() -> Result<(), Failed> {
    let blob = large();
    let whole = blob.clone();
    let count = std::sync::atomic::AtomicUsize::new(0);
    let server = Server::start(move |_| {
        let reply = Reply::new(200, whole.as_slice());
        match count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => reply.fault(Fault::CutAfter(1_234_567)),
            1 => reply.fault(Fault::CutAfter(1_000)),
            2 => reply.fault(Fault::CutAfter(2_000_000)),
            _ => reply,
        }
    });
    let client = client(&server.host());
    let found = download(&client, &repository(&server.host(), "app"), &blob)?;
    assert!(found == blob);
    let asked: Vec<_> = ranges(&server).into_iter().flatten().collect();
    assert_eq!(
        asked,
        ["bytes=1234567-", "bytes=1234567-", "bytes=2000000-"]
    );
    Ok(())
}

fn passing_errors() -> Result<(), Failed> {
    let mishaps: [Mishap; 4] = [
        |_| Reply::new(500, "{"),
        |_| Reply::new(429, "").with("Retry-After", "0"),
        |reply| reply.fault(Fault::CutAfter(100_000)),
        |_| Reply::new(503, ""),
    ];
    let (proxy, outcome) = through(&mishaps)?;
    assert!(outcome? == large());
    assert_eq!(proxy.seen().len(), 5);
    Ok(())
}

fn wrong_range() -> Result<(), Failed> {
    let mishaps: [Mishap; 2] = [
        |reply| reply.fault(Fault::CutAfter(1_000)),
        |reply| reply.with("Content-Range", "bytes 0-2998999/3000000"),
    ];
    let (proxy, outcome) = through(&mishaps)?;
    let error = registry_error(&outcome);
    assert!(
        matches!(error, RegistryError::WrongRange { .. }),
        "{error:?}"
    );
    assert_says(
        error,
        &[
            "bytes 1000-2999999",
            "bytes 0-2998999/3000000",
            &proxy.host(),
        ],
    );
    Ok(())
}

fn cut_forever() -> Result<(), Failed> {
    let mishaps: [Mishap; 20] = [|reply| reply.fault(Fault::CutAfter(10)); 20];
    let (proxy, outcome) = through(&mishaps)?;
    let error = registry_error(&outcome);
    assert!(matches!(error, RegistryError::Request { .. }), "{error:?}");
    assert_eq!(proxy.seen().len(), 5);
    Ok(())
}

fn wrong_bytes() -> Result<(), Failed> {
    let registry = DockerRegistry::plain()?;
    push(
        &client(&registry.host()),
        &repository(&registry.host(), "app"),
        b"content",
    )?;
    let spoil: Mishap = |mut reply| {
        reply.body[3] ^= 1;
        reply
    };
    let proxy = faulty_proxy(registry.address, [spoil, spoil]);
    let client = client(&proxy.host());
    let from = repository(&proxy.host(), "app");
    let error = client
        .blob(&from, &describe(b"content"), LIMIT, &go_on)
        .unwrap_err();
    let expected = Digest::of(b"content");
    assert!(
        matches!(error, RegistryError::Digest { expected: e, .. } if e == expected),
        "{error:?}"
    );
    // A reader leaves the digest to whoever reads.
    assert_eq!(download(&client, &from, b"content")?, b"conuent");
    Ok(())
}
