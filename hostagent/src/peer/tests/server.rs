//! Who is let in, and how much of everything there may be.

use quinn::{ClientConfig, Connection, Endpoint};

use super::super::message::{Answer, ImageWanted, MAX_ANSWER_BYTES, Request, encode, receive};
use super::super::transport::{Code, MAX_CONNECTIONS, MAX_STREAMS};
use super::super::{tls, transport};
use super::*;

/// Whoever speaks QUIC to a server without the client.
struct Raw {
    runtime: Runtime,
    endpoint: Endpoint,
    config: ClientConfig,
    address: std::net::SocketAddr,
}

impl Raw {
    fn new(own: &Node, server: &Node) -> Self {
        let runtime = Runtime::new("raw").unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let endpoint = runtime.within(|| transport::endpoint(any, None).unwrap());
        let crypto = tls::client(&own.key, server.key.public()).unwrap();
        let mut config = ClientConfig::new(Arc::new(crypto));
        let mut parameters = transport::parameters(&PATIENCE);
        parameters.stream_receive_window(1000_u32.into());
        config.transport_config(Arc::new(parameters));
        Self {
            runtime,
            endpoint,
            config,
            address: server.as_peer().address.unwrap(),
        }
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let outcome = self
            .runtime
            .run(&|| false, async { Ok::<_, PeerError>(work.await) });
        outcome.unwrap()
    }

    fn connect(&self) -> Connection {
        self.run(async {
            let config = self.config.clone();
            let connecting = self.endpoint.connect_with(config, self.address, "mote");
            connecting.unwrap().await.unwrap()
        })
    }
}

fn request() -> Vec<u8> {
    encode(&Request::Image(ImageWanted::Id(Digest::of(b"none")))).unwrap()
}

async fn asks(connection: &Connection) -> Result<Answer, String> {
    let (mut send, mut stream) = connection.open_bi().await.map_err(|e| e.to_string())?;
    send.write_all(&request())
        .await
        .map_err(|e| e.to_string())?;
    send.finish().map_err(|e| e.to_string())?;
    let answer = receive(&mut stream, MAX_ANSWER_BYTES).await;
    answer.map_err(|e| e.to_string())
}

#[test]
fn a_key_that_is_not_listed_gets_nothing() {
    let (own, stranger, other) = (Node::new(), Node::new(), Node::new());
    let image = load(&other.store(), &[tar(&[("a", b"b")])], &["demo"]);
    let other = other.serving(&[&own]);
    let client = stranger.client(vec![other.as_peer()]);
    let store = stranger.store();
    let wanted = image.id.to_string().parse().unwrap();
    let lease = store.lease().unwrap();
    let error = client.fetch_image(&store, &wanted, &lease, &(), &go_on());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("it refused this node"), "{error}");
    assert!(store.images().unwrap().is_empty());
    // It is noted when it is over, which may be a moment later.
    let noted = || {
        std::thread::sleep(Duration::from_millis(20));
        let notes = other.notes.lock().unwrap().join("\n");
        notes.contains("its key is not listed")
    };
    assert!((0..200).any(|_| noted()));
}

#[test]
fn a_server_with_another_key_is_asked_nothing() {
    let (own, other, expected) = (Node::new(), Node::new(), Node::new());
    let identity = other.store().put_for_tests(b"blob");
    let other = other.serving(&[&own]);
    let peer = listed(&expected.key, other.as_peer().address);
    let client = own.client(vec![peer]);
    let store = own.store();
    let lease = store.lease().unwrap();
    let error = client.fetch_blob(&store, identity, &lease, &());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("cannot be reached"), "{error}");
}

#[test]
fn a_peer_has_no_more_connections_than_it_may() {
    let own = Node::new();
    let other = Node::new().serving(&[&own]);
    let raw = Raw::new(&own, &other);
    let mut connections = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let connection = raw.connect();
        assert_eq!(raw.run(asks(&connection)), Ok(Answer::NotHere));
        connections.push(connection);
    }
    let one_more = raw.connect();
    let reason = raw.run(one_more.closed()).to_string();
    assert!(reason.contains("too many connections"), "{reason}");
    // Which says nothing against this node's key.
    let client = own.client(vec![other.as_peer()]);
    let (store, identity) = (own.store(), Node::new().store().put_for_tests(b"blob"));
    let error = client.fetch_blob(&store, identity, &store.lease().unwrap(), &());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("it has enough connections"), "{error}");
    assert!(!error.contains("peers.toml"), "{error}");
    connections[0].close(0_u32.into(), b"");
    // The server learns of it when it does.
    let again = || raw.run(asks(&raw.connect())) == Ok(Answer::NotHere);
    assert!((0..100).any(|_| again()));
}

#[test]
fn requests_that_never_come_or_are_none_hold_nobody_up() {
    let own = Node::new();
    let other = Node::new().serving(&[&own]);
    let raw = Raw::new(&own, &other);
    let connection = raw.connect();
    let mut held = Vec::new();
    for number in 0..MAX_STREAMS {
        held.push(raw.run(async {
            let (mut send, receive) = connection.open_bi().await.unwrap();
            let bytes: &[u8] = match number % 4 {
                0 => &[0, 0],
                1 => &[0xff; 100],
                2 => b"\0\0\0\x02{]",
                _ => b"\0\0\x10\0",
            };
            send.write_all(bytes).await.unwrap();
            (send, receive)
        }));
    }
    // There are no more requests of one peer than there may be, on all its connections.
    assert_eq!(raw.run(asks(&raw.connect())), Ok(Answer::NotHere));
    for (number, (_, receive)) in held.iter_mut().enumerate() {
        let code = match raw.run(receive.read_to_end(100)) {
            Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => code,
            outcome => panic!("{outcome:?}"),
        };
        let expected = match number % 4 {
            1 | 2 => Code::Misbehaved,
            _ => Code::TooSlow,
        };
        assert_eq!(code, expected.into(), "{number}");
    }
}

#[test]
fn whoever_does_not_take_what_it_asked_for_is_given_up() {
    let own = Node::new();
    let other = Node::new();
    let identity = other.store().put_for_tests(&noise(1, 8_000_000));
    let other = other.serving(&[&own]);
    let raw = Raw::new(&own, &other);
    let connection = raw.connect();
    let wanted = Request::Blob {
        hash: identity.hash,
        groups: [0, u64::MAX],
    };
    let wanted = encode(&wanted).unwrap();
    let mut held = Vec::new();
    for _ in 0..MAX_STREAMS {
        held.push(raw.run(async {
            let (mut send, receive) = connection.open_bi().await.unwrap();
            send.write_all(&wanted).await.unwrap();
            (send, receive)
        }));
    }
    assert_eq!(raw.run(asks(&raw.connect())), Ok(Answer::NotHere));
    for (_, receive) in &mut held {
        let reset = raw.run(receive.received_reset()).unwrap();
        assert_eq!(reset, Some(Code::TooSlow.into()));
    }
}

#[test]
fn a_blob_that_is_being_sent_is_not_collected() {
    let own = Node::new();
    let other = Node::new();
    let identity = other.store().put_for_tests(&noise(1, 8_000_000));
    let other = other.serving(&[&own]);
    let raw = Raw::new(&own, &other);
    let connection = raw.connect();
    let wanted = Request::Blob {
        hash: identity.hash,
        groups: [0, u64::MAX],
    };
    let (_send, mut receive_stream) = raw.run(async {
        let (mut send, mut stream) = connection.open_bi().await.unwrap();
        send.write_all(&encode(&wanted).unwrap()).await.unwrap();
        let answer: Answer = receive(&mut stream, MAX_ANSWER_BYTES).await.unwrap();
        assert!(matches!(
            answer,
            Answer::Blob {
                bytes: 8_000_000,
                ..
            }
        ));
        (send, stream)
    });
    assert_eq!(other.store().collect().unwrap().blobs, 0);
    receive_stream.stop(0_u32.into()).unwrap();
    drop(receive_stream);
    // It is free again once the server has noticed.
    let collected = || other.store().collect().unwrap().blobs;
    assert!((0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        collected() == 1
    }));
}

#[test]
fn a_connection_without_a_request_is_closed() {
    let own = Node::new();
    let other = Node::new().serving(&[&own]);
    let raw = Raw::new(&own, &other);
    let connection = raw.connect();
    let reason = raw.run(connection.closed()).to_string();
    assert!(reason.contains("nothing was asked"), "{reason}");
}

#[test]
fn a_node_that_ends_tells_its_peers() {
    let own = Node::new();
    let other = Node::new().serving(&[&own]);
    let raw = Raw::new(&own, &other);
    let connection = raw.connect();
    assert_eq!(raw.run(asks(&connection)), Ok(Answer::NotHere));
    drop(other);
    let reason = raw.run(connection.closed()).to_string();
    assert!(reason.contains("this node ends"), "{reason}");
}
