//! Attack: fill the disk that the ledger is on.

mod common;

use std::{fs, path::Path, process::Command};

use common::{entry, key, open};
use rf_ledger::verify;
use rf_types::Code;

const CHILD: &str = "RF_LEDGER_TEST_DISK";

/// Not a test of its own: runs in a mount namespace with a small tmpfs at the given directory; see the next test.
#[test]
fn child_on_a_small_disk() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let dir = Path::new(&dir);
    let ballast = dir.join("ballast");
    let ledger = open(dir, 1 << 30);
    ledger.append(&entry(0)).unwrap().wait().unwrap();
    let mut accepted = 1;
    for round in 0..3 {
        // Full but for a little: what is left is less than the ledger takes ahead.
        let mut size = 8 << 20;
        fs::File::create(&ballast).unwrap();
        while size > 1024 {
            let mut bytes = fs::read(&ballast).unwrap();
            let had = bytes.len();
            bytes.resize(had + size, 1);
            if fs::write(&ballast, &bytes).is_err() {
                bytes.truncate(had);
                fs::write(&ballast, &bytes).unwrap();
                size /= 2;
            }
        }
        let mut refused = None;
        for n in 0..100_000 {
            match ledger.append(&entry(n)) {
                Ok(ticket) => {
                    accepted += 1;
                    // Whatever was accepted does become durable, full disk or not.
                    ticket.wait().unwrap();
                }
                Err(fault) => {
                    refused = Some(fault);
                    break;
                }
            }
        }
        let fault = refused.unwrap_or_else(|| panic!("round {round}: the disk never got full"));
        assert_eq!(fault.code, Code::LedgerUnavailable);
        assert!(fault.message.contains("No space left"), "{fault}");
        assert!(ledger.append(&entry(1)).is_err());
        // Room again, and it goes on without a restart.
        fs::remove_file(&ballast).unwrap();
        ledger.append(&entry(2)).unwrap().wait().unwrap();
        accepted += 1;
    }
    drop(ledger);
    let report = verify(&dir.join("ledger"), Some(&key()), None).unwrap();
    assert_eq!((report.problem, report.records, report.torn_bytes), (None, accepted, 0));
    println!("held on a full disk");
}

/// Runs one of the tests that are none of their own, behind a line of shell (`$1` is the directory it gets in `variable`),
/// which must end well and with these words.
fn holds(through: &[&str], line: &str, child: &str, variable: &str, words: &str) {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(through[0])
        .args(&through[1..])
        .args(["-ec", &format!("{line}; exec \"$0\" --exact {child} --nocapture")])
        .arg(std::env::current_exe().unwrap())
        .arg(dir.path())
        .env(variable, dir.path())
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains(words), "{text}");
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    let through = ["unshare", "--user", "--map-root-user", "--mount", "sh"];
    let line = "mount -t tmpfs -o size=6m none \"$1\"";
    holds(&through, line, "child_on_a_small_disk", CHILD, "held on a full disk");
}

/// A limit on the size of files stands for every other failure of write(2): the signal is blocked by the shell's trap.
#[test]
fn child_with_a_limit_on_file_sizes() {
    let Ok(dir) = std::env::var("RF_LEDGER_TEST_FSIZE") else { return };
    let ledger = open(Path::new(&dir), 1 << 30);
    let mut accepted = 0;
    let fault = loop {
        match ledger.append(&entry(accepted)) {
            Ok(_) => accepted += 1,
            Err(fault) => break fault,
        }
    };
    assert_eq!(fault.code, Code::LedgerUnavailable);
    assert!(accepted > 100);
    drop(ledger);
    let report = verify(&Path::new(&dir).join("ledger"), Some(&key()), None).unwrap();
    assert_eq!((report.problem, report.records), (None, accepted.into()));
    println!("held at the limit");
}

#[test]
fn a_limit_on_file_sizes_refuses_and_loses_nothing() {
    // An ignored signal stays ignored across exec; the write then fails with EFBIG.
    let line = "trap '' XFSZ; ulimit -f 200";
    holds(&["sh"], line, "child_with_a_limit_on_file_sizes", "RF_LEDGER_TEST_FSIZE", "held at the limit");
}

/// Not a test of its own: may open few files; see the next test.
#[test]
fn child_without_descriptors() {
    let Ok(dir) = std::env::var("RF_LEDGER_TEST_FILES") else { return };
    let dir = Path::new(&dir);
    let ledger = open(dir, 8 * 1024);
    let mut accepted = 0;
    for round in 0..3 {
        let mut hoard = Vec::new();
        // To the end of the segment it needs no descriptor, and a new segment does.
        let fault = loop {
            // Each time anew: the ledger's thread gives one back when it has written an index.
            while let Ok(file) = fs::File::open("/dev/null") {
                hoard.push(file);
            }
            assert!(accepted < 10_000, "it needs no descriptors");
            match ledger.append(&entry(accepted)) {
                Ok(ticket) => ticket.wait().unwrap(),
                Err(fault) => break fault,
            }
            accepted += 1;
        };
        assert_eq!(fault.code, Code::LedgerUnavailable, "round {round}");
        drop(hoard);
        ledger.append(&entry(accepted)).unwrap().wait().unwrap();
        accepted += 1;
    }
    drop(ledger);
    let report = verify(&dir.join("ledger"), Some(&key()), None).unwrap();
    assert_eq!((report.problem, report.records), (None, accepted.into()));
    println!("held without descriptors");
}

#[test]
fn exhausted_descriptors_refuse_and_lose_nothing() {
    holds(&["sh"], "ulimit -n 64", "child_without_descriptors", "RF_LEDGER_TEST_FILES", "held without descriptors");
}
