//! The script with which a user installs ringfence on their machine.

/// A POSIX shell script that fetches the program from the server at `base_url`, checks that it is the one whose SHA-256
/// is `sha256` (64 hex digits), puts it into `~/.local/bin` and says how to join. It does nothing else, changes nothing
/// else, and needs no rights.
///
/// # Errors
/// What of the two cannot stand in a script.
pub fn install_script(base_url: &str, sha256: &str) -> Result<String, &'static str> {
    let url = |b: u8| b.is_ascii_alphanumeric() || b":/.-_[]~%".contains(&b);
    if !(base_url.starts_with("https://") || base_url.starts_with("http://")) || !base_url.bytes().all(url) {
        return Err("the server's URL has characters that a script must not have");
    }
    if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("the program's digest is no SHA-256");
    }
    // Nothing that needs quoting is left in the two, so that no shell can read them otherwise.
    let base_url = base_url.trim_end_matches('/');
    let sha256 = sha256.to_ascii_lowercase();
    Ok(TEMPLATE.replace("@URL@", base_url).replace("@SHA256@", &sha256))
}

/// The whole is one function, called on the last line: a download cut short does nothing.
const TEMPLATE: &str = r#"#!/bin/sh
# Installs ringfence for this user, to join this machine to @URL@.
set -eu

url='@URL@'
sha256='@SHA256@'

fail() {
    printf 'ringfence: %s\n' "$1" >&2
    exit 1
}

main() {
    [ "$(uname -s)" = Linux ] || fail 'only Linux is supported so far'
    [ -n "${HOME:-}" ] || fail 'HOME is not set'
    directory="$HOME/.local/bin"
    mkdir -p -- "$directory"
    part="$(mktemp "$directory/.ringfence.XXXXXX")" || fail "cannot write to $directory"
    trap 'rm -f -- "$part"' EXIT
    trap 'exit 1' HUP INT TERM

    if command -v curl >/dev/null 2>&1; then
        curl --fail --silent --show-error --location --output "$part" -- "$url/v1/machines/binary"
    elif command -v wget >/dev/null 2>&1; then
        wget -q -O "$part" -- "$url/v1/machines/binary"
    else
        fail 'neither curl nor wget is here'
    fi

    if command -v sha256sum >/dev/null 2>&1; then
        got="$(sha256sum <"$part" | cut -d ' ' -f 1)"
    elif command -v shasum >/dev/null 2>&1; then
        got="$(shasum -a 256 <"$part" | cut -d ' ' -f 1)"
    else
        fail 'neither sha256sum nor shasum is here'
    fi
    [ "$got" = "$sha256" ] || fail "the download is not the expected program (SHA-256 $got)"

    chmod 0755 -- "$part"
    mv -f -- "$part" "$directory/ringfence"
    trap - EXIT
    printf 'installed %s\n' "$directory/ringfence"
    printf 'to join this machine, with the token that you were given:\n\n'
    printf '    %s join %s --token TOKEN\n\n' "$directory/ringfence" "$url"
    printf 'what the server may do here is yours to say: ringfence join --help, --level\n'
}

main
"#;

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        process::Command,
    };

    use super::*;

    const DIGEST: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    #[test]
    fn what_a_shell_could_read_otherwise_is_refused() {
        for wrong in [
            "https://a'; rm -rf /",
            "https://a$(id)",
            "https://a`id`",
            "https://a\nb",
            "https://a b",
            "file:///etc",
            "https://a\"",
            "https://a&b",
        ] {
            assert!(install_script(wrong, DIGEST).is_err(), "{wrong}");
        }
        assert!(install_script("https://a", "xyz").is_err());
        assert!(install_script("https://[::1]:8443/prefix", DIGEST).is_ok());
    }

    /// Serves `body` to each request until dropped; returns the URL.
    fn serve(body: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().take(1) {
                let mut stream = stream.unwrap();
                let mut request = [0; 2048];
                let got = stream.read(&mut request).unwrap();
                assert!(request[..got].starts_with(b"GET /v1/machines/binary "));
                let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all(head.as_bytes()).unwrap();
                stream.write_all(body).unwrap();
            }
        });
        url
    }

    fn run(script: &str, home: &std::path::Path) -> std::process::Output {
        Command::new("/bin/sh").args(["-c", script]).env("HOME", home).output().unwrap()
    }

    #[test]
    fn the_program_is_installed_only_when_it_is_the_right_one() {
        let home = std::env::temp_dir().join(format!("ringfence-install-{:x}", rf_types::RequestId::random().bits()));
        std::fs::create_dir(&home).unwrap();
        let installed = home.join(".local/bin/ringfence");

        let output = run(&install_script(&serve(b"changed"), DIGEST).unwrap(), &home);
        assert!(!output.status.success());
        assert!(!installed.exists(), "{}", String::from_utf8_lossy(&output.stderr));

        let output = run(&install_script(&serve(b"hello"), DIGEST).unwrap(), &home);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(std::fs::read(&installed).unwrap(), b"hello");
        assert!(String::from_utf8_lossy(&output.stdout).contains("join http://127.0.0.1:"));
        let left: Vec<_> = std::fs::read_dir(home.join(".local/bin")).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing else is left");
        std::fs::remove_dir_all(&home).unwrap();
    }
}
