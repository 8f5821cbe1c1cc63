//! NICs: addresses that are some, and taps that are taps.

use crate::descriptors::{Descriptors, access};
use crate::devices::virtio::net::tap::{InterfaceName, Tap, TapIdentity};
use crate::devices::virtio::net::vhost::VhostFd;
use crate::devices::virtio::net::{MAX_PAIRS, MacAddress, NetLimits, NetOptions};
use crate::spec::{Descriptor, NicSpec};

use super::error::{ConfigError, in_range, kind};
use super::limits::limits;

/// `ETH_MIN_MTU` of Linux, and what IPv4 needs (RFC 791).
const MIN_MTU: u16 = 68;

/// Validates all NICs of a microVM with `vcpus` vCPUs.
pub fn all(
    specs: Vec<NicSpec>,
    vcpus: u64,
    fds: &mut Descriptors,
) -> Result<Vec<NetOptions>, ConfigError> {
    let mut nics: Vec<NetOptions> = Vec::with_capacity(specs.len());
    for (spec, index) in specs.into_iter().zip(0..) {
        let field = format!("nics[{index}]");
        let mac = mac(&spec.mac, &field)?;
        if let Some(other) = nics.iter().position(|nic| nic.mac == mac) {
            return Err(ConfigError::Twice {
                field: format!("{field}.mac"),
                other: format!("nics[{other}].mac"),
                value: spec.mac,
            });
        }
        nics.push(nic(spec, mac, &field, vcpus, fds)?);
    }
    Ok(nics)
}

fn nic(
    spec: NicSpec,
    mac: MacAddress,
    field: &str,
    vcpus: u64,
    fds: &mut Descriptors,
) -> Result<NetOptions, ConfigError> {
    let most = vcpus.min(MAX_PAIRS as u64);
    in_range(
        &format!("the number of taps of {field}"),
        spec.taps.len() as u64,
        1..=most,
        format!("1 to {most}, for {vcpus} vCPUs"),
    )?;
    if let Some(mtu) = spec.mtu {
        let wanted = format!("{MIN_MTU} or more");
        in_range(
            &format!("{field}.mtu"),
            mtu.into(),
            u64::from(MIN_MTU)..,
            wanted,
        )?;
    }
    let limits = net_limits(&spec, field)?;
    let mut taps = Vec::with_capacity(spec.taps.len());
    let mut segments_udp = true;
    let mut first: Option<InterfaceName> = None;
    for (number, index) in spec.taps.into_iter().zip(0..) {
        let field_of = |index: usize| format!("{field}.taps[{index}]");
        let field = field_of(index);
        let fd = fds.take(number, &field)?;
        let wanted = "a queue of a tap interface, open for reading and writing, \
                      with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR";
        let identity = TapIdentity::of(&fd)
            .filter(TapIdentity::carries_frames_after_headers)
            .filter(|_| access(&fd) == (true, true))
            .ok_or_else(|| kind(&field, wanted))?;
        let interface = *first.get_or_insert(identity.interface);
        if interface != identity.interface {
            return Err(ConfigError::Interface {
                field,
                found: identity.interface.to_string(),
                other: field_of(0),
                wanted: interface.to_string(),
            });
        }
        let (tap, segments) =
            Tap::new(fd).map_err(|source| ConfigError::Setup { field, source })?;
        segments_udp &= segments;
        taps.push(tap);
    }
    let vhost = vhost(&spec.vhost, taps.len(), field, fds)?;
    Ok(NetOptions {
        mac,
        mtu: spec.mtu,
        taps,
        segments_udp,
        vhost,
        limits,
    })
}

fn net_limits(nic: &NicSpec, field: &str) -> Result<NetLimits, ConfigError> {
    let Some(spec) = nic.limits else {
        return Ok(NetLimits::default());
    };
    let field = format!("{field}.limits");
    if !nic.vhost.is_empty() {
        return Err(ConfigError::NotWith {
            other: "vhost",
            field,
            reason: "the kernel, which then moves the frames, keeps no limits",
        });
    }
    Ok(NetLimits {
        transmit: limits(spec.transmit, &format!("{field}.transmit"))?,
        receive: limits(spec.receive, &format!("{field}.receive"))?,
    })
}

fn vhost(
    numbers: &[Descriptor],
    taps: usize,
    field: &str,
    fds: &mut Descriptors,
) -> Result<Vec<VhostFd>, ConfigError> {
    if !numbers.is_empty() {
        in_range(
            &format!("the number of vhost descriptors of {field}"),
            numbers.len() as u64,
            taps as u64..=taps as u64,
            format!("none or {taps}, as many as taps"),
        )?;
    }
    let take = |(number, index): (&Descriptor, usize)| {
        let field = format!("{field}.vhost[{index}]");
        let fd = fds.take(*number, &field)?;
        VhostFd::new(fd).ok_or_else(|| kind(field, "an open /dev/vhost-net"))
    };
    numbers.iter().zip(0..).map(take).collect()
}

/// Six pairs of hexadecimal digits with colons between them: an address of one
/// machine.
fn mac(text: &str, field: &str) -> Result<MacAddress, ConfigError> {
    let refused = |wanted| kind(format!("{field}.mac"), wanted);
    let mut mac = MacAddress::default();
    let mut pairs = text.split(':');
    for byte in &mut mac {
        *byte = pairs
            .next()
            .filter(|pair| pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            .ok_or_else(|| refused("an address such as 02:00:00:00:00:01"))?;
    }
    if pairs.next().is_some() {
        return Err(refused("an address such as 02:00:00:00:00:01"));
    }
    // The lowest bit of the first byte is that of groups (IEEE 802).
    if mac[0] & 1 != 0 || mac == MacAddress::default() {
        return Err(refused(
            "the address of one machine, not of a group and not zero",
        ));
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_machine_are_read_and_others_refused() {
        assert_eq!(
            mac("02:00:5e:10:Ab:ff", "n").unwrap(),
            [2, 0, 0x5e, 0x10, 0xab, 0xff]
        );
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "02-00-00-00-00-01",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
            "0g:00:00:00:00:01",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            let error = mac(bad, "nics[3]").unwrap_err().to_string();
            assert!(error.contains("nics[3].mac"), "{bad:?}: {error}");
        }
    }
}
