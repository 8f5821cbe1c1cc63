//! Peers that lie or are slow, and a registry that does not, or is gone.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use super::*;
use crate::peer::tests::liar::Liar;
use crate::registry::config::{RegistrySettings, Settings};
use crate::registry::credentials::CredentialStore;
use http_server::{Reply as HttpReply, Server};

#[path = "../../tests/support/http_server.rs"]
#[allow(dead_code, reason = "a part is used")]
mod http_server;

/// Has a node fetch these groups from the peer or from the server, which must be right.
/// Returns what it was told.
fn fetch(peer: &Liar, server: &Server, all: &[Range<u64>]) -> String {
    let (identity, content, blob) = (peer.identity, peer.content(), peer.blob());
    let registry = RegistrySettings {
        plain_http: true,
        ..RegistrySettings::default()
    };
    let settings = Settings {
        registries: [(server.host(), registry)].into(),
        ..Settings::default()
    };
    let clients = Clients {
        registries: Arc::new(Client::new(settings, CredentialStore::empty()).unwrap()),
        peers: Some(Arc::new(peer.client())),
    };
    let name = format!("{}/app", server.host()).parse().unwrap();
    let store = peer.store();
    let upstream = Upstream {
        store: &store,
        clients: &clients,
        repository: &Repository::of(&name),
    };
    let partial = store
        .partial(identity, |file| {
            let mut tree = vec![0; blob.outboard.metadata().unwrap().len() as usize];
            blob.outboard.read_exact_at(&mut tree, 0).unwrap();
            file.write_all_at(&tree, 0).unwrap();
            Ok::<_, StoreError>(())
        })
        .unwrap();

    let told = Mutex::new(Vec::new());
    let tell = |error: &FetchError| told.lock().unwrap().push(error.to_string());
    for groups in all {
        let digest = Digest::of(&content);
        let bytes = upstream.groups(&partial, digest, groups.clone(), &tell, &|| false);
        let start = (groups.start * GROUP_BYTES) as usize;
        let end = content.len().min((groups.end * GROUP_BYTES) as usize);
        assert_eq!(bytes.unwrap(), (end - start) as u64);
        let mut found = vec![0; end - start];
        let (data, _) = partial.files().unwrap();
        data.read_exact_at(&mut found, start as u64).unwrap();
        assert!(found == content[start..end]);
    }
    told.into_inner().unwrap().join("\n")
}

#[test]
fn a_peer_that_lies_is_not_believed_and_the_registry_is_asked() {
    let liar = Liar::about_a_blob_of(3_000_000);
    let content = liar.content();
    let server = Server::start(move |request| {
        let range = request.header("range").unwrap_or("bytes=0-");
        let (first, last) = range["bytes=".len()..].split_once('-').unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        let whole = content.len();
        HttpReply::new(206, &content[first..=last])
            .with("Content-Range", format!("bytes {first}-{last}/{whole}"))
    });
    let told = fetch(&liar, &server, &[16..32, 100..184]);
    assert_eq!((liar.asked(), server.seen().len()), (1, 2));
    let named = format!("peer {} at", liar.name());
    assert!(
        told.contains(&named) && told.contains("not asked any more"),
        "{told}"
    );
}

#[test]
fn a_peer_that_was_slow_is_asked_again_when_the_registry_fails() {
    let slow = Liar::that_is_silent_once(3_000_000);
    let server = Server::start(|_| HttpReply::new(404, ""));
    let told = fetch(&slow, &server, &[16..32, 32..48]);
    // It is left alone still.
    assert_eq!((slow.asked(), server.seen().len()), (3, 2));
    assert!(told.contains("it sent nothing for 1 s"), "{told}");
}
