//! What this door remembers of a sandbox that it made, beside what every door knows: in the sandbox's `door`.
//!
//! ```text
//! door: { "traffic": who reaches its ports (read where requests to them come in), "e2b": the rest }
//! ```

use rf_e2b::network::NetworkConfig;
use rf_types::SandboxAbout;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::target::TrafficRules;

/// What is only ever told back to clients.
#[derive(Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Notes {
    /// The network that was asked for, as far as it is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkConfig>,
}

impl Notes {
    /// The notes of a sandbox; none for one that another door made.
    #[must_use]
    pub fn of(about: &SandboxAbout) -> Self {
        about.door.get("e2b").and_then(|notes| Self::deserialize(notes).ok()).unwrap_or_default()
    }

    /// The whole `door` of a sandbox.
    #[must_use]
    pub fn door(&self, traffic: &TrafficRules) -> Value {
        json!({ "traffic": traffic, "e2b": self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_come_back_and_are_none_where_another_door_made_it() {
        let network = NetworkConfig { deny_out: Some(vec!["0.0.0.0/0".into()]), ..NetworkConfig::default() };
        let notes = Notes { network: Some(network) };
        let rules = TrafficRules { secured: true, public: true, mask_host: None };
        let about = SandboxAbout { door: notes.door(&rules), ..SandboxAbout::default() };
        let read = Notes::of(&about);
        assert_eq!(read.network.unwrap().deny_out.unwrap(), ["0.0.0.0/0"]);
        assert_eq!(TrafficRules::of(&about.door), rules);
        assert!(Notes::of(&SandboxAbout::default()).network.is_none());
    }
}
