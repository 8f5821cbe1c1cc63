//! The packet header (virtio 1.3, section 5.10.6), as this device needs it.

use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};

/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub const TYPE_STREAM: u16 = 1;

/// `VIRTIO_VSOCK_SHUTDOWN_RCV`: the sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1 << 0;
/// `VIRTIO_VSOCK_SHUTDOWN_SEND`: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 1 << 1;

/// `enum virtio_vsock_op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Operation {
    /// Asks for a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// Refuses or ends one.
    Reset = 3,
    /// Half-closes one.
    Shutdown = 4,
    /// Carries data.
    ReadWrite = 5,
    /// Tells how much may be sent.
    CreditUpdate = 6,
    /// Asks how much may be sent.
    CreditRequest = 7,
}

impl Operation {
    fn from_wire(value: u16) -> Option<Self> {
        Some(match value {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// A header, copied out of guest memory once, or about to be copied in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The sender's context id.
    pub source_cid: u64,
    /// The receiver's context id.
    pub destination_cid: u64,
    /// The sender's port.
    pub source_port: u32,
    /// The receiver's port.
    pub destination_port: u32,
    /// Bytes of payload.
    pub length: u32,
    /// The socket type; [`TYPE_STREAM`] is the only one here.
    pub socket_type: u16,
    /// What the packet is for; `None`: something this device does not know.
    pub operation: Option<Operation>,
    /// Of a shutdown: which directions.
    pub flags: u32,
    /// Bytes of buffer the sender has for this connection.
    pub buffer_bytes: u32,
    /// Bytes the sender has taken out of that buffer so far, modulo 2³².
    pub forwarded_bytes: u32,
}

impl Header {
    /// The header of a packet the driver sent.
    pub fn of(packet: &VsockPacket<()>) -> Self {
        Self {
            source_cid: packet.src_cid(),
            destination_cid: packet.dst_cid(),
            source_port: packet.src_port(),
            destination_port: packet.dst_port(),
            length: packet.len(),
            socket_type: packet.type_(),
            operation: Operation::from_wire(packet.op()),
            flags: packet.flags(),
            buffer_bytes: packet.buf_alloc(),
            forwarded_bytes: packet.fwd_cnt(),
        }
    }

    /// The wire form.
    pub fn to_bytes(self) -> [u8; PKT_HEADER_SIZE] {
        let mut bytes = [0; PKT_HEADER_SIZE];
        let operation = self.operation.map_or(0, |operation| operation as u16);
        bytes[0..8].copy_from_slice(&self.source_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.destination_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.source_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.destination_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.socket_type.to_le_bytes());
        bytes[30..32].copy_from_slice(&operation.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buffer_bytes.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.forwarded_bytes.to_le_bytes());
        bytes
    }
}
