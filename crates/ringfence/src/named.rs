//! Sandboxes as people name them: by id, or by the name that one was given when it was made.

use std::{fmt, str::FromStr};

use anyhow::Result;
use rf_client::{Client, types::Sandbox};
use rf_types::{Code, Fault, SandboxId};

/// What the sandbox is called that calls go to which name no place.
const DEFAULT_NAME: &str = "default";

/// A sandbox that somebody named.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Named {
    /// By its id.
    Id(SandboxId),
    /// By its name; no two living ones of a user have the same.
    Name(String),
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(id) => Ok(Self::Id(id)),
            // Whoever types an id and slips is not to be told of names.
            Err(error) if text.starts_with("sbx_") => Err(error.to_string()),
            Err(_) if text.is_empty() => Err("give a sandbox's id or name".to_owned()),
            Err(_) => Ok(Self::Name(text.to_owned())),
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Named {
    /// Its id; the server is asked where a name was given.
    pub(crate) async fn id(&self, client: &Client) -> Result<SandboxId> {
        match self {
            Self::Id(id) => Ok(*id),
            Self::Name(name) => find(name, &client.sandboxes().await?),
        }
    }

    /// The ids of several, in their order; the server is asked once at most.
    pub(crate) async fn ids(all: &[Self], client: &Client) -> Result<Vec<SandboxId>> {
        let by_name = all.iter().any(|named| matches!(named, Self::Name(_)));
        let sandboxes = if by_name { client.sandboxes().await? } else { Vec::new() };
        let id = |named: &Self| match named {
            Self::Id(id) => Ok(*id),
            Self::Name(name) => find(name, &sandboxes),
        };
        all.iter().map(id).collect()
    }
}

/// Whether a sandbox is called so.
pub(crate) fn is_called(sandbox: &Sandbox, name: &str) -> bool {
    sandbox.name.as_deref() == Some(name) || (sandbox.default && name == DEFAULT_NAME)
}

/// What a sandbox is called, if anything.
pub(crate) fn name_of(sandbox: &Sandbox) -> Option<&str> {
    sandbox.name.as_deref().or(sandbox.default.then_some(DEFAULT_NAME))
}

/// The one of that name.
fn find(name: &str, sandboxes: &[Sandbox]) -> Result<SandboxId> {
    let found: Vec<_> = sandboxes.iter().filter(|sandbox| is_called(sandbox, name)).map(|found| found.id).collect();
    match found[..] {
        [id] => Ok(id),
        [] => Err(Fault::new(
            Code::NotFound,
            format!("no sandbox is called `{name}`"),
            "`ringfence ps` lists them; an id begins with `sbx_`",
        )
        .into()),
        // The server lets no two living ones have a name, but its list comes in pages while they come and go.
        [..] => Err(ambiguous(name, &found)),
    }
}

/// The refusal of a name that is more than one thing's.
pub(crate) fn ambiguous(name: &str, ids: &[impl fmt::Display]) -> anyhow::Error {
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    Fault::new(Code::Conflict, format!("`{name}` is the name of {}", ids.join(" and of ")), "give the id").into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sandbox(bits: u128, name: Option<&str>, default: bool) -> Sandbox {
        let spec = rf_types::SandboxSpec::standard(60_000);
        let id = SandboxId::from_bits(bits);
        serde_json::from_value(json!({ "id": id, "spec": spec, "name": name, "default": default })).unwrap()
    }

    #[test]
    fn an_id_is_an_id_and_all_else_a_name() {
        let id = SandboxId::from_bits(7);
        assert_eq!(id.to_string().parse(), Ok(Named::Id(id)));
        assert_eq!("web".parse(), Ok(Named::Name("web".to_owned())));
        assert_eq!("mch_".parse(), Ok(Named::Name("mch_".to_owned())));
        for wrong in ["", "sbx_", "sbx_web", "sbx_0", "sbx_ABCDEFABCDEFABCDEFABCDEFABCDEFAB"] {
            assert!(wrong.parse::<Named>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_finds_one_and_two_are_refused_by_name() {
        let all = [sandbox(1, Some("web"), false), sandbox(2, None, true), sandbox(3, Some("db"), false)];
        assert_eq!(find("web", &all).unwrap(), all[0].id);
        assert_eq!(find("default", &all).unwrap(), all[1].id);
        let missing = find("we", &all).unwrap_err().downcast::<Fault>().unwrap();
        assert_eq!((missing.code, missing.message.as_str()), (Code::NotFound, "no sandbox is called `we`"));
        let twice = [sandbox(1, Some("web"), false), sandbox(2, Some("web"), false)];
        let refused = find("web", &twice).unwrap_err().downcast::<Fault>().unwrap();
        assert_eq!(refused.code, Code::Conflict);
        assert!(twice.iter().all(|sandbox| refused.message.contains(&sandbox.id.to_string())), "{}", refused.message);
    }
}
