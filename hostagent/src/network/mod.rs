//! The network of a microVM: `--network`, and the tap interface behind it.

pub mod limits;
mod tap;
mod vhost;

use std::net::IpAddr;

use guest_protocol::{Network, NetworkAddress};
use vmm::spec::NicLimitsSpec;

pub use tap::{TapError, open_tap};
pub use vhost::{VhostError, open_vhost};

/// `IFNAMSIZ` of Linux, with the terminating zero.
const MAX_INTERFACE_NAME_BYTES: usize = 15;

/// What is wrong with a `--network`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--network {text}: {problem}")]
pub struct NetworkOptionError {
    text: String,
    problem: String,
}

/// `tap=NAME[,mac=MAC][,ip=ADDRESS/PREFIX[,gateway=ADDRESS]][,vhost=on]`, or, instead of
/// `vhost`, the limits of [`limits`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkOption {
    /// The host's interface.
    pub tap: String,
    /// The guest's hardware address; omitted: one made from the microVM's id.
    pub mac: Option<String>,
    /// The guest's address.
    pub address: Option<NetworkAddress>,
    /// Whether this host's kernel moves the frames (vhost-net).
    pub vhost: bool,
    /// How much the NIC may move.
    pub limits: Option<NicLimitsSpec>,
}

impl NetworkOption {
    /// Reads the flag; `none` is no network.
    pub fn parse(text: &str) -> Result<Option<Self>, NetworkOptionError> {
        if text == "none" {
            return Ok(None);
        }
        parse(text).map(Some).map_err(|problem| NetworkOptionError {
            text: text.to_owned(),
            problem,
        })
    }

    /// What the guest's init is told.
    pub fn for_guest(&self) -> Network {
        Network {
            addresses: self.address.into_iter().collect(),
        }
    }
}

fn parse(text: &str) -> Result<NetworkOption, String> {
    let (mut tap, mut mac, mut ip, mut gateway, mut vhost) = (None, None, None, None, None);
    let mut limits = [None; limits::KEYS.len()];
    for part in text.split(',') {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("{part:?} is not KEY=VALUE"))?;
        let slot = match key {
            "tap" => &mut tap,
            "mac" => &mut mac,
            "ip" => &mut ip,
            "gateway" => &mut gateway,
            "vhost" => &mut vhost,
            _ => match limits::KEYS.iter().position(|known| *known == key) {
                Some(index) => &mut limits[index],
                None => {
                    let known = limits::KEYS.join(", ");
                    return Err(format!(
                        "{key:?} is not tap, mac, ip, gateway, vhost, {known}"
                    ));
                }
            },
        };
        if slot.replace(value).is_some() {
            return Err(format!("{key} is given twice"));
        }
    }
    let address = match (ip, gateway) {
        (Some(ip), gateway) => Some(address(ip, gateway)?),
        (None, Some(_)) => return Err("gateway needs ip".to_owned()),
        (None, None) => None,
    };
    let limits = limits::parse(limits)?;
    if limits.is_some() && vhost == Some("on") {
        return Err("with vhost=on the kernel moves the frames, and keeps no limits".to_owned());
    }
    Ok(NetworkOption {
        tap: interface_name(tap.ok_or("the tap interface is missing: tap=NAME")?)?,
        mac: mac.map(hardware_address).transpose()?,
        address,
        vhost: match vhost {
            None | Some("off") => false,
            Some("on") => true,
            Some(other) => return Err(format!("vhost is {other:?}, it must be on or off")),
        },
        limits,
    })
}

/// What Linux takes for the name of an interface (`dev_valid_name`), less `%`, of
/// which it would make a number.
fn interface_name(name: &str) -> Result<String, String> {
    let good = (1..=MAX_INTERFACE_NAME_BYTES).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b));
    if !good {
        return Err(format!(
            "{name:?} is not the name of an interface: 1 to {MAX_INTERFACE_NAME_BYTES} characters, no blank and none of / : %"
        ));
    }
    Ok(name.to_owned())
}

fn hardware_address(text: &str) -> Result<String, String> {
    let pairs: Vec<_> = text.split(':').collect();
    let byte = |pair: &str| {
        (pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .then(|| u8::from_str_radix(pair, 16).ok())
            .flatten()
    };
    let bytes: Option<Vec<u8>> = pairs.iter().map(|pair| byte(pair)).collect();
    match bytes.as_deref() {
        Some([first, rest @ ..])
            if rest.len() == 5
                && first & 1 == 0
                && (*first != 0 || rest.iter().any(|byte| *byte != 0)) =>
        {
            Ok(text.to_ascii_lowercase())
        }
        _ => Err(format!(
            "{text:?} is not the hardware address of one machine, such as 02:00:00:00:00:01"
        )),
    }
}

fn address(text: &str, gateway: Option<&str>) -> Result<NetworkAddress, String> {
    let wanted =
        || format!("{text:?} is not an address and the length of its prefix, such as 10.0.0.2/24");
    let (ip, prefix) = text.split_once('/').ok_or_else(wanted)?;
    let ip: IpAddr = ip.parse().map_err(|_| wanted())?;
    let longest = match ip {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    let prefix_length = prefix
        .parse::<u8>()
        .ok()
        .filter(|length| (1..=longest).contains(length))
        .ok_or_else(wanted)?;
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
        return Err(format!("{ip} cannot be the address of a machine"));
    }
    let gateway = gateway
        .map(|gateway| {
            let address: IpAddr = gateway
                .parse()
                .map_err(|_| format!("{gateway:?} is not an address"))?;
            if !same_subnet(ip, address, prefix_length) {
                return Err(format!(
                    "the gateway {address} is not in the subnet of {text}"
                ));
            }
            if address == ip {
                return Err(format!("{address} cannot be its own gateway"));
            }
            Ok(address)
        })
        .transpose()?;
    Ok(NetworkAddress {
        ip,
        prefix_length,
        gateway,
    })
}

/// Whether the first `prefix` bits are the same. A link-local gateway is in every
/// subnet of IPv6.
fn same_subnet(a: IpAddr, b: IpAddr, prefix: u8) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let differing = u32::from(a) ^ u32::from(b);
            u32::from(prefix) <= differing.leading_zeros()
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let differing = u128::from(a) ^ u128::from(b);
            b.is_unicast_link_local() || u32::from(prefix) <= differing.leading_zeros()
        }
        _ => false,
    }
}

/// A hardware address for the microVM `id`: 0x02 in the first byte says that it was
/// assigned locally (IEEE 802), the rest is the start of the id.
pub fn mac_of(id: &str) -> String {
    let mut mac = "02".to_owned();
    let digits = id.get(..10).unwrap_or("0000000001");
    for (digit, index) in digits.chars().zip(0..) {
        if index % 2 == 0 {
            mac.push(':');
        }
        mac.push(digit);
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(text: &str) -> Result<Option<NetworkOption>, NetworkOptionError> {
        NetworkOption::parse(text)
    }

    #[test]
    fn everything_but_the_tap_may_be_left_out() {
        assert_eq!(option("none"), Ok(None));
        let least = option("tap=tap0").unwrap().unwrap();
        assert_eq!(
            (least.tap.as_str(), least.mac, least.address),
            ("tap0", None, None)
        );
        let all = option("ip=10.0.0.2/24,tap=t-1.x,gateway=10.0.0.1,mac=02:AA:00:00:00:01");
        let all = all.unwrap().unwrap();
        assert!(!all.vhost);
        assert!(option("tap=tap0,vhost=on").unwrap().unwrap().vhost);
        assert_eq!(all.mac.as_deref(), Some("02:aa:00:00:00:01"));
        let address = all.address.unwrap();
        assert_eq!(address.ip, IpAddr::from([10, 0, 0, 2]));
        assert_eq!(address.prefix_length, 24);
        assert_eq!(address.gateway, Some(IpAddr::from([10, 0, 0, 1])));
        assert!(option("tap=a,ip=fd00::2/64,gateway=fe80::1").is_ok());
        assert!(option("tap=a,ip=fd00::2/64,gateway=fd00::1").is_ok());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("", "KEY=VALUE"),
            ("bridge", "KEY=VALUE"),
            ("ip=10.0.0.2/24", "tap=NAME"),
            ("tap=", "interface"),
            ("tap=a/b", "interface"),
            ("tap=tap%d", "interface"),
            ("tap=..", "interface"),
            ("tap=0123456789abcdef", "interface"),
            ("tap=a,tap=b", "twice"),
            ("tap=a,bridge=b", "bridge"),
            ("tap=a,bridge=b", "receive-pps"),
            ("tap=a,receive-pps=0", "receive-pps"),
            ("tap=a,transmit-bps=fast", "transmit-bps"),
            ("tap=a,transmit-bps=1m,transmit-bps=1m", "twice"),
            ("tap=a,transmit-bps=1m,vhost=on", "keeps no limits"),
            ("tap=a,vhost=yes", "on or off"),
            ("tap=a,mac=01:00:00:00:00:00", "hardware address"),
            ("tap=a,mac=00:00:00:00:00:00", "hardware address"),
            ("tap=a,mac=02:00:00:00:00", "hardware address"),
            ("tap=a,ip=10.0.0.2", "prefix"),
            ("tap=a,ip=10.0.0.2/33", "prefix"),
            ("tap=a,ip=10.0.0.2/0", "prefix"),
            ("tap=a,ip=fd00::2/129", "prefix"),
            ("tap=a,ip=127.0.0.1/8", "cannot be"),
            ("tap=a,ip=224.0.0.1/8", "cannot be"),
            ("tap=a,gateway=10.0.0.1", "needs ip"),
            ("tap=a,ip=10.0.0.2/24,gateway=10.0.1.1", "subnet"),
            ("tap=a,ip=10.0.0.2/24,gateway=10.0.0.2", "own gateway"),
            ("tap=a,ip=10.0.0.2/24,gateway=fe80::1", "subnet"),
            ("tap=a,ip=10.0.0.2/24,gateway=x", "not an address"),
        ] {
            let error = option(text).unwrap_err().to_string();
            assert!(
                error.contains(part) && error.contains(text),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn an_id_makes_a_local_address_of_one_machine() {
        let mac = mac_of("00ff12ab34cd56");
        assert_eq!(mac, "02:00:ff:12:ab:34");
        assert_eq!(hardware_address(&mac), Ok(mac.clone()));
    }
}
