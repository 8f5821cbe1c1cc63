//! Names to addresses, without the C library: a static glibc cannot load the
//! modules that its own resolver consists of.
//!
//! `/etc/hosts` and the name servers of `/etc/resolv.conf` are asked, not what else
//! `nsswitch.conf` may name. `localhost` and what ends in it are loopback
//! addresses (RFC 6761, section 6.3).

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Resolves the names of all clients, and remembers for as long as a name's owner
/// allows. It reads this machine's configuration with the first name.
#[derive(Clone, Default)]
pub(super) struct Resolver {
    resolver: Arc<OnceLock<TokioResolver>>,
}

impl Resolver {
    async fn lookup(&self, host: &str) -> Result<Vec<IpAddr>, Box<dyn Error + Send + Sync>> {
        let name = host.trim_end_matches('.');
        if name == "localhost" || name.ends_with(".localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let resolver = match self.resolver.get() {
            Some(resolver) => resolver,
            None => {
                let new = of_this_machine()?;
                self.resolver.get_or_init(|| new)
            }
        };
        Ok(resolver.lookup_ip(host).await?.iter().collect())
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let found = resolver.lookup(name.as_str()).await?;
            // The port is the URL's; 0 stands for that.
            let addresses = found.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(addresses.collect::<Vec<_>>().into_iter()) as Addrs)
        })
    }
}

fn of_this_machine() -> Result<TokioResolver, NetError> {
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|_| {
        // As resolv.conf(5) has it: without the file, the name server is this machine.
        let here = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![here]);
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    });
    let options = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Always;
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(host: &str) -> Result<Vec<IpAddr>, Box<dyn Error + Send + Sync>> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(Resolver::default().lookup(host))
    }

    #[test]
    fn localhost_needs_no_name_server() {
        for name in ["localhost", "registry.localhost", "localhost."] {
            assert!(
                lookup(name).unwrap().iter().all(IpAddr::is_loopback),
                "{name}"
            );
        }
    }

    #[test]
    fn names_in_etc_hosts_are_known() {
        let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let line = |line: &str| {
            let mut words = line.split('#').next()?.split_whitespace();
            let address: IpAddr = words.next()?.parse().ok()?;
            let name = words.find(|name| !name.contains("localhost"))?;
            Some((address, name.to_owned()))
        };
        for (address, name) in hosts.lines().filter_map(line).take(3) {
            let found = lookup(&name).unwrap();
            assert!(found.contains(&address), "{name} is at {found:?}");
        }
    }
}
