//! Which addresses a registry may lead to.
//!
//! Whoever controls a registry, what it redirects to or a name's zone could have the server talk to what only the
//! server reaches: other programs on this machine, machines of its network, a cloud's metadata. So an address is judged
//! when it is connected to, after its name was resolved: a name that leads elsewhere the next time (DNS rebinding) is
//! judged again, and the connection goes to the very address that was.

use std::{
    collections::HashSet,
    error::Error,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
};

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

/// The variables of the environment that name a proxy; see curl(1).
const PROXIES: [&str; 6] = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// Addresses of a name, each with any port.
type Looking = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Asks for the addresses of names, and keeps back those within.
#[derive(Clone)]
pub(crate) struct World {
    look: Arc<dyn Fn(String) -> Looking + Send + Sync>,
    within: fn(IpAddr) -> bool,
    /// The proxies that whoever started us named: they are where they are, and judge by themselves where to connect.
    proxies: Arc<HashSet<String>>,
}

impl World {
    /// As the system resolves names.
    pub(crate) fn of_the_system() -> Self {
        let look = |name: String| -> Looking {
            // Port 0 is any: the connection has its own.
            Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) })
        };
        let named = PROXIES.iter().filter_map(|name| proxy_host(&std::env::var(name).ok()?));
        Self { look: Arc::new(look), within: is_within, proxies: Arc::new(named.collect()) }
    }

    /// Whether an address is within.
    pub(crate) fn is_within(&self, address: IpAddr) -> bool {
        (self.within)(address)
    }

    /// The same names, of which none is kept back.
    pub(crate) fn unjudged(&self) -> Self {
        Self { within: |_| false, ..self.clone() }
    }

    /// Names by hand, and what counts as within.
    #[cfg(test)]
    pub(crate) fn made(
        within: fn(IpAddr) -> bool,
        look: impl Fn(&str) -> Vec<SocketAddr> + Send + Sync + 'static,
    ) -> Self {
        let look = move |name: String| -> Looking {
            let found = look(&name);
            Box::pin(async move { Ok(found) })
        };
        Self { look: Arc::new(look), within, proxies: Arc::default() }
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("World")
    }
}

impl Resolve for World {
    fn resolve(&self, name: Name) -> Resolving {
        let (name, world) = (name.as_str().to_owned(), self.clone());
        Box::pin(async move {
            let found = (world.look)(name.clone()).await?;
            if world.proxies.contains(&name.to_ascii_lowercase()) {
                return Ok(Box::new(found.into_iter()) as Addrs);
            }
            let within = found.iter().map(SocketAddr::ip).find(|address| world.is_within(*address));
            let outside: Vec<_> = found.into_iter().filter(|address| !world.is_within(address.ip())).collect();
            match within {
                Some(address) if outside.is_empty() => Err(LeadsWithin(address).into()),
                _ => Ok(Box::new(outside.into_iter()) as Addrs),
            }
        })
    }
}

/// The host of a proxy as the environment names it, with or without a scheme.
fn proxy_host(text: &str) -> Option<String> {
    let url = Url::parse(text).ok().filter(Url::has_host).or_else(|| Url::parse(&format!("http://{text}")).ok())?;
    Some(url.host_str()?.to_ascii_lowercase())
}

/// Every address of a name is within; this is one of them.
#[derive(Debug)]
struct LeadsWithin(IpAddr);

impl fmt::Display for LeadsWithin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it leads to {}, which is within", self.0)
    }
}

impl Error for LeadsWithin {}

/// The address within to which a request's name led, if that is why it failed.
pub(crate) fn led_within(error: &reqwest::Error) -> Option<IpAddr> {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(LeadsWithin(address)) = error.downcast_ref() {
            return Some(*address);
        }
        next = error.source();
    }
    None
}

/// Whether an address is not the world's: this machine's, a private network's, or none that anybody has (IANA's
/// registries of special-purpose addresses, RFC 6890).
pub(crate) fn is_within(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => is_within_v4(v4),
        IpAddr::V6(v6) => is_within_v6(v6),
    }
}

fn is_within_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    v4.is_private()
        || v4.is_link_local()
        || v4.is_loopback()
        || v4.is_documentation()
        || a == 0
        || (a == 100 && b & 0xc0 == 64)
        || (a, b, c) == (192, 0, 0)
        || (a == 198 && b & 0xfe == 18)
        || a >= 224
}

fn is_within_v6(v6: Ipv6Addr) -> bool {
    let parts = v6.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_within_v4(Ipv4Addr::new(a, b, c, d))
    };
    match parts {
        // `::`, `::1`, and addresses of version 4 in a form that is no longer used.
        [0, 0, 0, 0, 0, 0, ..] => true,
        // What is translated to version 4 is judged as that: NAT64 (RFC 6052), and 6to4 (RFC 3056).
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => embedded(high, low),
        // A network's own NAT64 (RFC 8215); nothing (RFC 6666); Teredo; documents.
        [0x64, 0xff9b, 1, ..] | [0x100, 0, 0, 0, ..] | [0x2001, 0, ..] | [0x2001, 0xdb8, ..] => true,
        // Unique local, link local, site local, multicast.
        [first, ..] => {
            first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfe80 || first & 0xffc0 == 0xfec0 || first >> 8 == 0xff
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_within_are_told_from_the_worlds() {
        for text in [
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "127.0.0.1",
            "100.64.0.1",
            "0.0.0.0",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::10.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "2002:a00:1::1",
            "2001:db8::1",
            "fd00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(is_within(text.parse().unwrap()), "{text}");
        }
        for text in [
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "198.20.0.1",
            "2606:4700::1111",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
        ] {
            assert!(!is_within(text.parse().unwrap()), "{text}");
        }
    }

    #[tokio::test]
    async fn a_name_gives_the_worlds_addresses_alone_or_says_where_it_led() {
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect()
        };
        let (mixed, all_within) = (addresses(&["10.0.0.1", "1.1.1.1", "::1"]), addresses(&["10.0.0.1", "fd00::1"]));
        let mut world = World::made(is_within, move |name| match name {
            "mixed.example" => mixed.clone(),
            "nobody.example" => Vec::new(),
            _ => all_within.clone(),
        });
        let ask = async |world: &World, name: &str| world.resolve(name.parse().unwrap()).await;
        let found: Vec<_> =
            ask(&world, "mixed.example").await.unwrap().map(|address| address.ip().to_string()).collect();
        assert_eq!(found, ["1.1.1.1"]);
        assert_eq!(ask(&world, "nobody.example").await.unwrap().count(), 0);
        let refused = ask(&world, "within.example").await.err().unwrap();
        assert!(refused.to_string().contains("10.0.0.1"), "{refused}");
        world.proxies = Arc::new([proxy_host("http://user:word@Proxy.example:3128").unwrap()].into());
        assert_eq!(ask(&world, "proxy.example").await.unwrap().count(), 2);
        assert!(ask(&world, "within.example").await.is_err());
    }

    #[test]
    fn a_proxy_is_read_as_people_write_it() {
        for text in ["http://p.example:3128", "p.example:3128", "p.example", "socks5h://u:p@P.example:1/"] {
            assert_eq!(proxy_host(text).as_deref(), Some("p.example"), "{text}");
        }
        assert_eq!(proxy_host(""), None);
    }
}
