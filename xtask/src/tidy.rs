//! Holds the rules of the house that a compiler does not: who may use whom, where `unsafe` lives, how long a file is,
//! and which crates stay out. Knows nothing of what the crates do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use toml::{Table, Value};

use crate::table::{ANY, BANNED, HOUSE, JUDGES, LINES_MAX, Room};

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is one level deep").to_owned()
}

/// Every rule that is broken, one line each.
///
/// # Errors
/// A file that cannot be read or a manifest that is not TOML.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let mut manifests = BTreeMap::new();
    for name in folders(&root.join("crates"))? {
        let path = root.join("crates").join(&name).join("Cargo.toml");
        let manifest: Table = toml::from_str(&fs::read_to_string(&path).with_context(|| path.display().to_string())?)
            .with_context(|| path.display().to_string())?;
        manifests.insert(name, manifest);
    }
    rooms(&manifests, &mut findings);
    uses(&manifests, &mut findings);
    lock(&fs::read_to_string(root.join("Cargo.lock"))?, &mut findings)?;
    for path in sources(root)? {
        let text = fs::read_to_string(root.join(&path)).with_context(|| path.display().to_string())?;
        file(&path, &text, &mut findings);
    }
    Ok(findings)
}

/// The folders below `crates/` and the table name the same crates, and each takes the workspace's lints.
fn rooms(manifests: &BTreeMap<String, Table>, findings: &mut Vec<String>) {
    for (name, manifest) in manifests {
        let Some(room) = HOUSE.iter().find(|room| room.name == name) else {
            findings.push(format!("crates/{name} is not in the crate table (xtask/src/table.rs)"));
            continue;
        };
        let package = manifest.get("package").and_then(|p| p.get("name")).and_then(Value::as_str);
        if package != Some(name) {
            findings.push(format!("crates/{name}: the crate's name is not its folder's"));
        }
        let workspace = manifest.get("lints").and_then(|l| l.get("workspace")).and_then(Value::as_bool) == Some(true);
        let own = manifest.get("lints").and_then(|l| l.get("rust")).and_then(|r| r.get("unsafe_code"));
        let entry = name == "rf-init" && own.is_some();
        if !workspace && !room.may_be_unsafe && !entry {
            findings.push(format!("crates/{name}: does not take the workspace's lints"));
        }
    }
    for room in HOUSE.iter().filter(|room| !manifests.contains_key(room.name)) {
        findings.push(format!("the crate table names {}, which is not in crates/", room.name));
    }
}

/// The names in every section of `kind` (`dependencies` or `build-dependencies`), those of one target included.
fn named(manifest: &Table, kind: &str) -> BTreeSet<String> {
    let direct = manifest.get(kind).and_then(Value::as_table).into_iter();
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    direct
        .chain(targets.filter_map(|target| target.get(kind).and_then(Value::as_table)))
        .flat_map(Table::keys)
        .cloned()
        .collect()
}

/// The names in `dependencies` that are always there; an optional one is there only for who asks for its feature.
fn always(manifest: &Table) -> BTreeSet<String> {
    let optional = |name: &str| {
        let entry = manifest.get("dependencies").and_then(|section| section.get(name));
        entry.and_then(|entry| entry.get("optional")).and_then(Value::as_bool) == Some(true)
    };
    named(manifest, "dependencies").into_iter().filter(|name| !optional(name)).collect()
}

/// Nobody names a crate above or beside what the table allows, or reaches one that it must never.
fn uses(manifests: &BTreeMap<String, Table>, findings: &mut Vec<String>) {
    let direct: BTreeMap<&str, BTreeSet<String>> =
        manifests.iter().map(|(name, manifest)| (name.as_str(), named(manifest, "dependencies"))).collect();
    let always: BTreeMap<&str, BTreeSet<String>> =
        manifests.iter().map(|(name, manifest)| (name.as_str(), always(manifest))).collect();
    for (name, names) in &direct {
        let Some(room) = HOUSE.iter().find(|room| room.name == *name) else { continue };
        for used in names.iter().filter(|used| direct.contains_key(used.as_str())) {
            if room.may_use != ANY && !room.may_use.contains(&used.as_str()) {
                findings.push(format!("{name} may not use {used}"));
            }
            if used == "rf-testkit" && room.may_use != ANY {
                findings.push(format!("{name}: rf-testkit is never a normal dependency"));
            }
        }
        for (reached, through) in reach(name, &always) {
            if room.must_never.contains(&reached.as_str()) {
                findings.push(format!("{name} must never reach {reached} (through {through})"));
            }
        }
    }
}

/// Everything that `from` reaches through crates of the house, with the crate that names it.
fn reach(from: &str, direct: &BTreeMap<&str, BTreeSet<String>>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![from.to_owned()];
    while let Some(next) = open.pop() {
        for used in direct.get(next.as_str()).into_iter().flatten() {
            if !found.contains_key(used) {
                found.insert(used.clone(), next.clone());
                open.push(used.clone());
            }
        }
    }
    found
}

/// No banned crate is locked.
fn lock(text: &str, findings: &mut Vec<String>) -> Result<()> {
    let lock: Table = toml::from_str(text).context("Cargo.lock")?;
    let locked = lock.get("package").and_then(Value::as_array).context("Cargo.lock has no packages")?;
    for name in locked.iter().filter_map(|package| package.get("name").and_then(Value::as_str)) {
        if let Some((_, why)) = BANNED.iter().find(|(banned, _)| *banned == name) {
            findings.push(format!("Cargo.lock has {name}: {why}"));
        }
    }
    Ok(())
}

/// A source file is short enough, and has `unsafe` only where the table allows it.
fn file(path: &Path, text: &str, findings: &mut Vec<String>) {
    let lines = text.lines().count();
    // What a program made is not read but compared with what it makes.
    let generated = path.components().any(|part| part.as_os_str() == "generated");
    if lines >= LINES_MAX && !generated {
        findings.push(format!("{}: {lines} lines, must be under {LINES_MAX}", path.display()));
    }
    if path.extension().is_none_or(|extension| extension != "rs") {
        return;
    }
    let room = path.components().nth(1).and_then(|part| part.as_os_str().to_str()).unwrap_or_default();
    if HOUSE.iter().any(|known: &Room| known.name == room && known.may_be_unsafe) {
        return;
    }
    // Tests ask the judge themselves; what we build asks the gate, which knows who asks and what they have.
    if path.iter().nth(2).is_some_and(|part| part == "src") && !JUDGES.contains(&room) && names_the_judge(text) {
        findings
            .push(format!("{}: permits are made by the gate, nobody else names rf_policy's `judge`", path.display()));
    }
    for (number, line) in text.lines().enumerate() {
        // The attribute that marks a program's entry point is the one thing that rf-init needs and nobody else.
        let line = if room == "rf-init" { line.replace("#[unsafe(no_mangle)]", "") } else { line.to_owned() };
        if has_unsafe(&line) {
            findings.push(format!("{}:{}: `unsafe` outside rf-sys", path.display(), number + 1));
        }
    }
}

/// Whether a source takes `judge`, or all there is, from `rf_policy`.
fn names_the_judge(text: &str) -> bool {
    text.match_indices("rf_policy::").any(|(at, found)| {
        // A path ends with its statement or its call; a list of names with its brace.
        let rest = &text[at + found.len()..];
        let taken = match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default(),
            None => rest.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*')).next().unwrap_or_default(),
        };
        taken.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*')).any(|name| ["judge", "*"].contains(&name))
    })
}

/// Whether code of the line, not its comment or a text in it, has the keyword.
fn has_unsafe(line: &str) -> bool {
    let mut code = String::new();
    let mut quoted = false;
    let mut before = ' ';
    for c in line.chars() {
        if c == '"' && before != '\\' {
            quoted = !quoted;
        }
        code.push(if quoted { ' ' } else { c });
        before = c;
    }
    let code = code.split("//").next().unwrap_or_default();
    // Followed by what makes it the keyword: a text that goes over lines may hold the word too.
    code.match_indices("unsafe").any(|(at, word)| {
        let starts = code[..at].chars().next_back().is_none_or(|c| !(c.is_alphanumeric() || c == '_' || c == '`'));
        let rest = code[at + word.len()..].trim_start();
        starts && ["{", "(", "fn ", "impl", "extern", "trait "].iter().any(|next| rest.starts_with(next))
    })
}

/// The folders directly below `path`, by name.
fn folders(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).with_context(|| path.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The files that people wrote: Rust, C, Python, shell and TOML, wherever they are; nothing that a build makes.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(root.join(&folder)).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let name = entry.file_name();
            let path = folder.join(&name);
            if entry.file_type()?.is_dir() {
                let name = name.to_string_lossy();
                if !["target", ".git", "node_modules", "results", "golden"].contains(&name.as_ref()) {
                    open.push(path);
                }
            } else if path
                .extension()
                .is_some_and(|extension| ["rs", "c", "py", "sh", "toml"].iter().any(|e| extension == *e))
            {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule for the whole repository, so that the test runner holds it too.
    #[test]
    fn the_house_is_tidy() {
        assert_eq!(check(&root()).unwrap(), Vec::<String>::new());
    }

    fn manifest(text: &str) -> Table {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_crate_that_uses_one_above_it_is_found() {
        let mut findings = Vec::new();
        let manifests = BTreeMap::from([
            ("rf-server".to_owned(), manifest("[dependencies]\nrf-places.workspace = true")),
            ("rf-places".to_owned(), manifest("[target.x.dependencies]\nrf-sys.workspace = true")),
            ("rf-sys".to_owned(), manifest("")),
        ]);
        uses(&manifests, &mut findings);
        assert_eq!(
            findings,
            [
                "rf-places may not use rf-sys",
                "rf-places must never reach rf-sys (through rf-places)",
                "rf-server must never reach rf-sys (through rf-places)",
            ]
        );
    }

    #[test]
    fn a_crate_nobody_knows_is_found() {
        let mut findings = Vec::new();
        let all: BTreeMap<_, _> = HOUSE
            .iter()
            .map(|room| {
                (room.name.to_owned(), manifest(&format!("[package]\nname='{}'\n[lints]\nworkspace=true", room.name)))
            })
            .chain([("rf-utils".to_owned(), manifest(""))])
            .collect();
        rooms(&all, &mut findings);
        assert_eq!(findings, ["crates/rf-utils is not in the crate table (xtask/src/table.rs)"]);
    }

    #[test]
    fn unsafe_is_found_in_code_and_not_in_words() {
        assert!(has_unsafe("    let x = unsafe { f() };"));
        assert!(has_unsafe("#[unsafe(no_mangle)]"));
        assert!(has_unsafe("unsafe extern \"C\" {"));
        for fine in [
            "// unsafe here",
            "#![forbid(unsafe_code)]",
            "let x = \"unsafe\";",
            "/// `unsafe` lives there",
            "the replacement is an unsafe function",
        ] {
            assert!(!has_unsafe(fine), "{fine}");
        }
    }

    #[test]
    fn who_makes_permits_without_the_gate_is_found() {
        for bad in [
            "use rf_policy::judge;",
            "use rf_policy::{Action,\n    judge, Permit};",
            "use rf_policy::*;",
            "let permit = rf_policy::judge(&question)?;",
            "use rf_policy::{judge as decide};",
        ] {
            let mut findings = Vec::new();
            file(Path::new("crates/rf-server/src/a.rs"), bad, &mut findings);
            assert_eq!(findings.len(), 1, "{bad}");
            file(Path::new("crates/rf-gate/src/a.rs"), bad, &mut findings);
            file(Path::new("crates/rf-places/tests/a.rs"), bad, &mut findings);
            assert_eq!(findings.len(), 1, "{bad}");
        }
        let mut findings = Vec::new();
        file(Path::new("crates/rf-server/src/a.rs"), "use rf_policy::{Action, Permit};\nfn judge() {}", &mut findings);
        assert_eq!(findings, Vec::<String>::new());
    }

    #[test]
    fn a_banned_crate_and_a_long_file_are_found() {
        let mut findings = Vec::new();
        lock("[[package]]\nname = \"native-tls\"\nversion = \"1.0.0\"", &mut findings).unwrap();
        file(Path::new("crates/rf-types/src/a.rs"), &"\n".repeat(LINES_MAX), &mut findings);
        file(Path::new("crates/rf-types/src/b.rs"), "unsafe fn f() {}", &mut findings);
        file(Path::new("crates/rf-sys/src/b.rs"), "unsafe fn f() {}", &mut findings);
        assert_eq!(
            findings,
            [
                "Cargo.lock has native-tls: needs the host's OpenSSL",
                "crates/rf-types/src/a.rs: 800 lines, must be under 800",
                "crates/rf-types/src/b.rs:1: `unsafe` outside rf-sys",
            ]
        );
    }
}
