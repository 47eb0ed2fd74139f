//! Stands keyed hashes in the place of secrets, so that the ledger can show that two were the same and never what they
//! were.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::{LedgerKey, chain::hex};

/// Most arguments that are recorded; the number of all is recorded with them.
const ARGV_MAX: usize = 64;
/// Most bytes of one argument that are recorded as they are.
const ARG_BYTES_MAX: usize = 1024;
/// Most variables that are recorded.
const ENV_MAX: usize = 64;

/// Names of secrets: what stands after one and `=` or `:` is a secret, up to the next space, quote or separator. Lower
/// case; compared without case.
const NAMES: [&str; 21] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "secret_key",
    "secret-key",
    "secretkey",
    "token",
    "api_key",
    "api-key",
    "apikey",
    "access_key",
    "access-key",
    "accesskey",
    "private_key",
    "private-key",
    "privatekey",
    "auth",
    "authorization",
    "credential",
];

/// Words before a secret, after a name or alone: schemes of `Authorization` (RFC 9110, section 11.6.2).
const SCHEMES: [&str; 2] = ["bearer ", "basic "];
/// Such words that are too common to count alone.
const NAMED_SCHEMES: [&str; 2] = ["token ", "apikey "];

/// Options whose next argument is a secret.
const OPTIONS: [&str; 13] = [
    "--password",
    "--passphrase",
    "--api-token",
    "--passwd",
    "--pass",
    "--token",
    "--secret",
    "--api-key",
    "--apikey",
    "--auth-token",
    "--access-token",
    "--client-secret",
    "--secret-key",
];

/// How well-known tokens begin.
const PREFIXES: [&str; 25] = [
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "sk-",
    "sk_live_",
    "sk_test_",
    "npm_",
    "hf_",
    "pypi-",
    "rk_live_",
    "xoxb-",
    "xoxp-",
    "xapp-",
    "AKIA",
    "ASIA",
    "AIza",
    "eyJ",
    "rf_",
    "rfs_",
    "rfe_",
    "e2b_",
];
/// A word with such a beginning is a token from this length on; chosen, so that `sk-learn` stays readable.
const TOKEN_BYTES_MIN: usize = 20;

/// Makes `hmac:` and 16 hex digits out of a secret, with the installation's key. Prints nothing.
#[derive(Clone)]
pub struct Redactor {
    key: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redactor")
    }
}

impl Redactor {
    /// A redactor of this installation.
    #[must_use]
    pub fn new(key: &LedgerKey) -> Self {
        Self { key: key.redaction() }
    }

    /// What stands for `secret`: the same text for the same bytes, and of no use to whom has not the key.
    #[must_use]
    pub fn hash(&self, secret: &[u8]) -> String {
        format!("hmac:{}", hex(&blake3::keyed_hash(&self.key, secret).as_bytes()[..8]))
    }

    /// An environment: names as they are, each value by its hash; at most 64, and then `…` with the number of the rest.
    #[must_use]
    pub fn env(&self, env: &BTreeMap<String, String>) -> Value {
        let mut map: Map<String, Value> = env
            .iter()
            .take(ENV_MAX)
            .map(|(name, value)| (cut(name).into_owned(), Value::String(self.hash(value.as_bytes()))))
            .collect();
        if env.len() > ENV_MAX {
            map.insert("…".to_owned(), (env.len() - ENV_MAX).into());
        }
        Value::Object(map)
    }

    /// Arguments as given, but for what is a known secret or looks like one; at most 64 of 1,024 bytes, and then how
    /// many more there were.
    #[must_use]
    pub fn argv(&self, argv: &[String], secrets: &[&str]) -> Value {
        let mut shown = Vec::with_capacity(argv.len().min(ARGV_MAX + 1));
        let mut secret_next = false;
        for arg in argv.iter().take(ARGV_MAX) {
            let text = if secret_next { self.hash(arg.as_bytes()) } else { self.text(arg, secrets) };
            shown.push(Value::String(text));
            secret_next = OPTIONS.contains(&arg.to_ascii_lowercase().as_str());
        }
        if argv.len() > ARGV_MAX {
            shown.push(Value::String(format!("… and {} more", argv.len() - ARGV_MAX)));
        }
        Value::Array(shown)
    }

    /// One text, such as a shell line: known secrets and what looks like one are hashed, and the rest beyond 1,024 bytes
    /// is left out with its length and hash.
    #[must_use]
    pub fn text(&self, text: &str, secrets: &[&str]) -> String {
        let mut out = Cow::Borrowed(text);
        // The longest first, so that one that holds another is not left with a readable rest.
        let mut known: Vec<&str> = secrets.iter().copied().filter(|secret| secret.len() >= 4).collect();
        known.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
        for secret in known {
            if out.contains(secret) {
                out = Cow::Owned(out.replace(secret, &self.hash(secret.as_bytes())));
            }
        }
        let marked = self.after_marks(&self.private_keys(&out));
        let worded = self.words(&marked);
        if worded.len() <= ARG_BYTES_MAX {
            return worded;
        }
        let shown = &worded[..worded.floor_char_boundary(ARG_BYTES_MAX)];
        format!("{shown}… ({} bytes, {})", text.len(), self.hash(text.as_bytes()))
    }

    fn after_marks(&self, text: &str) -> String {
        // ASCII only, so that both texts have the same offsets.
        let lower = text.to_ascii_lowercase();
        let mut out = String::with_capacity(text.len());
        let mut at = 0;
        while at < text.len() {
            let Some(mark_len) = mark_at(&lower[at..]) else {
                // `at` stands on a character and so does the next one.
                let step = text[at..].chars().next().map_or(1, char::len_utf8);
                out.push_str(&text[at..at + step]);
                at += step;
                continue;
            };
            let value_at = at + mark_len;
            out.push_str(&text[at..value_at]);
            let rest = &text[value_at..];
            let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''));
            let value = match quote {
                Some(quote) => rest[1..].split(quote).next().map_or(rest, |inner| &rest[..inner.len() + 1]),
                None => rest.split([' ', '\t', '\n', '"', '\'', '&', ';', '|']).next().unwrap_or(rest),
            };
            if !value.is_empty() {
                // Within quotes of a shell, those of JSON stand behind backslashes.
                out.push_str(&self.hash(value.trim_start_matches(['"', '\'']).trim_end_matches('\\').as_bytes()));
            }
            at = value_at + value.len();
        }
        out
    }

    /// Private keys as files hold them (RFC 7468), whole or cut off.
    fn private_keys<'a>(&self, text: &'a str) -> Cow<'a, str> {
        const BEGIN: &str = "PRIVATE KEY-----";
        const END: &str = "-----END";
        const DASHES: &str = "-----";
        if !text.contains(BEGIN) {
            return text.into();
        }
        let (mut out, mut rest) = (String::with_capacity(text.len()), text);
        while let Some((before, after)) = rest.split_once(BEGIN) {
            let secret = after.split(END).next().unwrap_or(after);
            out.push_str(before);
            out.push_str(BEGIN);
            out.push_str(&self.hash(secret.trim().as_bytes()));
            rest = &after[secret.len()..];
            // Its last line reads like a first one.
            let line = rest.strip_prefix(END).and_then(|line| line.find(DASHES));
            let line_len = line.map_or(0, |at| END.len() + at + DASHES.len());
            out.push_str(&rest[..line_len]);
            rest = &rest[line_len..];
        }
        out.push_str(rest);
        out.into()
    }

    fn words(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let part = |c: char| c.is_ascii_alphanumeric() || "_-.+/=:@%~".contains(c);
        let mut rest = text;
        while !rest.is_empty() {
            let len = rest.find(|c| !part(c)).unwrap_or(rest.len());
            if len == 0 {
                let step = rest.chars().next().map_or(1, char::len_utf8);
                out.push_str(&rest[..step]);
                rest = &rest[step..];
                continue;
            }
            out.push_str(&self.word(&rest[..len]));
            rest = &rest[len..];
        }
        out
    }

    fn word(&self, word: &str) -> String {
        // `scheme://user:password@host/…`
        if let Some((scheme, after)) = word.split_once("://") {
            let authority = after.split('/').next().unwrap_or(after);
            if let Some((userinfo, _)) = authority.rsplit_once('@') {
                return format!("{scheme}://{}{}", self.hash(userinfo.as_bytes()), &after[userinfo.len()..]);
            }
        }
        let start = word.rfind(['=', ':', '/', '@', ',']).map_or(0, |at| at + 1);
        // A padded token ends with `=`.
        let token = if start == word.len() { word } else { &word[start..] };
        if token.len() >= TOKEN_BYTES_MIN && PREFIXES.iter().any(|prefix| token.starts_with(prefix)) {
            return format!("{}{}", &word[..word.len() - token.len()], self.hash(token.as_bytes()));
        }
        word.to_owned()
    }
}

/// How long the mark is with which `text`, in lower case, begins; a secret stands after it.
fn mark_at(text: &str) -> Option<usize> {
    if let Some(scheme) = SCHEMES.iter().find(|scheme| text.starts_with(**scheme)) {
        return Some(scheme.len());
    }
    NAMES.iter().find_map(|name| {
        let rest = text.strip_prefix(name)?;
        // `"name": "value"` of JSON, also within another text's quotes; `name := value` of programs.
        let rest = rest.strip_prefix('s').unwrap_or(rest).trim_start_matches(['\\', '"', '\'']);
        let rest = rest.trim_start_matches([' ', '\t']).strip_prefix([':', '='])?;
        let rest = rest.trim_start_matches(['=', '>', ' ', '\t', '\\']);
        let mut schemes = SCHEMES.iter().chain(&NAMED_SCHEMES);
        let rest = schemes.find_map(|scheme| rest.strip_prefix(scheme)).unwrap_or(rest);
        Some(text.len() - rest.len())
    })
}

fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= 256 { text.into() } else { format!("{}…", &text[..text.floor_char_boundary(256)]).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor() -> Redactor {
        Redactor::new(&LedgerKey::from_bytes([3; 32]))
    }

    #[test]
    fn the_same_secret_has_one_hash_and_another_key_another() {
        let other = Redactor::new(&LedgerKey::from_bytes([4; 32]));
        assert_eq!(redactor().hash(b"x"), redactor().hash(b"x"));
        assert_ne!(redactor().hash(b"x"), redactor().hash(b"y"));
        assert_ne!(redactor().hash(b"x"), other.hash(b"x"));
        assert_eq!(redactor().hash(b"x").len(), "hmac:".len() + 16);
    }

    #[test]
    fn what_looks_like_a_secret_is_not_shown() {
        let secret = "S3cr3tV4lue0123456789";
        for text in [
            format!("mysql --password={secret} -h db"),
            format!("curl -H 'Authorization: Bearer {secret}' https://x"),
            format!("curl -H \"authorization: bearer {secret}\""),
            format!("curl -H 'Authorization: {secret}'"),
            format!("curl -H 'Authorization: ApiKey {secret}'"),
            format!("x --auth=Basic {secret}"),
            format!("{{\"auth\": \"Bearer {secret}\"}}"),
            format!("X_TOKEN={secret} ./run"),
            format!("TOKEN='{secret} two' ./run"),
            format!("git clone https://me:{secret}@example.org/r.git"),
            format!("echo ghp_{secret}"),
            format!("export K=sk-{secret}"),
            format!("url?api_key={secret}&x=1"),
            format!("ä password:{secret}"),
            format!("password: {secret}"),
            format!("curl -d '{{\"password\": \"{secret}\"}}' https://x"),
            format!("curl -d \"{{\\\"api_key\\\":\\\"{secret}\\\"}}\" https://x"),
            format!("curl -H 'X-Api-Key:   {secret}'"),
            format!("AWS_SECRET_ACCESS_KEY={secret} aws s3 ls"),
            format!("aws_secret_key = {secret}"),
            format!("PASSPHRASE={secret} gpg"),
            format!("private_key := '{secret}'"),
            format!("export CREDENTIALS={secret}"),
            format!("echo '-----BEGIN RSA PRIVATE KEY-----\n{secret}\n-----END RSA PRIVATE KEY-----' > k"),
            format!("echo '-----BEGIN PRIVATE KEY-----\n{secret}"),
        ] {
            let shown = redactor().text(&text, &[]);
            assert!(!shown.contains(secret), "{shown}");
            assert!(shown.contains("hmac:"), "{shown}");
        }
    }

    #[test]
    fn ordinary_text_stays_as_it_is() {
        for text in [
            "ls -la /tmp",
            "echo ä ü",
            "pip install sk-learn",
            "git log --format=%H",
            "user@host:/path",
            "cat /etc/passwd tokens.txt",
            "python -m tokenize secret.py",
            "openssl x509 -in '-----BEGIN CERTIFICATE-----'",
            "",
            "=",
            "eyJ",
        ] {
            assert_eq!(redactor().text(text, &[]), text);
        }
    }

    #[test]
    fn what_stands_after_a_private_key_is_shown() {
        let key = |body: &str| format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----");
        let shown = redactor().text(&format!("a '{}' > b; c '{}' > d", key("one"), key("two")), &[]);
        let hashed = |body: &str| {
            format!("-----BEGIN PRIVATE KEY-----{}-----END PRIVATE KEY-----", redactor().hash(body.as_bytes()))
        };
        assert_eq!(shown, format!("a '{}' > b; c '{}' > d", hashed("one"), hashed("two")));
    }

    #[test]
    fn a_known_secret_is_hashed_wherever_it_stands() {
        let shown = redactor().text("echo hunter22; cat hunter22.txt", &["hunter2", "hunter22"]);
        assert!(!shown.contains("hunter2"), "{shown}");
        // Three bytes stand in too many words to be told apart.
        assert_eq!(redactor().text("abc", &["abc"]), "abc");
    }

    #[test]
    fn the_argument_after_a_secret_option_is_hashed() {
        let argv = ["login", "--token", "plain", "--user", "ann"].map(str::to_owned);
        let shown = redactor().argv(&argv, &[]);
        assert_eq!(shown[0], "login");
        assert_eq!(shown[2], redactor().hash(b"plain"));
        assert_eq!(shown[4], "ann");
    }

    #[test]
    fn values_of_the_environment_are_never_shown() {
        let env = BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]);
        assert_eq!(redactor().env(&env)["PATH"], redactor().hash(b"/bin"));
        let many: BTreeMap<_, _> = (0..100).map(|n| (format!("V{n}"), n.to_string())).collect();
        assert_eq!(redactor().env(&many)["…"], 36);
    }

    #[test]
    fn long_texts_are_cut_with_their_length() {
        let shown = redactor().text(&"ä".repeat(5000), &[]);
        assert!(shown.len() < 1200 && shown.contains("10000 bytes"), "{}", shown.len());
        let argv: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        assert_eq!(redactor().argv(&argv, &[]).as_array().unwrap().len(), 65);
    }
}
