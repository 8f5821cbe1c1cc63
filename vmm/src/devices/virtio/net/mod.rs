//! virtio-net (virtio 1.3, section 5.1) on a tap.
//!
//! [`tap`] is one queue of the host's interface, [`super::watch`] says which have frames.
//! [`receive`] and [`transmit`] move frames between a tap and guest memory without
//! a copy; [`control`] answers the driver's commands. [`vhost`] has the host's kernel
//! move the frames instead. This file is the device.
//!
//! A pair of queues belongs to each of the tap's. As long as the driver uses fewer
//! pairs, the frames of the other taps come through those that it uses. With vhost-net
//! the other taps get no frames, and nobody notices when the interface is deleted:
//! the kernel tells only those who read.

mod control;
mod features;
mod frame;
mod receive;
pub mod tap;
mod transmit;
pub mod vhost;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::limiter::{Direction, Limiter, Limits};
use super::queues::{DeviceFault, Drained, Queues};
use super::watch::Watch;
use super::{VirtioDevice, read_config_bytes};
use crate::event::{EventKind, EventSink};
use crate::memory::GuestMemory;
use features::{CONFIG_BYTES, CONFIG_STATUS, has};
use frame::MAX_FRAME_BYTES;
use receive::{Acceptance, Receiver, Source};
use tap::{Gone, HEADER_BYTES, Offloads, Tap};
use vhost::{VhostFd, VhostPair};

/// The most queue pairs of one device. Each costs two doorbells.
pub const MAX_PAIRS: usize = 8;

const QUEUE_SIZE: u16 = 256;
/// Commands come one at a time.
const CONTROL_QUEUE_SIZE: u16 = 16;
/// What a driver expects that was not told an MTU.
const DEFAULT_MTU: u16 = 1500;
/// Around an IP packet: the Ethernet header and two VLAN tags.
const ETHERNET_BYTES: usize = 14 + 8;

/// An Ethernet address.
pub type MacAddress = [u8; 6];

/// How much a NIC may move in each direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetLimits {
    /// From the guest.
    pub transmit: Limits,
    /// To the guest.
    pub receive: Limits,
}

/// What a NIC is like.
#[derive(Debug)]
pub struct NetOptions {
    /// Its address.
    pub mac: MacAddress,
    /// The largest packet the guest shall send, if it shall be told.
    pub mtu: Option<u16>,
    /// The queues of one interface, 1 to [`MAX_PAIRS`].
    pub taps: Vec<Tap>,
    /// Whether they know UDP segmentation.
    pub segments_udp: bool,
    /// Who serves the queues: one for each of `taps`, or none, and the device does
    /// so itself.
    pub vhost: Vec<VhostFd>,
    /// How much it may move: without limits if others serve the queues.
    pub limits: NetLimits,
}

/// Frames that were lost on the way, as frames may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// From the guest: the kernel refused the header, the interface was down or
    /// gone, or no frame is so long.
    pub sent: u64,
    /// For the guest: longer than its buffers.
    pub received: u64,
}

/// The device.
pub struct Net {
    name: String,
    config: [u8; CONFIG_BYTES],
    features: u64,
    queue_sizes: Vec<u16>,
    usual_mtu: u16,
    sources: Vec<Source>,
    receivers: Vec<Receiver>,
    vhost: Vec<VhostPair>,
    watch: Watch,
    events: Arc<EventSink>,
    /// One for each direction, or none where others serve the queues.
    limiters: Vec<Limiter>,
    link_up: bool,
    /// The driver has not been told of that yet.
    link_changed: bool,
    dropped_sent: u64,
    /// What the taps were told last.
    offloads: Offloads,
    /// What the driver acknowledged.
    acceptance: Acceptance,
    /// Where the driver has its control queue, if it has one.
    control_queue: Option<usize>,
    /// How many pairs the driver uses.
    active_pairs: usize,
    /// How many taps get frames; those of unused pairs do not with vhost-net.
    attached_taps: usize,
}

impl Net {
    /// A NIC called `name` in events, which go to `events`.
    pub fn new(
        name: String,
        options: NetOptions,
        memory: &GuestMemory,
        events: Arc<EventSink>,
    ) -> io::Result<Self> {
        let NetOptions {
            mac,
            mtu,
            taps,
            segments_udp,
            vhost,
            limits,
        } = options;
        let pairs = taps.len();
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * pairs];
        if pairs > 1 {
            queue_sizes.push(CONTROL_QUEUE_SIZE);
        }
        Ok(Self {
            name,
            config: features::config_space(&mac, mtu, pairs),
            features: features::offered(mtu.is_some(), segments_udp, pairs),
            queue_sizes,
            usual_mtu: mtu.unwrap_or(DEFAULT_MTU),
            // The kernel looks at its own.
            watch: match vhost.is_empty() {
                true => Watch::new(taps.iter().map(AsFd::as_fd))?,
                false => Watch::new([])?,
            },
            limiters: match vhost.is_empty() {
                true => vec![
                    Limiter::new(limits.transmit)?,
                    Limiter::new(limits.receive)?,
                ],
                false => Vec::new(),
            },
            vhost: vhost
                .into_iter()
                .map(|fd| VhostPair::new(fd, memory))
                .collect::<io::Result<_>>()?,
            receivers: (0..pairs).map(|pair| Receiver::new(2 * pair)).collect(),
            sources: taps
                .into_iter()
                .map(|tap| Source {
                    tap,
                    readable: false,
                })
                .collect(),
            events,
            link_up: true,
            link_changed: false,
            dropped_sent: 0,
            offloads: Offloads::default(),
            acceptance: Acceptance::default(),
            control_queue: None,
            active_pairs: 1,
            attached_taps: pairs,
        })
    }

    /// What was lost so far.
    pub fn dropped(&self) -> Dropped {
        Dropped {
            sent: self.dropped_sent,
            received: self.receivers.iter().map(|queue| queue.dropped).sum(),
        }
    }

    fn pairs(&self) -> usize {
        self.sources.len()
    }

    /// Fills the buffers of pair `pair` from its tap, and from those of the pairs
    /// that the driver does not use.
    fn receive(&mut self, pair: usize, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        if pair >= self.active_pairs {
            return Ok(Drained::Empty);
        }
        let Some(receiver) = self.receivers.get_mut(pair) else {
            return Ok(Drained::Empty);
        };
        let sources = self
            .sources
            .iter_mut()
            .skip(pair)
            .step_by(self.active_pairs);
        let limiter = self.limiters.get_mut(Direction::Receive as usize);
        let (drained, gone) = receiver.receive(sources, self.acceptance, limiter, queues)?;
        self.watch_link(gone);
        Ok(drained)
    }

    fn transmit(
        &mut self,
        pair: usize,
        index: usize,
        queues: &mut Queues,
    ) -> Result<Drained, DeviceFault> {
        let tap = self.sources.get(pair).map(|source| &source.tap);
        let tap = tap.filter(|_| self.link_up);
        let limiter = self.limiters.get_mut(Direction::Transmit as usize);
        let (drained, gone) =
            transmit::transmit(index, tap, limiter, &mut self.dropped_sent, queues)?;
        self.watch_link(gone);
        Ok(drained)
    }

    fn control(&mut self, index: usize, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        // Without multiqueue (and so with another queue for this), one pair is all.
        let max_pairs = match index == 2 * self.pairs() {
            true => self.pairs(),
            false => 1,
        };
        let mut wanted = None;
        let drained = control::answer(index, max_pairs, |pairs| wanted = Some(pairs), queues)?;
        if let Some(pairs) = wanted {
            self.use_pairs(pairs)?;
            // Other queues are now for some of the taps.
            self.watch.wake_again();
        }
        Ok(drained)
    }

    /// Uses the first `pairs` pairs. Where the kernel serves them, the taps of the
    /// others get no frames: nobody would take them.
    fn use_pairs(&mut self, pairs: usize) -> Result<(), DeviceFault> {
        self.active_pairs = pairs;
        for ((vhost, source), index) in self.vhost.iter().zip(&self.sources).zip(0..) {
            let active = index < pairs;
            if active != (index < self.attached_taps) {
                // Refused only when the interface is gone.
                let _ = source.tap.set_attached(active);
            }
            if active {
                vhost
                    .start(&source.tap)
                    .map_err(|source| DeviceFault::Host {
                        what: "let vhost-net serve the queues",
                        source,
                    })?;
            } else {
                vhost.stop();
            }
        }
        if !self.vhost.is_empty() {
            self.attached_taps = pairs;
        }
        Ok(())
    }

    /// Says once that the interface is gone: to the driver by the link's status, to
    /// the agent by an event.
    fn watch_link(&mut self, gone: Option<Gone>) {
        let Some(Gone(error)) = gone else { return };
        if !std::mem::take(&mut self.link_up) {
            return;
        }
        self.config[CONFIG_STATUS] = 0;
        for source in &mut self.sources {
            source.readable = false;
        }
        self.link_changed = true;
        self.events.send(EventKind::LinkDown {
            device: self.name.clone(),
            reason: format!("the tap is gone: {error}"),
        });
    }
}

impl VirtioDevice for Net {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn take_configuration_change(&mut self) -> bool {
        std::mem::take(&mut self.link_changed)
    }

    fn activate(&mut self, features: u64) {
        let offloads = features::offloads(features);
        // Not more often than they change: the call takes a lock that all of the host's
        // network interfaces share.
        if std::mem::replace(&mut self.offloads, offloads) != offloads
            && let Some(source) = self.sources.first()
        {
            // A tap that refuses is gone, which the next read will tell.
            let _ = source.tap.set_offloads(offloads);
        }
        self.acceptance = Acceptance {
            mergeable: has(features, VIRTIO_NET_F_MRG_RXBUF),
            usual_frame_bytes: match offloads.large_frames() {
                true => MAX_FRAME_BYTES,
                false => HEADER_BYTES + ETHERNET_BYTES + usize::from(self.usual_mtu),
            },
        };
        // Section 5.1.2: it follows the pairs that there could be, as far as the
        // driver knows.
        self.control_queue =
            has(features, VIRTIO_NET_F_CTRL_VQ).then(|| match has(features, VIRTIO_NET_F_MQ) {
                true => 2 * self.pairs(),
                false => 2,
            });
    }

    fn handed_over(&self) -> usize {
        2 * self.vhost.len()
    }

    fn share_lines(&mut self, line: &EventFd, _doorbells: &[EventFd]) -> io::Result<()> {
        self.vhost
            .iter()
            .try_for_each(|pair| pair.share_interrupt(line))
    }

    fn hand_over(
        &mut self,
        features: u64,
        queues: &[Queue],
        doorbells: &[EventFd],
    ) -> Result<(), DeviceFault> {
        let pairs = queues.chunks(2).zip(doorbells.chunks(2));
        for (vhost, (queues, doorbells)) in self.vhost.iter_mut().zip(pairs) {
            vhost
                .set_up(features, queues, doorbells)
                .map_err(|source| DeviceFault::Host {
                    what: "tell vhost-net of the queues",
                    source,
                })?;
        }
        self.use_pairs(1)
    }

    fn queue_taken_away(&mut self, index: usize) {
        if let Some(vhost) = self.vhost.get_mut(index / 2) {
            vhost.take_back(index % 2);
        }
    }

    fn process_queue(&mut self, index: usize, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        if self.control_queue == Some(index) {
            return self.control(index, queues);
        }
        if index < self.handed_over() {
            return Ok(Drained::Empty);
        }
        match (index / 2, index % 2) {
            (pair, _) if pair >= self.pairs() => Ok(Drained::Empty),
            (pair, 0) => self.receive(pair, queues),
            (pair, _) => self.transmit(pair, index, queues),
        }
    }

    fn reset(&mut self) {
        for vhost in &self.vhost {
            vhost.stop();
        }
        for receiver in &mut self.receivers {
            receiver.reset();
        }
        self.acceptance = Acceptance::default();
        self.control_queue = None;
        self.active_pairs = 1;
    }

    fn limiters(&mut self) -> &mut [Limiter] {
        &mut self.limiters
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.as_fd())
    }

    fn process_backend(&mut self, queues: Option<&mut Queues>) -> Result<(), DeviceFault> {
        let (sources, link_up) = (&mut self.sources, self.link_up);
        let mut gone = None;
        self.watch.poll(|tap, error| {
            if let Some(source) = sources.get_mut(tap) {
                source.readable = link_up;
            }
            if error {
                gone = Some(Gone(io::ErrorKind::NotConnected.into()));
            }
        });
        self.watch_link(gone);
        // Without a driver the frames stay where they are.
        let Some(queues) = queues else { return Ok(()) };
        let mut again = false;
        for pair in 0..self.active_pairs {
            again |= self.receive(pair, queues)? == Drained::Again;
        }
        if again {
            self.watch.wake_again();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
