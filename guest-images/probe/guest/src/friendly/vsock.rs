//! virtio-vsock.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use virtio_drivers::Error;
use virtio_drivers::device::socket::{
    ConnectionInfo, DisconnectReason, SocketError, StreamShutdown, VMADDR_CID_HOST, VirtIOSocket,
    VsockAddr, VsockEvent, VsockEventType,
};
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::mmio::MmioTransport;

use crate::scenarios::Context;
use crate::virtio::{self, Identity};
use crate::{pattern, say};

/// Header and payload of one received packet.
const PACKET_BYTES: usize = 4096;
/// What this guest gives every connection.
const BUFFER_BYTES: u32 = 64 << 10;
/// What it sends at once.
const SEND_BYTES: usize = 16 << 10;
const FIRST_LOCAL_PORT: u32 = 40_000;

type Driver = VirtIOSocket<Identity, MmioTransport<'static>, PACKET_BYTES>;
type Received = (VsockEvent, Vec<u8>);

/// The device.
pub struct Socket {
    driver: Driver,
    /// Taken in while waiting for something else.
    waiting: VecDeque<Received>,
    next_local_port: u32,
}

/// What happened when a connection was asked for.
pub type Refused = DisconnectReason;

impl Socket {
    /// The device, reset and started.
    pub fn start() -> Self {
        let window = virtio::find(DeviceType::Socket, 0);
        Self {
            driver: VirtIOSocket::new(virtio::transport(window)).expect("the device starts"),
            waiting: VecDeque::new(),
            next_local_port: FIRST_LOCAL_PORT,
        }
    }

    fn poll(&mut self) -> Option<Received> {
        let mut data = Vec::new();
        let event = self.driver.poll(|event, bytes| {
            data.extend_from_slice(bytes);
            Ok(Some(event))
        });
        Some((event.expect("a packet")?, data))
    }

    /// The next packet that `wanted` wants; others wait for their turn.
    fn next(&mut self, wanted: impl Fn(&VsockEvent) -> bool) -> Received {
        if let Some(index) = self.waiting.iter().position(|(event, _)| wanted(event))
            && let Some(received) = self.waiting.remove(index)
        {
            return received;
        }
        loop {
            match self.poll() {
                Some(received) if wanted(&received.0) => return received,
                Some(other) => self.waiting.push_back(other),
                None => core::hint::spin_loop(),
            }
        }
    }

    /// Connects to the host's `port`.
    pub fn connect(&mut self, port: u32) -> Result<Stream, Refused> {
        let host = VsockAddr {
            cid: VMADDR_CID_HOST,
            port,
        };
        let mut info = ConnectionInfo::new(host, self.next_local_port);
        self.next_local_port += 1;
        info.buf_alloc = BUFFER_BYTES;
        self.driver.connect(&info).expect("a request");
        let stream = Stream { info };
        let (event, _) = self.next(|event| stream.concerns(event));
        match event.event_type {
            VsockEventType::Connected => Ok(stream.heard(&event)),
            VsockEventType::Disconnected { reason } => Err(reason),
            other => panic!("{other:?} instead of an answer"),
        }
    }

    /// Waits for a connection of the host to `port`, and accepts it.
    pub fn accept(&mut self, port: u32) -> Stream {
        let (event, _) = self.next(|event| {
            event.event_type == VsockEventType::ConnectionRequest && event.destination.port == port
        });
        let mut info = ConnectionInfo::new(event.source, port);
        info.buf_alloc = BUFFER_BYTES;
        self.driver.accept(&info).expect("a response");
        Stream { info }.heard(&event)
    }

    /// Sends all of `bytes`, waiting for credit. False: the host does not want
    /// them any more.
    pub fn send(&mut self, stream: &mut Stream, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let piece = &bytes[..bytes.len().min(SEND_BYTES)];
            match self.driver.send(piece, &mut stream.info) {
                Ok(()) => bytes = &bytes[piece.len()..],
                Err(Error::SocketDeviceError(SocketError::InsufficientBufferSpaceInPeer)) => {
                    let (event, _) =
                        self.next(|event| stream.concerns(event) && is_for_a_sender(event));
                    stream.info.update_for_event(&event);
                    if matches!(event.event_type, VsockEventType::Disconnected { .. }) {
                        return false;
                    }
                }
                Err(error) => panic!("cannot send: {error}"),
            }
        }
        true
    }

    /// The next bytes from the host; none at the end.
    pub fn receive(&mut self, stream: &mut Stream) -> Result<Vec<u8>, Refused> {
        loop {
            let (event, data) = self.next(|event| stream.concerns(event));
            stream.info.update_for_event(&event);
            match event.event_type {
                VsockEventType::Received { length } => {
                    stream.info.done_forwarding(length);
                    self.driver.credit_update(&stream.info).expect("an update");
                    return Ok(data);
                }
                VsockEventType::Disconnected {
                    reason: DisconnectReason::Shutdown,
                } => return Ok(Vec::new()),
                VsockEventType::Disconnected { reason } => return Err(reason),
                VsockEventType::CreditRequest => {
                    self.driver.credit_update(&stream.info).expect("an update");
                }
                VsockEventType::CreditUpdate => {}
                other => panic!("{other:?} on a connection"),
            }
        }
    }

    /// Sends no more.
    pub fn end(&mut self, stream: &Stream) {
        self.driver
            .shutdown_with_hints(&stream.info, StreamShutdown::SEND)
            .expect("a shutdown");
    }

    /// Closes both directions and waits for the host's reset, which answers that.
    pub fn close(&mut self, stream: Stream) {
        self.driver.shutdown(&stream.info).expect("a shutdown");
        self.next(|event| {
            let reset = DisconnectReason::Reset;
            stream.concerns(event)
                && event.event_type == VsockEventType::Disconnected { reason: reset }
        });
    }
}

/// One connection.
pub struct Stream {
    info: ConnectionInfo,
}

impl Stream {
    fn concerns(&self, event: &VsockEvent) -> bool {
        event.source == self.info.dst && event.destination.port == self.info.src_port
    }

    fn heard(mut self, event: &VsockEvent) -> Self {
        self.info.update_for_event(event);
        self
    }
}

/// Whether a packet is about credit, or ends all. Data and the end of the data wait
/// for [`Socket::receive`].
fn is_for_a_sender(event: &VsockEvent) -> bool {
    !matches!(
        event.event_type,
        VsockEventType::Received { .. }
            | VsockEventType::Disconnected {
                reason: DisconnectReason::Shutdown
            }
    )
}

/// Sends `bytes` bytes of the pattern to `port`, ends, and reads how many came.
pub fn upload(context: &Context) {
    let (bytes, seed) = (
        context.arguments.number("bytes"),
        context.arguments.number("seed"),
    );
    let mut socket = Socket::start();
    let port = context.arguments.number("port") as u32;
    let mut stream = socket.connect(port).expect("the host accepts");
    let mut data = vec![0; 100_000];
    let mut position = 0;
    while position < bytes {
        let length = data.len().min((bytes - position) as usize);
        pattern::fill(seed, position, &mut data[..length]);
        assert!(
            socket.send(&mut stream, &data[..length]),
            "the host hung up"
        );
        position += length as u64;
    }
    socket.end(&stream);
    let mut answer = Vec::new();
    loop {
        match socket.receive(&mut stream).expect("the host ends properly") {
            bytes if bytes.is_empty() => break,
            bytes => answer.extend(bytes),
        }
    }
    socket.close(stream);
    say!("answer {}", core::str::from_utf8(&answer).expect("text"));
}

/// Compares what comes from `port` with the pattern until it ends.
pub fn download(context: &Context) {
    let seed = context.arguments.number("seed");
    let mut socket = Socket::start();
    let port = context.arguments.number("port") as u32;
    let mut stream = socket.connect(port).expect("the host accepts");
    let mut position = 0;
    loop {
        let data = socket.receive(&mut stream).expect("the host ends properly");
        if data.is_empty() {
            break;
        }
        assert_eq!(pattern::difference(seed, position, &data), None);
        position += data.len() as u64;
    }
    socket.close(stream);
    say!("{position} bytes");
}

/// Accepts `connections` connections of the host to `port` before it answers the
/// first; then returns to each, in order, what comes from it.
pub fn serve(context: &Context) {
    let port = context.arguments.number("port") as u32;
    let count = context.arguments.number("connections");
    let mut socket = Socket::start();
    say!("serving");
    let streams: Vec<Stream> = (0..count).map(|_| socket.accept(port)).collect();
    for mut stream in streams {
        loop {
            let data = socket.receive(&mut stream).expect("the host ends properly");
            if data.is_empty() {
                break;
            }
            assert!(socket.send(&mut stream, &data), "the host hung up");
        }
        socket.end(&stream);
        socket.close(stream);
    }
    say!("served {count}");
}

/// Connects where the host hangs up at once, and then where it does not.
pub fn refused(context: &Context) {
    let mut socket = Socket::start();
    let refused = context.arguments.number("refused") as u32;
    // A host that asks its agent first resets; one that cannot, ends.
    if let Ok(mut stream) = socket.connect(refused) {
        assert_eq!(socket.receive(&mut stream), Ok(Vec::new()));
        socket.close(stream);
    }
    let accepted = context.arguments.number("accepted") as u32;
    let stream = socket.connect(accepted).expect("the host accepts");
    socket.close(stream);
    say!("refused");
}

/// Sends to a host that hangs up without reading, until it is told so.
pub fn reset_by_host(context: &Context) {
    let mut socket = Socket::start();
    let port = context.arguments.number("port") as u32;
    let mut stream = socket.connect(port).expect("the host accepts");
    let data = [0; SEND_BYTES];
    while socket.send(&mut stream, &data) {}
    say!("hung up");
}
