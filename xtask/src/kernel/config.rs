//! The configuration of the guest's kernel: what the fragments ask for, and
//! whether the kernel's configuration system has obeyed.
//!
//! A fragment holds lines as `.config` has them, and comments. Kconfig drops an
//! answer without a word when the question does not exist or depends on
//! something that is not there; [`Request::unmet`] finds those.
//!
//! Between kernel series questions are renamed. A comment `# [since 6.9]` or
//! `# [before 6.9]` limits the lines that follow it, up to the next blank line
//! or the next such comment, to the series it names.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};

/// A kernel series, such as 6.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    major: u32,
    minor: u32,
}

impl FromStr for Series {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (major, minor) = text.split_once('.')?;
            Some(Self {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            })
        };
        parse().with_context(|| format!("`{text}` is not a kernel series such as 6.1"))
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Everything the fragments ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Request {
    answers: BTreeMap<String, Answer>,
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    /// The value in Kconfig's notation, or nothing for a question that is to be
    /// answered with no.
    value: Option<String>,
    /// The file and line that ask for it.
    origin: String,
}

/// Reads the fragments that `series` is configured with: those in `directory`
/// and those in its subdirectory for this machine's architecture.
pub fn read(directory: &Path, series: Series) -> Result<Request> {
    let mut request = Request::default();
    for directory in [directory, &directory.join(std::env::consts::ARCH)] {
        for path in fragments(directory)? {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            request.add(&name, &text, series)?;
        }
    }
    Ok(request)
}

fn fragments(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(directory)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.path()))
                .collect::<std::io::Result<Vec<_>>>()
        })
        .with_context(|| {
            format!(
                "cannot read the kernel configuration {}",
                directory.display()
            )
        })?;
    paths.retain(|path| path.extension().is_some_and(|it| it == "config"));
    paths.sort();
    Ok(paths)
}

impl Request {
    /// Adds the fragment `text`, known to the reader as `name`.
    fn add(&mut self, name: &str, text: &str, series: Series) -> Result<()> {
        let mut applies = true;
        for (line, number) in text.lines().zip(1..) {
            let origin = format!("{name}:{number}");
            match parse(line).with_context(|| origin.clone())? {
                Line::Blank => applies = true,
                Line::Comment => {}
                Line::Before(limit) => applies = series < limit,
                Line::Since(limit) => applies = series >= limit,
                Line::Answer { .. } if !applies => {}
                Line::Answer { symbol, value } => {
                    let value = value.map(str::to_owned);
                    let answer = Answer { value, origin };
                    let symbol = symbol.to_owned();
                    if let Some(earlier) = self.answers.get(&symbol) {
                        bail!(
                            "{symbol} is set in {} and {}",
                            earlier.origin,
                            answer.origin
                        );
                    }
                    self.answers.insert(symbol, answer);
                }
            }
        }
        Ok(())
    }

    /// The answers as one fragment, for `KCONFIG_ALLCONFIG`.
    pub fn to_fragment(&self) -> String {
        let mut text = String::new();
        for (symbol, answer) in &self.answers {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{}", line(symbol, answer.value.as_deref()));
        }
        text
    }

    /// The lines that `config`, the configuration that came of them, does not
    /// have.
    pub fn unmet(&self, config: &str) -> Vec<String> {
        let actual: BTreeMap<&str, &str> = config
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        self.answers
            .iter()
            .filter(|(symbol, answer)| {
                actual.get(symbol.as_str()).copied() != answer.value.as_deref()
            })
            .map(|(symbol, answer)| {
                let wanted = line(symbol, answer.value.as_deref());
                let got = line(symbol, actual.get(symbol.as_str()).copied());
                format!("{}: wants `{wanted}`, got `{got}`", answer.origin)
            })
            .collect()
    }
}

fn line(symbol: &str, value: Option<&str>) -> String {
    match value {
        Some(value) => format!("{symbol}={value}"),
        None => format!("# {symbol} is not set"),
    }
}

enum Line<'a> {
    Blank,
    Comment,
    Before(Series),
    Since(Series),
    Answer {
        symbol: &'a str,
        value: Option<&'a str>,
    },
}

fn parse(line: &str) -> Result<Line<'_>> {
    if line.is_empty() {
        return Ok(Line::Blank);
    }
    if let Some(comment) = line.strip_prefix('#') {
        let comment = comment.trim();
        if let Some(symbol) = comment.strip_suffix(" is not set") {
            return Ok(Line::Answer {
                symbol: checked(symbol)?,
                value: None,
            });
        }
        let limit = comment
            .strip_prefix('[')
            .and_then(|it| it.strip_suffix(']'));
        return match limit.map(|limit| limit.split_once(' ').unwrap_or((limit, ""))) {
            None => Ok(Line::Comment),
            Some(("before", series)) => Ok(Line::Before(series.parse()?)),
            Some(("since", series)) => Ok(Line::Since(series.parse()?)),
            Some(_) => bail!("`{line}` is neither [before SERIES] nor [since SERIES]"),
        };
    }
    let (symbol, value) = line
        .split_once('=')
        .ok_or_else(|| anyhow!("`{line}` is neither CONFIG_NAME=VALUE nor a comment"))?;
    match value {
        "" => bail!("`{line}` has no value"),
        "n" => bail!("`{line}`: write `# {symbol} is not set`"),
        "m" => bail!("`{line}`: the guest's kernel has no modules"),
        _ => Ok(Line::Answer {
            symbol: checked(symbol)?,
            value: Some(value),
        }),
    }
}

fn checked(symbol: &str) -> Result<&str> {
    let name = symbol.strip_prefix("CONFIG_").unwrap_or_default();
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || !name.bytes().all(valid) {
        bail!("`{symbol}` is not the name of a configuration symbol");
    }
    Ok(symbol)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace;

    const SERIES: Series = Series { major: 6, minor: 1 };

    fn request(text: &str) -> Result<Request> {
        request_for(SERIES, text)
    }

    fn request_for(series: Series, text: &str) -> Result<Request> {
        let mut request = Request::default();
        request.add("test.config", text, series)?;
        Ok(request)
    }

    fn ours() -> Request {
        let directory = workspace::root().join("guest-images/kernel/config");
        read(&directory, SERIES).unwrap()
    }

    #[test]
    fn an_answer_that_kconfig_dropped_or_changed_is_unmet() {
        let request = request(
            "CONFIG_A=y\nCONFIG_B=y\nCONFIG_N=32\nCONFIG_S=\"text\"\n\
             # CONFIG_OFF is not set\n# CONFIG_FORCED is not set\n",
        )
        .unwrap();
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_N=64\nCONFIG_S=\"text\"\n\
                      CONFIG_FORCED=y\nCONFIG_UNASKED=y\n";
        assert_eq!(
            request.unmet(config),
            [
                "test.config:2: wants `CONFIG_B=y`, got `# CONFIG_B is not set`",
                "test.config:6: wants `# CONFIG_FORCED is not set`, got `CONFIG_FORCED=y`",
                "test.config:3: wants `CONFIG_N=32`, got `CONFIG_N=64`",
            ]
        );
    }

    #[test]
    fn a_symbol_that_is_a_prefix_of_another_is_not_taken_for_it() {
        let request = request("CONFIG_NET=y\n").unwrap();
        assert_eq!(request.unmet("CONFIG_NET_NS=y\n").len(), 1);
        assert!(request.unmet("CONFIG_NET=y\n").is_empty());
    }

    #[test]
    fn a_symbol_set_twice_is_refused() {
        let error = request("CONFIG_A=y\n# CONFIG_A is not set\n").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("test.config:1 and test.config:2"),
            "{error:#}"
        );
    }

    #[test]
    fn lines_that_kconfig_would_skip_are_refused() {
        for text in [
            "CONFIG_A",
            "CONFIG_A = y",
            "CONFIG_A=",
            "CONFIG_A=n",
            "CONFIG_A=m",
            "A=y",
            "# A is not set",
            "# CONFIG_A B is not set",
            "# [from 6.9]",
            "# [since 6]",
            "# [before ]",
        ] {
            assert!(request(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_limit_holds_until_the_next_blank_line_or_limit() {
        let text = "CONFIG_A=y\n# [before 6.9]\nCONFIG_B=y\n# [since 6.9]\n# why\nCONFIG_C=y\n\
                    \nCONFIG_D=y\n";
        let symbols = |series: &str| {
            let request = request_for(series.parse().unwrap(), text).unwrap();
            request.answers.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(symbols("6.1"), ["CONFIG_A", "CONFIG_B", "CONFIG_D"]);
        assert_eq!(symbols("6.9"), ["CONFIG_A", "CONFIG_C", "CONFIG_D"]);
        assert_eq!(symbols("6.12"), ["CONFIG_A", "CONFIG_C", "CONFIG_D"]);
    }

    #[test]
    fn a_fragment_is_met_by_itself_and_reads_back_the_same() {
        let request = ours();
        let text = request.to_fragment();
        assert!(request.unmet(&text).is_empty());
        let again = request_for(SERIES, &text).unwrap();
        assert_eq!(again.to_fragment(), text);
    }

    /// What the configuration checks of Docker and k3s, runc's cgroup and
    /// seccomp use, and kube-proxy's two modes ask of a kernel; for the systems
    /// of the engines themselves, see guest-images/kernel/README.md.
    const CONTAINER_ENGINES_NEED: &str = "
        NAMESPACES NET_NS PID_NS IPC_NS UTS_NS USER_NS
        CGROUPS CGROUP_CPUACCT CGROUP_DEVICE CGROUP_FREEZER CGROUP_SCHED CPUSETS MEMCG
        CGROUP_PIDS CGROUP_PERF CGROUP_HUGETLB CGROUP_BPF BLK_CGROUP BLK_DEV_THROTTLING
        FAIR_GROUP_SCHED CFS_BANDWIDTH
        KEYS SECCOMP SECCOMP_FILTER BPF_SYSCALL POSIX_MQUEUE SYSVIPC
        VETH BRIDGE BRIDGE_NETFILTER BRIDGE_VLAN_FILTERING VXLAN WIREGUARD IPVLAN MACVLAN
        DUMMY TUN IPV6 VLAN_8021Q
        NF_TABLES NF_TABLES_INET NFT_COMPAT NFT_CT NFT_MASQ NFT_NAT NF_NAT NF_CONNTRACK
        NF_CT_NETLINK IP_NF_FILTER IP_NF_MANGLE IP_NF_NAT IP_NF_RAW IP_NF_TARGET_MASQUERADE
        IP_NF_TARGET_REJECT IP_NF_TARGET_REDIRECT IP6_NF_FILTER IP6_NF_MANGLE IP6_NF_NAT
        IP6_NF_RAW IP6_NF_TARGET_MASQUERADE NETFILTER_XT_MARK NETFILTER_XT_MATCH_ADDRTYPE
        NETFILTER_XT_MATCH_COMMENT NETFILTER_XT_MATCH_CONNTRACK NETFILTER_XT_MATCH_IPVS
        NETFILTER_XT_MATCH_LIMIT NETFILTER_XT_MATCH_MULTIPORT NETFILTER_XT_MATCH_PHYSDEV
        NETFILTER_XT_MATCH_STATISTIC NETFILTER_XT_TARGET_NFLOG NETFILTER_XT_SET IP_SET
        IP_SET_HASH_IP IP_SET_HASH_NET IP_VS IP_VS_NFCT IP_VS_RR IP_VS_PROTO_TCP
        IP_VS_PROTO_UDP
        OVERLAY_FS EXT4_FS EXT4_FS_POSIX_ACL EXT4_FS_SECURITY TMPFS_XATTR FUSE_FS
        IKCONFIG_PROC";

    #[test]
    fn what_container_engines_need_is_asked_for() {
        let request = ours();
        let missing: Vec<_> = CONTAINER_ENGINES_NEED
            .split_whitespace()
            .filter(|name| {
                let answer = request.answers.get(&format!("CONFIG_{name}"));
                answer.and_then(|it| it.value.as_deref()) != Some("y")
            })
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
