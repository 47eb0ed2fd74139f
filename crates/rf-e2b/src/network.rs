//! A sandbox's network as clients ask for it, and which of it can be held here.
//!
//! A sandbox has no way out, so whatever is denied is denied. What is allowed, sent another way or changed on the way
//! cannot be had, and is refused with its name: an answer that said yes would be believed.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most entries of a list, and the longest of them, bytes. Chosen.
const ENTRIES_MAX: usize = 256;
const ENTRY_BYTES_MAX: usize = 256;
/// What a masked host has where the port is to stand.
pub const PORT_PLACEHOLDER: &str = "${PORT}";

/// The network that is asked for when a sandbox is made. Has no `Debug`: a proxy and rules may hold secrets.
#[derive(Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Destinations that may be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_out: Option<Vec<String>>,
    /// Destinations that may not be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny_out: Option<Vec<String>>,
    /// Name servers.
    #[serde(skip_serializing)]
    pub dns_servers: Option<Vec<String>>,
    /// A SOCKS5 proxy. It may hold a password, so it is never written back.
    #[serde(skip_serializing)]
    pub egress_proxy: Option<Value>,
    /// What is changed of requests on their way out, by host. It may hold secrets, so it is never written back.
    #[serde(skip_serializing)]
    pub rules: Option<BTreeMap<String, Value>>,
    /// Whether everybody reaches the sandbox's ports; `false`: with a token only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_public_traffic: Option<bool>,
    /// The `Host` that programs in the sandbox see; `${PORT}` stands for the port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_request_host: Option<String>,
    /// Ports on which programs in the sandbox speak TLS themselves.
    #[serde(skip_serializing)]
    pub https_ports: Option<Vec<u16>>,
}

/// The network that replaces the way out of a sandbox which is there. Has no `Debug`, as [`NetworkConfig`].
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkUpdate {
    /// As in [`NetworkConfig`].
    pub allow_out: Option<Vec<String>>,
    /// As in [`NetworkConfig`].
    pub deny_out: Option<Vec<String>>,
    /// As in [`NetworkConfig`].
    pub dns_servers: Option<Vec<String>>,
    /// As in [`NetworkConfig`].
    pub egress_proxy: Option<Value>,
    /// As in [`NetworkConfig`].
    pub rules: Option<BTreeMap<String, Value>>,
    /// Whether there is a way out at all.
    #[serde(rename = "allow_internet_access")]
    pub allow_internet_access: Option<bool>,
}

/// Why a network is refused. Names what was asked for.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// A policy that nothing here holds.
    #[error("`{policy}` cannot be held: {why}")]
    NotHeld {
        /// Its name on the wire.
        policy: &'static str,
        /// Why.
        why: &'static str,
    },
    /// An entry of a list that is none.
    #[error("`{field}`: `{entry}` is no IP address and no CIDR block")]
    Entry {
        /// The list.
        field: &'static str,
        /// The entry, cut short.
        entry: String,
    },
    /// A list or text past its bound.
    #[error("`{field}` is too long")]
    TooLong {
        /// The field.
        field: &'static str,
    },
    /// A masked host that is none.
    #[error("`maskRequestHost` is no host name with an optional port")]
    Mask,
}

const NO_WAY_OUT: &str = "a sandbox has no way out of this server yet";

impl NetworkConfig {
    /// Checks that everything that is asked for is held.
    ///
    /// # Errors
    /// The first thing that is not, by name.
    pub fn check(&self) -> Result<(), NetworkError> {
        egress(&self.allow_out, &self.deny_out, &self.dns_servers, &self.egress_proxy, &self.rules)?;
        if self.https_ports.as_ref().is_some_and(|ports| !ports.is_empty()) {
            let why = "ports are spoken to without TLS inside a sandbox";
            return Err(NetworkError::NotHeld { policy: "network.httpsPorts", why });
        }
        match &self.mask_request_host {
            Some(mask) if !is_host(&mask.replace(PORT_PLACEHOLDER, "1")) => Err(NetworkError::Mask),
            Some(_) | None => Ok(()),
        }
    }
}

impl NetworkUpdate {
    /// Checks that everything that is asked for is held.
    ///
    /// # Errors
    /// The first thing that is not, by name.
    pub fn check(&self) -> Result<(), NetworkError> {
        if self.allow_internet_access == Some(true) {
            return Err(NetworkError::NotHeld { policy: "allow_internet_access", why: NO_WAY_OUT });
        }
        egress(&self.allow_out, &self.deny_out, &self.dns_servers, &self.egress_proxy, &self.rules)
    }
}

fn egress(
    allow: &Option<Vec<String>>,
    deny: &Option<Vec<String>>,
    dns: &Option<Vec<String>>,
    proxy: &Option<Value>,
    rules: &Option<BTreeMap<String, Value>>,
) -> Result<(), NetworkError> {
    let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let asked = [
        ("network.allowOut", some(allow)),
        ("network.dnsServers", some(dns)),
        ("network.egressProxy", proxy.as_ref().is_some_and(|proxy| !proxy.is_null())),
        ("network.rules", rules.as_ref().is_some_and(|rules| !rules.is_empty())),
    ];
    if let Some((policy, _)) = asked.into_iter().find(|(_, asked)| *asked) {
        return Err(NetworkError::NotHeld { policy, why: NO_WAY_OUT });
    }
    let field = "network.denyOut";
    let deny = deny.as_deref().unwrap_or_default();
    if deny.len() > ENTRIES_MAX {
        return Err(NetworkError::TooLong { field });
    }
    match deny.iter().find(|entry| !is_block(entry)) {
        Some(entry) => Err(NetworkError::Entry { field, entry: entry.chars().take(64).collect() }),
        None => Ok(()),
    }
}

/// Whether a text is an IP address or a CIDR block.
fn is_block(text: &str) -> bool {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    bits.is_none_or(|bits| bits.bytes().all(|b| b.is_ascii_digit()) && bits.parse::<u8>().is_ok_and(|n| n <= most))
}

/// Whether a text may stand in a `Host` header: nothing that a header's reader would take for more than a host and a port.
fn is_host(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    !text.is_empty() && text.len() <= ENTRY_BYTES_MAX && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> NetworkConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn denials_are_held_and_what_is_let_out_is_refused_by_name() {
        for held in [
            "{}",
            r#"{"denyOut":["0.0.0.0/0"]}"#,
            r#"{"denyOut":["8.8.8.8","::/0"],"allowOut":[],"rules":{},"egressProxy":null,"dnsServers":[]}"#,
            r#"{"allowPublicTraffic":false,"maskRequestHost":"a.example:${PORT}","httpsPorts":[]}"#,
        ] {
            assert_eq!(config(held).check(), Ok(()), "{held}");
        }
        for (refused, name) in [
            (r#"{"allowOut":["1.1.1.1"]}"#, "network.allowOut"),
            (r#"{"denyOut":["0.0.0.0/0"],"allowOut":["1.1.1.1"]}"#, "network.allowOut"),
            (r#"{"dnsServers":["1.1.1.1"]}"#, "network.dnsServers"),
            (r#"{"egressProxy":{"address":"a:1"}}"#, "network.egressProxy"),
            (r#"{"rules":{"a":[]}}"#, "network.rules"),
            (r#"{"httpsPorts":[443]}"#, "network.httpsPorts"),
            (r#"{"denyOut":["example.com"]}"#, "network.denyOut"),
            (r#"{"denyOut":["1.1.1.1/33"]}"#, "network.denyOut"),
            (r#"{"denyOut":["1.1.1.1/+3"]}"#, "network.denyOut"),
            (r#"{"maskRequestHost":"a b"}"#, "maskRequestHost"),
            (r#"{"maskRequestHost":"a\r\nb"}"#, "maskRequestHost"),
        ] {
            let message = config(refused).check().unwrap_err().to_string();
            assert!(message.contains(name), "{refused}: {message}");
        }
    }

    #[test]
    fn a_policy_nobody_knows_is_no_network() {
        assert!(serde_json::from_str::<NetworkConfig>(r#"{"denyIn":["0.0.0.0/0"]}"#).is_err());
        assert!(serde_json::from_str::<NetworkUpdate>(r#"{"denyIn":["0.0.0.0/0"]}"#).is_err());
    }

    #[test]
    fn an_update_lets_nothing_out() {
        let update = |json| serde_json::from_str::<NetworkUpdate>(json).unwrap().check();
        assert_eq!(update("{}"), Ok(()));
        assert_eq!(update(r#"{"allow_internet_access":false,"denyOut":["8.8.8.8"]}"#), Ok(()));
        assert!(update(r#"{"allow_internet_access":true}"#).unwrap_err().to_string().contains("allow_internet_access"));
        assert!(update(r#"{"allowOut":["1.1.1.1"]}"#).is_err());
    }

    #[test]
    fn what_may_hold_secrets_cannot_be_printed() {
        // Of the two the one that a type has itself counts, and it has that only where it has `Debug`.
        struct Of<T>(std::marker::PhantomData<T>);
        trait Prints {
            const PRINTS: bool = false;
        }
        impl<T> Prints for Of<T> {}
        impl<T: std::fmt::Debug> Of<T> {
            const PRINTS: bool = true;
        }
        let printed = [
            <Of<String>>::PRINTS,
            <Of<NetworkConfig>>::PRINTS,
            <Of<NetworkUpdate>>::PRINTS,
            <Of<crate::models::NewSandbox>>::PRINTS,
            <Of<crate::models::Iam>>::PRINTS,
        ];
        assert_eq!(printed, [true, false, false, false, false], "the first is the control");
    }

    #[test]
    fn secrets_are_not_written_back() {
        let config =
            config(r#"{"denyOut":["8.8.8.8"],"egressProxy":{"password":"hush"},"rules":{"a":[{"x":"hush"}]}}"#);
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(text, r#"{"denyOut":["8.8.8.8"]}"#);
    }
}
