//! Peers that lie, and a registry that does not.

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

#[test]
fn a_peer_that_lies_is_not_believed_and_the_registry_is_asked() {
    let liar = Liar::about_a_blob_of(3_000_000);
    let (identity, content, blob) = (liar.identity, liar.content(), liar.blob());
    let given = content.clone();
    let server = Server::start(move |request| {
        let range = request.header("range").unwrap_or("bytes=0-");
        let (first, last) = range["bytes=".len()..].split_once('-').unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        let whole = given.len();
        HttpReply::new(206, &given[first..=last])
            .with("Content-Range", format!("bytes {first}-{last}/{whole}"))
    });
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
        peers: Some(Arc::new(liar.client())),
    };
    let name = format!("{}/app", server.host()).parse().unwrap();
    let store = liar.store();
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
    for groups in [16..32, 100..184] {
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
    assert_eq!((liar.asked(), server.seen().len()), (1, 2));
    let told = told.into_inner().unwrap().join("\n");
    let named = format!("peer {} at", liar.name());
    assert!(
        told.contains(&named) && told.contains("not asked any more"),
        "{told}"
    );
}
