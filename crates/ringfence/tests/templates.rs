//! Templates by the whole system: imported, run in, removed; and those that are made to break out.

mod support;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest as _, Sha256};
use support::System;

/// A root with a shell and the libraries that it needs, and not a directory more.
fn root(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/sh", root.join("bin/sh")).unwrap();
    let told = Command::new("ldd").arg("/bin/sh").output().expect("ldd(1) comes with the C library");
    for word in String::from_utf8(told.stdout).unwrap().split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(word.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(word, to).unwrap();
    }
    fs::write(root.join("mark"), "mine\n").unwrap();
    root
}

fn tar_of_directory(dir: &Path) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    builder.append_dir_all("", dir).unwrap();
    builder.into_inner().unwrap()
}

fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, body) in files {
        let mut header = tar::Header::new_gnu();
        // As bytes, since the builder would refuse what the test is about.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, body.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An `oci-layout` folder of an image with these layers, lowest first.
fn layout(dir: &Path, layers: &[Vec<u8>]) -> PathBuf {
    layout_of(dir, layers, &serde_json::json!({}))
}

/// The same, whose programs are started as `run` says.
fn layout_of(dir: &Path, layers: &[Vec<u8>], run: &serde_json::Value) -> PathBuf {
    let folder = dir.join("layout");
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], kind: &str| {
        fs::write(blobs.join(hex(bytes)), bytes).unwrap();
        serde_json::json!({ "mediaType": kind, "digest": format!("sha256:{}", hex(bytes)), "size": bytes.len() })
    };
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
    let config = serde_json::json!({
        "architecture": arch, "os": "linux", "config": run, "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json"),
        "layers": layers.iter().map(|layer| put(layer, "application/vnd.oci.image.layer.v1.tar")).collect::<Vec<_>>(),
    });
    let manifest = put(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    folder
}

fn blobs_kept(system: &System) -> usize {
    let files = |dir| fs::read_dir(system.state().join("server/blobs").join(dir)).unwrap().count();
    files("sha256") + files("partial")
}

/// How many layers are there once what is being removed is gone.
fn layers_kept(system: &System) -> usize {
    let names = || fs::read_dir(system.state().join("warden/layers")).unwrap().map(|entry| entry.unwrap().file_name());
    let is_going = |name: std::ffi::OsString| name.to_str().is_some_and(|name| name.ends_with(".gone"));
    support::eventually("what is removed is gone", || !names().any(is_going));
    names().count()
}

#[test]
fn a_root_of_ones_own_becomes_a_template_and_has_nothing_of_the_host() {
    let system = System::start();
    let root = root(system.dir());
    let tarball = system.dir().join("root.tar");
    fs::write(&tarball, tar_of_directory(&root)).unwrap();
    for (name, path) in [("directory", &root), ("tarball", &tarball)] {
        system.ok(&["template", "import", name, path.to_str().unwrap()]);
        let seen =
            system.ok(&["run", "--template", name, "--", "/bin/sh", "-c", "read word < /mark; echo $word; echo /*"]);
        let (mark, top) = seen.split_once('\n').unwrap();
        assert_eq!(mark, "mine");
        // What the image lacks a sandbox has all the same; the host's own top level it has not.
        for needed in ["/bin", "/dev", "/etc", "/home", "/mark", "/proc", "/sys", "/tmp", "/workspace"] {
            assert!(top.split(' ').any(|entry| entry == needed), "{needed} is not in {top}");
        }
        assert_eq!(system.run(&["run", "--template", name, "--", "/usr/bin/env"]).code, 125);
    }
    // Control: that program is in the template of the host.
    system.ok(&["run", "--", "/usr/bin/env"]);
    let names: Vec<_> =
        system.json(&["template", "list"]).as_array().unwrap().iter().map(|t| t["name"].clone()).collect();
    assert_eq!(names, ["host", "base", "directory", "tarball"]);
    system.ok(&["template", "rm", "tarball"]);
    system.run(&["run", "--template", "tarball", "--", "/bin/sh", "-c", ":"]).expect(125);
    system.ok(&["template", "rm", "directory"]);
    assert_eq!(layers_kept(&system), 0);
    system.stop();
}

#[test]
fn layers_hide_what_their_whiteouts_say_and_are_shared() {
    let system = System::start();
    let base = tar_of_directory(&root(system.dir()));
    let low = tar_of(&[("gone", "low"), ("over", "low"), ("dir/old", "low"), ("kept/old", "low")]);
    let high = tar_of(&[
        (".wh.gone", ""),
        ("over", "high"),
        ("dir/.wh..wh..opq", ""),
        ("dir/new", "high"),
        ("kept/new", "high"),
    ]);
    let folder = layout(system.dir(), &[base.clone(), low.clone(), high]);
    system.ok(&["template", "import", "image", folder.to_str().unwrap()]);
    let seen = |name: &str| {
        let script = "read over < /over; echo $over; echo /dir/* /kept/*; [ -e /gone ] && echo there; :";
        system.ok(&["run", "--template", name, "--", "/bin/sh", "-c", script])
    };
    assert_eq!(seen("image"), "high\n/dir/new /kept/new /kept/old");
    assert_eq!(layers_kept(&system), 3);
    fs::remove_dir_all(&folder).unwrap();
    // Control: without the upper layer all of it is there, so its absence above means something.
    let folder = layout(system.dir(), &[base, low]);
    system.ok(&["template", "import", "lower", folder.to_str().unwrap()]);
    assert_eq!(seen("lower"), "low\n/dir/old /kept/old\nthere");
    assert_eq!(layers_kept(&system), 3, "a layer was unpacked twice");
    assert_eq!(blobs_kept(&system), 2, "blobs of an earlier image stay");
    system.ok(&["template", "rm", "image"]);
    assert_eq!(seen("lower"), "low\n/dir/old /kept/old\nthere");
    assert_eq!(layers_kept(&system), 2);
    system.stop();
}

#[test]
fn a_layer_that_breaks_out_is_refused_and_leaves_nothing() {
    let system = System::start();
    for (name, why) in [
        ("../escaped", "`..` is in its path"),
        ("a/../../../../../../../tmp/escaped", "`..` is in its path"),
        (".wh..", "a whiteout of no name"),
        ("proc", "a mount of the sandbox's own goes there"),
    ] {
        let tarball = system.dir().join("bad.tar");
        fs::write(&tarball, tar_of(&[("fine", "text"), (name, "text")])).unwrap();
        let refused = system.run(&["template", "import", "bad", tarball.to_str().unwrap()]);
        refused.expect(1);
        assert!(refused.stderr.contains(why), "{name}: {}", refused.stderr);
        assert_eq!((layers_kept(&system), blobs_kept(&system)), (0, 0), "{name}");
    }
    let there = system.json(&["template", "list"]);
    let names: Vec<_> = there.as_array().unwrap().iter().map(|template| template["name"].clone()).collect();
    assert_eq!(names, ["host", "base"]);
    // Control: without the bad entry it is a template.
    let tarball = system.dir().join("good.tar");
    fs::write(&tarball, tar_of(&[("fine", "text")])).unwrap();
    system.ok(&["template", "import", "good", tarball.to_str().unwrap()]);
    assert_eq!(layers_kept(&system), 1);
    system.stop();
}

#[test]
fn an_exec_gets_what_the_image_says_where_its_request_says_nothing() {
    let system = System::start();
    let base = tar_of_directory(&root(system.dir()));
    let users = tar_of(&[
        ("etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:700:701::/srv:/bin/sh\n"),
        ("srv/file", ""),
        ("data/file", ""),
    ]);
    let import = |name: &str, run: &serde_json::Value| {
        let folder = layout_of(system.dir(), &[base.clone(), users.clone()], run);
        system.ok(&["template", "import", name, folder.to_str().unwrap()]);
        fs::remove_dir_all(folder).unwrap();
    };
    let ids = "while read key id rest; do case $key in [UG]id:) echo $id;; esac; done < /proc/self/status";
    let script = format!("echo $WORD $OTHER $HOME; pwd; {ids}");
    let seen = |args: &[&str]| {
        let all = [args, &["--", "/bin/sh", "-c", &script]].concat();
        system.ok(&all).lines().collect::<Vec<_>>().join(" ")
    };
    let run = serde_json::json!({
        "Env": ["WORD=image", "OTHER=a=b", "PATH=/bin"], "User": "app:staff", "WorkingDir": "/data",
        "Entrypoint": ["/bin/false"], "Cmd": ["x"],
    });
    import("full", &run);
    assert_eq!(seen(&["run", "--template", "full"]), "image a=b /srv /data 700 701");
    // Control: an image that says nothing gives what every sandbox gives.
    import("bare", &serde_json::json!({}));
    assert_eq!(seen(&["run", "--template", "bare"]), "/home/user /home/user 1000 1000");
    // What the request says stands above it; what it does not say stays.
    let asked = ["run", "--template", "full", "-e", "WORD=mine", "--cwd", "/srv", "--user", "user"];
    assert_eq!(seen(&asked), "mine a=b /home/user /srv 1000 1000");
    // Also in a sandbox that stays, and in the background.
    let id = system.ok(&["create", "--template", "full"]);
    assert_eq!(seen(&["exec", "-s", &id]), "image a=b /srv /data 700 701");
    let exec = system.ok(&["exec", "-d", "-s", &id, "--", "/bin/sh", "-c", &script]);
    assert_eq!(system.run(&["logs", "-f", &exec]).expect(0), "image a=b /srv\n/data\n700\n701");

    // What would steer a terminal is shown tame, and is whole as JSON.
    let wild = serde_json::json!({
        "Env": ["TITLE=\u{1b}]0;mine\u{7}", "LINE=a\nlayers none"], "User": "app\u{9b}31m",
        "WorkingDir": "/\u{202e}data\u{1b}[2J", "Cmd": ["\u{1b}c", "\u{7f}"],
    });
    import("wild", &wild);
    for shown in [system.ok(&["template", "show", "wild"]), system.ok(&["template", "ls"])] {
        let steers = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(shown.contains("app\u{fffd}31m") && !shown.contains(steers), "{shown:?}");
        assert!(!shown.contains("\nlayers none"), "{shown}");
    }
    let told = system.json(&["template", "show", "wild"]);
    assert_eq!((&told["config"]["env"], &told["config"]["user"]), (&wild["Env"], &wild["User"]));
    system.ok(&["template", "rm", "wild"]);

    // An id without an entry; and root, which is judged like one that was asked for.
    import("number", &serde_json::json!({ "User": "4321:50" }));
    assert_eq!(seen(&["run", "--template", "number"]), "/ / 4321 4321");
    for root in ["root", "0"] {
        import("root", &serde_json::json!({ "User": root }));
        assert_eq!(seen(&["run", "--template", "root"]).split(' ').next_back(), Some("0"));
        let refused = system.run(&["--json", "run", "--template", "root", "--no-root", "--", "/bin/sh", "-c", ":"]);
        refused.expect(125);
        assert!(refused.stderr.contains("\"forbidden\""), "{}", refused.stderr);
    }
    system.stop();
}

#[test]
fn base_has_what_programs_for_e2b_expect() {
    let system = System::start();
    let seen = |args: &[&str], script: &str| {
        let all = [args, &["--", "/bin/bash", "-l", "-c", script]].concat();
        system.ok(&all).lines().collect::<Vec<_>>().join("; ")
    };
    let run = ["run", "--template", "base"];
    assert_eq!(seen(&run, "pwd; whoami; id -gn; echo $HOME"), "/home/user; user; user; /home/user");
    assert_eq!(
        seen(&run, "getent passwd user root | cut -d: -f1,6,7"),
        "user:/home/user:/bin/bash; root:/root:/bin/bash"
    );
    let python = "import sys; print(sys.version_info.major)";
    assert_eq!(seen(&run, &format!("python -c '{python}'; python3 -c '{python}'")), "3; 3");
    assert_eq!(seen(&run, "sudo id -un; sudo -n id -u; sudo -u root whoami"), "root; 0; root");
    assert_eq!(
        seen(&run, "for name in curl git ps ss sudo; do command -v $name >/dev/null || echo no $name; done"),
        ""
    );
    assert_eq!(
        seen(&run, "git init -q r && touch r/x && ls -ld r/x r | awk '{ print $3, $4 }'"),
        "user user; user user"
    );
    assert_eq!(seen(&run, "ps -o comm= -p $$; ss -ltn | wc -l"), "bash; 1");

    // What tells one start from another is each sandbox's own, and not the host's.
    let boot = || seen(&run, "cat /proc/sys/kernel/random/boot_id");
    let boots = [boot(), boot(), fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned()];
    assert!(boots.iter().all(|id| id.len() == 36 && id.bytes().filter(|b| *b == b'-').count() == 4), "{boots:?}");
    assert!(boots[0] != boots[1] && boots[0] != boots[2] && boots[1] != boots[2], "{boots:?}");

    // Where root may not be had, there is no sudo, and `python` is there all the same.
    let plain = ["run", "--template", "base", "--no-root"];
    assert_eq!(seen(&plain, "command -v python; command -v sudo | grep -c rf || :"), "/usr/local/bin/python; 0");
    // Control: `host` has nothing beyond the host.
    let here = Path::new("/usr/local/bin/python").exists() || Path::new("/usr/bin/python").exists();
    let found = seen(&["run"], "command -v python >/dev/null && echo yes || echo no");
    assert_eq!(found, if here { "yes" } else { "no" });

    // Since somebody asked for it, some are kept prepared, beside the two of `host`.
    let warden = system.child("warden");
    let inits = || {
        let children = fs::read_to_string(format!("/proc/{warden}/task/{warden}/children")).unwrap();
        let name = |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "rf-init\n");
        children.split_whitespace().filter(name).count()
    };
    support::eventually("prepared sandboxes of `base`", || inits() == 2 + 8);

    // Nobody takes its name.
    let mine = system.dir().join("root");
    fs::create_dir(&mine).unwrap();
    let taken = system.run(&["--json", "template", "import", "base", mine.to_str().unwrap()]);
    assert_ne!(taken.code, 0);
    assert!(taken.stderr.contains("\"conflict\""), "{}", taken.stderr);
    assert_ne!(system.run(&["template", "rm", "base"]).code, 0);
    system.stop();
}

/// A registry on this machine that lets in one user, and gives out blobs slowly.
struct Registry {
    address: std::net::SocketAddr,
    asked: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

impl Registry {
    /// Serves the image of an `oci-layout` folder as `a/b:1` to who sends `authorization`; ends with the test.
    fn start(folder: PathBuf, authorization: &'static str) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
        let noted = std::sync::Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (folder, noted) = (folder.clone(), std::sync::Arc::clone(&noted));
                std::thread::spawn(move || Self::serve(stream, &folder, authorization, &noted));
            }
        });
        Self { address, asked }
    }

    /// Answers one request after the other. A client that goes away ends it.
    fn serve(
        stream: std::net::TcpStream,
        folder: &Path,
        authorization: &str,
        noted: &std::sync::Mutex<Vec<String>>,
    ) -> Option<()> {
        use std::io::{BufRead as _, BufReader, Write as _};
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut stream = stream;
        loop {
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).ok()? == 0 {
                    return None;
                }
                if line.trim().is_empty() {
                    break;
                }
                lines.push(line.trim().to_owned());
            }
            let path = lines.first()?.split(' ').nth(1)?.to_owned();
            noted.lock().unwrap().push(path.clone());
            let known = lines.iter().any(|line| line.eq_ignore_ascii_case(&format!("authorization: {authorization}")));
            let blob = |digest: &str| fs::read(folder.join("blobs/sha256").join(digest.trim_start_matches("sha256:")));
            let body = match path.strip_prefix("/v2/a/b/").and_then(|rest| rest.split_once('/')) {
                _ if !known => None,
                Some(("manifests", "1")) => {
                    let index = fs::read(folder.join("index.json")).unwrap();
                    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
                    Some(blob(index["manifests"][0]["digest"].as_str().unwrap()).unwrap())
                }
                Some(("blobs", digest)) => blob(digest).ok(),
                _ => None,
            };
            let Some(body) = body else {
                let status = if known { "404 Not Found" } else { "401 Unauthorized" };
                let challenge = "WWW-Authenticate: Basic realm=\"r\"\r\n";
                write!(stream, "HTTP/1.1 {status}\r\n{challenge}Content-Length: 0\r\n\r\n").ok()?;
                continue;
            };
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).ok()?;
            for piece in body.chunks(body.len().div_ceil(20).max(1)) {
                stream.write_all(piece).ok()?;
                if path.contains("/blobs/") {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
            }
        }
    }
}

#[test]
fn an_image_of_a_registry_with_credentials_says_how_far_it_is_and_runs_its_own_command() {
    let dir = support::fresh_dir();
    let run = serde_json::json!({
        "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo $GREETING from the image; exit 5"], "Env": ["GREETING=hello"],
    });
    let folder = layout_of(dir.path(), &[tar_of_directory(&root(dir.path()))], &run);
    // "ann:hunter2".
    let registry = Registry::start(folder, "Basic YW5uOmh1bnRlcjI=");
    let image = format!("{}/a/b:1", registry.address);

    // Without credentials it is said what the configuration lacks.
    let system = System::start();
    let refused = system.run(&["template", "import", "mine", "--image", &image]);
    refused.expect(1);
    assert!(refused.stderr.contains("[[registries]]"), "{}", refused.stderr);
    system.stop();

    let secret = dir.path().join("password");
    fs::write(&secret, "hunter2\n").unwrap();
    let config = dir.path().join("server.toml");
    let text = format!(
        "[[registries]]\nhost = '{}'\nuser = 'ann'\npassword_file = '{}'\n",
        registry.address,
        secret.display()
    );
    fs::write(&config, text).unwrap();
    // Only who starts it may read it.
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let system =
        System::start_with(support::fresh_dir(), &["--listen", "127.0.0.1:0", "--config", config.to_str().unwrap()]);
    let key = fs::read_to_string(system.state().join("first-key")).unwrap();
    let progress = || {
        let url = format!("{}/v1/templates/mine/import", system.url);
        let told = Command::new("curl").args(["-sS", "-H", &format!("X-API-Key: {}", key.trim()), &url]).output();
        serde_json::from_slice::<serde_json::Value>(&told.unwrap().stdout).unwrap()
    };
    assert_eq!(progress()["code"], "not_found");
    let mut importing = system.command(&["template", "import", "mine", "--image", &image]).spawn().unwrap();
    let mut seen = Vec::new();
    support::eventually("the import is half way", || {
        let told = progress();
        let (done, total) = (told["bytes_done"].as_u64().unwrap_or(0), told["bytes_total"].as_u64().unwrap_or(0));
        seen.push((told["step"].clone(), done));
        told["step"] == "fetching" && done > 0 && done < total
    });
    // Another of that name is refused by it, and takes nothing of the first one's.
    let second = system.run(&["template", "import", "mine", root(dir.path()).to_str().unwrap()]);
    second.expect(1);
    assert!(second.stderr.contains(&format!("`mine` is being imported already, from `{image}`")), "{}", second.stderr);
    assert!(importing.wait().unwrap().success(), "{seen:?}");
    assert_eq!(progress()["code"], "not_found");
    assert!(registry.asked.lock().unwrap().iter().any(|path| path.contains("/blobs/")));

    let template = system.json(&["template", "show", "mine"]);
    assert_eq!(template["config"]["entrypoint"], serde_json::json!(["/bin/sh", "-c"]));
    let shown = system.ok(&["template", "show", "mine"]);
    assert!(shown.contains("GREETING=hello") && shown.contains(&image), "{shown}");
    assert!(system.ok(&["template", "ls"]).contains("/bin/sh -c echo"));
    // Without a command it is the image's own; with one, that alone.
    assert_eq!(system.run(&["run", "--template", "mine"]).expect(5), "hello from the image");
    assert_eq!(system.ok(&["run", "--template", "mine", "--", "/bin/sh", "-c", "echo $GREETING"]), "hello");
    let none = system.run(&["run", "--template", "host"]);
    none.expect(125);
    assert!(none.stderr.contains("has none of its own"), "{}", none.stderr);
    let records = system.ok(&["audit", "export"]);
    assert!(records.contains("\"command_of\":\"template\""));
    // The password is nowhere: not in the ledger, not in what was logged.
    assert!(!records.contains("hunter2") && !system.log().contains("hunter2") && !records.contains("YW5uOmh1bnRlcjI"));
    system.stop();
}
