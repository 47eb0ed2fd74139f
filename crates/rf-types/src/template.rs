//! How programs are started in a template.

use serde::{Deserialize, Serialize};

use crate::exec::ExecSpec;

/// How programs are started in a template, from its image's configuration: what an exec gets where its request says
/// nothing. What is in it was checked when the image was imported.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TemplateConfig {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// A name or id, maybe with `:group`. Empty is root for other programs, and a sandbox's default user for us: root is
    /// had by name only.
    pub user: String,
    /// Absolute; empty says nothing.
    pub cwd: String,
    /// What the image is started through. A command that a request gives is the whole command, without this.
    pub entrypoint: Vec<String>,
    /// The rest of what is started when a request gives no command.
    pub cmd: Vec<String>,
}

impl TemplateConfig {
    /// What is started when a request gives no command: the entrypoint with the command behind it. Empty where the image
    /// says nothing.
    #[must_use]
    pub fn command(&self) -> Vec<String> {
        [self.entrypoint.as_slice(), &self.cmd].concat()
    }

    /// Fills in what an exec's request left out.
    pub fn fill(&self, spec: &mut ExecSpec) {
        for (name, value) in self.env.iter().filter_map(|variable| variable.split_once('=')) {
            if !spec.env.contains_key(name) {
                spec.env.insert(name.to_owned(), value.to_owned());
            }
        }
        // The groups are those of the user in the image's own files.
        let user = self.user.split(':').next().unwrap_or_default();
        if spec.user.is_none() && !user.is_empty() {
            spec.user = Some(user.to_owned());
        }
        if spec.cwd.is_none() && !self.cwd.is_empty() {
            spec.cwd = Some(self.cwd.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{Program, Rlimits};

    fn spec() -> ExecSpec {
        ExecSpec {
            program: Program::Shell("true".to_owned()),
            env: BTreeMap::new(),
            no_language: false,
            cwd: None,
            user: None,
            pty: None,
            stdin: false,
            timeout_ms: None,
            rlimits: Rlimits::default(),
        }
    }

    #[test]
    fn what_the_request_says_is_above_what_the_template_says() {
        let config = TemplateConfig {
            env: vec!["A=1".to_owned(), "B=x=y".to_owned()],
            user: "app:staff".to_owned(),
            cwd: "/app".to_owned(),
            ..TemplateConfig::default()
        };
        let mut nothing = spec();
        config.fill(&mut nothing);
        assert_eq!((nothing.user.as_deref(), nothing.cwd.as_deref()), (Some("app"), Some("/app")));
        assert_eq!((nothing.env["A"].as_str(), nothing.env["B"].as_str()), ("1", "x=y"));

        let mut all = spec();
        all.env.insert("A".to_owned(), String::new());
        (all.user, all.cwd) = (Some("user".to_owned()), Some("/tmp".to_owned()));
        config.fill(&mut all);
        assert_eq!((all.user.as_deref(), all.cwd.as_deref(), all.env["A"].as_str()), (Some("user"), Some("/tmp"), ""));
    }

    #[test]
    fn a_template_that_says_nothing_changes_nothing() {
        let mut asked = spec();
        TemplateConfig { user: ":staff".to_owned(), ..TemplateConfig::default() }.fill(&mut asked);
        assert_eq!(asked, spec());
    }
}
