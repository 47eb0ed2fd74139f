//! The registries that the configuration names: who the server is to each, and how it speaks to it.
//!
//! Their files are read once, with the configuration and so before the server gives up its rights: they can belong to
//! root and be closed to everybody else. A password that changed takes a restart.

use std::{
    collections::HashMap,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use rf_images::{Credentials, ImageError, Reference, Registry, RegistryOptions, Secret};
use rf_types::{Code, Fault};
use serde::{Deserialize, Serialize};

/// Most registries in one configuration. Chosen.
const REGISTRIES_MAX: usize = 256;
/// Longest password, token or file of certificates, bytes. Chosen.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// One registry that templates are imported from.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    /// `host` or `host:port`, as images name it; `docker.io` for Docker's own.
    pub host: String,
    /// The user, with `password_file`.
    #[serde(default)]
    pub user: Option<String>,
    /// The file with the user's password or access token.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// The file with a token that the registry takes as it is, instead of a user.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// Speak to it without TLS. Registries on this machine are spoken to so anyway.
    #[serde(default)]
    pub plain_http: bool,
    /// It is within: its name, its token server and what it redirects to may lead to this machine and into private
    /// networks, which any other registry's may not. Registries on this machine may anyway.
    #[serde(default)]
    pub private: bool,
    /// PEM certificates of authorities that are trusted besides the system's, for every registry.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// What the files held.
    #[serde(skip)]
    read: FilesRead,
}

#[derive(Clone, Debug, Default)]
struct FilesRead {
    secret: Secret,
    ca_pem: Option<Vec<u8>>,
}

/// Checks every registry, and reads the files that they name.
///
/// # Errors
/// The first thing that is wrong, by the registry's name; never what a file holds.
pub(crate) fn validate(registries: &mut [RegistryConfig]) -> Result<(), String> {
    if registries.len() > REGISTRIES_MAX {
        return Err(format!("names more than {REGISTRIES_MAX} registries"));
    }
    for at in 0..registries.len() {
        let (before, rest) = registries.split_at_mut(at);
        let Some(registry) = rest.first_mut() else { continue };
        // As an image's name is read, so that what is written here is what is compared.
        let reference: Result<Reference, _> = format!("{}/x", registry.host).parse();
        match reference {
            Ok(reference) if reference.registry() == registry.host => {}
            Ok(_) | Err(_) => {
                return Err(format!(
                    "names `{}`, which is no registry as images name it: give `host` or `host:port` in lower case",
                    registry.host
                ));
            }
        }
        if before.iter().any(|other| other.host == registry.host) {
            return Err(format!("names `{}` twice", registry.host));
        }
        registry.read_files()?;
    }
    Ok(())
}

impl RegistryConfig {
    fn read_files(&mut self) -> Result<(), String> {
        let wrong = |why: &str| Err(format!("`{}`: {why}", self.host));
        let secret = match (&self.user, &self.password_file, &self.token_file) {
            (None, None, None) => None,
            (Some(user), Some(file), None) => {
                if user.is_empty() || user.contains([':', '\n', '\0']) {
                    return wrong("`user` is empty or holds `:`");
                }
                Some(file)
            }
            (None, None, Some(file)) => Some(file),
            (Some(_), None, None) => return wrong("`user` needs a `password_file`"),
            (None, Some(_), _) => return wrong("`password_file` needs a `user`"),
            (Some(_), _, Some(_)) => return wrong("give either `user` and `password_file` or `token_file`"),
        };
        if let Some(path) = secret {
            let bytes = self.read_file(path)?;
            let text =
                String::from_utf8(bytes).map_err(|_| format!("`{}`: `{}` is no text", self.host, path.display()))?;
            // Editors end a file with a line feed.
            let text = text.trim_end_matches(['\n', '\r']);
            if text.is_empty() || text.contains(['\n', '\r', '\0']) {
                return Err(format!("`{}`: `{}` must hold one line with the secret", self.host, path.display()));
            }
            self.read.secret = Secret::new(text.to_owned());
        }
        if let Some(path) = &self.ca_file {
            self.read.ca_pem = Some(self.read_file(path)?);
        }
        Ok(())
    }

    fn read_file(&self, path: &Path) -> Result<Vec<u8>, String> {
        let failed = |why: String| format!("`{}`: cannot read `{}`: {why}", self.host, path.display());
        if !path.is_absolute() {
            return Err(failed("give its absolute path".to_owned()));
        }
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
        let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
        if read as u64 > FILE_BYTES_MAX {
            return Err(failed(format!("it is longer than {FILE_BYTES_MAX} bytes")));
        }
        Ok(bytes)
    }

    fn credentials(&self) -> Credentials {
        match (&self.user, &self.token_file) {
            (Some(user), _) => Credentials::Basic { user: user.clone(), password: self.read.secret.clone() },
            (None, Some(_)) => Credentials::Bearer(self.read.secret.clone()),
            (None, None) => Credentials::Anonymous,
        }
    }

    /// What there is for this registry, for people: never the secret.
    #[must_use]
    pub fn describe(&self) -> String {
        let who = match (&self.user, &self.password_file, &self.token_file) {
            (Some(user), Some(file), _) => format!("as `{user}`, password read from {}", file.display()),
            (_, _, Some(file)) => format!("by a token read from {}", file.display()),
            (_, _, None) => "without credentials".to_owned(),
        };
        let how = if self.plain_http { ", without TLS" } else { "" };
        let place = if self.private { ", within" } else { "" };
        format!("{who}{how}{place}")
    }
}

/// Longest wait for one registry that is checked. Chosen: four names' resolutions and connections on a bad day.
const CHECK_TIME: Duration = Duration::from_secs(20);
/// Registries that are checked at once. Chosen.
const CHECKS_AT_ONCE: usize = 8;

/// What was found of one registry.
#[derive(Clone, Debug, Serialize)]
pub struct RegistryCheck {
    /// As it is configured.
    pub host: String,
    /// Whether images can be had there, as far as that is known without one.
    pub available: bool,
    /// What was seen; never a secret.
    pub evidence: String,
    /// What would help; empty where nothing is missing.
    pub cure: String,
}

/// Asks every registry whether it is there and takes what the configuration has for it.
pub async fn check(registries: &[RegistryConfig]) -> Vec<RegistryCheck> {
    let all = &Registries::new(registries);
    let client = &Registry::new(all.options());
    let check = |config: &RegistryConfig| {
        let (host, who) = (config.host.clone(), config.describe());
        async move {
            let (evidence, cure) = match all.check(client, &host).await {
                Ok(seen) => {
                    return RegistryCheck {
                        host,
                        available: true,
                        evidence: format!("{seen}, {who}"),
                        cure: String::new(),
                    };
                }
                Err(Fault { message, hint, .. }) => (format!("{message}, {who}"), hint),
            };
            RegistryCheck { host, available: false, evidence, cure }
        }
    };
    stream::iter(registries.iter().map(check)).buffered(CHECKS_AT_ONCE).collect().await
}

/// Every registry that is configured, by name.
pub(crate) struct Registries {
    credentials: HashMap<String, Credentials>,
    options: RegistryOptions,
}

impl Registries {
    pub(crate) fn new(registries: &[RegistryConfig]) -> Self {
        let credentials = registries.iter().map(|registry| (registry.host.clone(), registry.credentials())).collect();
        let plain = registries.iter().filter(|registry| registry.plain_http);
        let private = registries.iter().filter(|registry| registry.private);
        let options = RegistryOptions {
            plain_http: plain.map(|registry| registry.host.clone()).collect(),
            private: private.map(|registry| registry.host.clone()).collect(),
            extra_roots_pem: registries.iter().filter_map(|registry| registry.read.ca_pem.clone()).collect(),
        };
        Self { credentials, options }
    }

    /// How registries are spoken to.
    pub(crate) fn options(&self) -> RegistryOptions {
        self.options.clone()
    }

    /// Who the server is to a registry.
    pub(crate) fn credentials(&self, registry: &str) -> &Credentials {
        self.credentials.get(registry).unwrap_or(&Credentials::Anonymous)
    }

    /// What is seen of one registry.
    async fn check(&self, client: &Result<Registry, ImageError>, host: &str) -> Result<&'static str, Fault> {
        let client = client.as_ref().map_err(ImageError::fault)?;
        // INVARIANT: `validate` has read it as a part of an image's name.
        let reference: Reference =
            format!("{host}/x").parse().map_err(|_| Fault::invalid("it is no registry's name"))?;
        let credentials = self.credentials(host);
        match tokio::time::timeout(CHECK_TIME, client.check(&reference, credentials)).await {
            Ok(Ok(())) => Ok("it answers as a registry and lets us in"),
            // Most serve public images to who has a token for one, and nothing without.
            Ok(Err(ImageError::Denied { .. })) if matches!(credentials, Credentials::Anonymous) => {
                Ok("it answers as a registry and has public images at most")
            }
            Ok(Err(error @ ImageError::Denied { .. })) => {
                let Fault { code, hint, .. } = self.explain(&reference, &error);
                Err(Fault { code, message: "it does not take its credentials".to_owned(), hint })
            }
            Ok(Err(error)) => Err(self.explain(&reference, &error)),
            Err(_) => Err(Fault::new(
                Code::TimedOut,
                format!("it did not answer within {} s", CHECK_TIME.as_secs()),
                "check the registry's name and the server's network",
            )),
        }
    }

    /// Why an image was not had, with what the configuration lacks.
    pub(crate) fn explain(&self, reference: &Reference, error: &ImageError) -> Fault {
        let host = reference.registry();
        let named = self.options.plain_http.iter().any(|plain| plain == host) || reference.is_loopback();
        let fault = error.fault();
        let hint = match (error, self.credentials(host)) {
            (ImageError::Denied { .. } | ImageError::Absent(_), Credentials::Anonymous) => format!(
                "check the image's name; if it is not public, give the server credentials for `{host}`: `[[registries]]` \
                 with `host`, `user` and `password_file` in its configuration"
            ),
            (ImageError::Denied { .. }, Credentials::Basic { user, .. }) => format!(
                "`{host}` does not take what the configuration has for `{user}`: check the image's name and the \
                 password's file, then restart the server"
            ),
            (ImageError::Denied { .. }, Credentials::Bearer(_)) => format!(
                "`{host}` does not take the token that the configuration has for it: renew its file, then restart the \
                 server"
            ),
            (ImageError::Unreachable { .. }, _) if !named => format!(
                "{}; if it speaks plain HTTP and you accept that, say `plain_http = true` for `{host}` in \
                 `[[registries]]` of the server's configuration",
                fault.hint
            ),
            (ImageError::Within { .. }, _) => format!(
                "if `{host}` is within, or leads there and you accept that, say `private = true` for it in \
                 `[[registries]]` of the server's configuration"
            ),
            (ImageError::Insecure { .. }, _) if fault.code == Code::TemplateUnavailable => format!(
                "to allow it without TLS, say `plain_http = true` for `{host}` in `[[registries]]` of the server's \
                 configuration"
            ),
            (_, _) => return fault,
        };
        Fault { hint, ..fault }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<RegistryConfig>, String> {
        #[derive(Deserialize)]
        struct All {
            registries: Vec<RegistryConfig>,
        }
        let mut registries = toml::from_str::<All>(text).unwrap().registries;
        validate(&mut registries)?;
        Ok(registries)
    }

    #[test]
    fn a_secret_comes_from_its_file_and_shows_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "hunter2\n").unwrap();
        let text =
            format!("[[registries]]\nhost = 'r.example:5000'\nuser = 'ann'\npassword_file = '{}'", file.display());
        let registries = read(&text).unwrap();
        let all = Registries::new(&registries);
        let Credentials::Basic { user, .. } = all.credentials("r.example:5000") else { panic!() };
        assert_eq!(user, "ann");
        assert!(matches!(all.credentials("r.example"), Credentials::Anonymous));
        let shown = format!("{registries:?} {:?} {}", all.credentials("r.example:5000"), registries[0].describe());
        assert!(!shown.contains("hunter2") && shown.contains("ann"), "{shown}");
        assert!(!toml::to_string(&registries[0]).unwrap().contains("hunter2"));

        // Control: the secret is there, and what is wrong with a file is said without it.
        std::fs::write(&file, "hunter2\nagain").unwrap();
        let refused = read(&text).unwrap_err();
        assert!(refused.contains("r.example:5000") && refused.contains("password"), "{refused}");
        assert!(!refused.contains("hunter2"), "{refused}");
    }

    #[test]
    fn what_cannot_be_is_refused_by_the_registrys_name() {
        for (entry, why) in [
            ("host = 'R.example'", "lower case"),
            ("host = 'https://r.example'", "no registry"),
            ("host = 'name'", "no registry"),
            ("host = 'r.example/x'", "no registry"),
            ("host = 'r.example'\nuser = 'ann'", "needs a `password_file`"),
            ("host = 'r.example'\npassword_file = '/p'", "needs a `user`"),
            ("host = 'r.example'\nuser = 'ann'\npassword_file = '/p'\ntoken_file = '/t'", "either"),
            ("host = 'r.example'\ntoken_file = 'relative'", "absolute"),
            ("host = 'r.example'\ntoken_file = '/nonexistent/token'", "cannot read `/nonexistent/token`"),
            ("host = 'r.example'\n[[registries]]\nhost = 'r.example'", "twice"),
        ] {
            let refused = read(&format!("[[registries]]\n{entry}")).unwrap_err();
            assert!(refused.contains(why), "{entry}: {refused}");
        }
        for host in ["docker.io", "ghcr.io", "localhost:5000", "[::1]:5000", "10.0.0.1:5000"] {
            assert!(read(&format!("[[registries]]\nhost = '{host}'\nplain_http = true")).is_ok(), "{host}");
        }
    }

    #[test]
    fn a_refusal_says_what_the_configuration_lacks() {
        let denied = ImageError::Denied { host: "r.example".to_owned() };
        let reference: Reference = "r.example/a/b:1".parse().unwrap();
        let none = Registries::new(&[]);
        assert!(none.explain(&reference, &denied).hint.contains("`[[registries]]`"));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "t0ken").unwrap();
        let text = format!("[[registries]]\nhost = 'r.example'\ntoken_file = '{}'", file.display());
        let fault = Registries::new(&read(&text).unwrap()).explain(&reference, &denied);
        assert!(fault.hint.contains("token") && !fault.hint.contains("t0ken"), "{}", fault.hint);
        assert_eq!(fault.code, Code::TemplateUnavailable);
        let within = ImageError::Within { host: "r.example".to_owned(), address: "10.0.0.1".to_owned() };
        let fault = none.explain(&reference, &within);
        assert!(fault.hint.contains("`private = true` for it") && fault.message.contains("10.0.0.1"), "{fault:?}");
        let private = read("[[registries]]\nhost = 'r.example'\nprivate = true").unwrap();
        assert_eq!(Registries::new(&private).options().private, ["r.example"]);
    }
}
