//! What the store promises besides the walls: once, both or neither, for good.

mod common;

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt, sync::Barrier};

use common::{HOUR, NOW, World, enrol, hash, insert, insert_once, known_key, world};
use rf_store::{
    CredentialHash, NewKey, NewRepeat, NewSandbox, NewSession, NewTemplate, NewUser, PageAsk, Proof, Refused, Repeat,
    SandboxChange, SandboxFilter, SessionMaker, Snapshot, Store, StoreError,
};
use rf_types::{
    PauseKind, Preference, SandboxAbout, SandboxId, SandboxSpec, SandboxState, SessionId, SnapshotId, TemplateConfig,
    UserLimits, Username,
};

#[test]
fn one_opener_at_a_time_and_rows_outlive_it() {
    let World { dir, store, ann, .. } = world();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::InUse { .. })));
    let clone = store.clone();
    drop(store);
    assert!(matches!(Store::open(dir.path()), Err(StoreError::InUse { .. })), "a clone still has it");
    drop(clone);
    let (store, _) = Store::open(dir.path()).unwrap();
    assert_eq!(store.sandbox_get(&ann.scope, ann.sandbox).unwrap().name.as_deref(), Some("mine"));
    store.check().unwrap();
}

#[test]
fn nobody_else_can_read_the_files() {
    let w = world();
    for entry in std::fs::read_dir(w.dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?} has mode {mode:o}", entry.file_name());
    }
}

#[test]
fn a_strangers_file_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    std::fs::write(&path, "not a database at all, but long enough to be looked at as one").unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(Store::open(dir.path()).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn only_the_first_user_is_made_by_the_server_itself() {
    let w = world();
    let again = w.store.user_create_first(&w.system, &"eve".parse().unwrap(), NOW);
    assert!(matches!(again, Err(StoreError::Conflict { .. })));
    assert!(w.store.has_users(&w.system).unwrap());
}

#[test]
fn a_credential_is_refused_for_each_reason() {
    let w = world();
    let key = |now| w.store.scope_by_key(&w.ann.key_hash, now).unwrap().map(|known| known.scope);
    let session = |now| w.store.scope_by_session(&w.ann.session_hash, now).unwrap().map(|known| known.scope);
    assert_eq!(key(NOW).as_ref(), Ok(&w.ann.scope));
    assert_eq!(session(NOW).as_ref(), Ok(&w.ann.scope));
    assert_eq!(w.store.scope_by_key(&hash("none"), NOW).unwrap().err(), Some(Refused::Unknown));
    assert_eq!(w.store.scope_by_key(&w.ann.session_hash, NOW).unwrap().err(), Some(Refused::Unknown));
    assert_eq!(key(NOW + HOUR - 1).as_ref(), Ok(&w.ann.scope));
    assert_eq!(key(NOW + HOUR), Err(Refused::Expired));
    assert_eq!(session(NOW + HOUR), Err(Refused::Expired));
    w.store.user_set_disabled(&w.operator, w.ann.scope.user(), Some(NOW)).unwrap();
    assert_eq!(key(NOW), Err(Refused::UserDisabled));
    assert_eq!(session(NOW), Err(Refused::UserDisabled));
    assert_eq!(w.store.scope_by_machine(w.ann.machine, |_| true).unwrap(), Err(Refused::UserDisabled));
    assert!(enrol(&w.store, &w.ann.token, [9; 32]).is_none());
    w.store.user_set_disabled(&w.operator, w.ann.scope.user(), None).unwrap();
    w.store.key_revoke(&w.ann.scope, w.ann.key, NOW).unwrap();
    w.store.session_end(&w.ann.scope, &w.ann.session, NOW).unwrap();
    assert_eq!(key(NOW), Err(Refused::Revoked));
    assert_eq!(session(NOW), Err(Refused::Revoked));
}

#[test]
fn a_machine_needs_its_key() {
    let w = world();
    let mut asked = None;
    let wrong = w.store.scope_by_machine(w.ann.machine, |key| {
        asked = Some(*key);
        false
    });
    assert_eq!(wrong.unwrap(), Err(Refused::Unknown));
    assert_eq!(asked.map(|key| key[..3].to_vec()).as_deref(), Some(&b"ann"[..]));
    assert_eq!(w.store.scope_by_machine(w.ann.machine, |_| true).unwrap().as_ref(), Ok(&w.ann.scope));
}

#[test]
fn only_an_operators_row_gives_the_operators_scope() {
    let w = world();
    assert!(known_key(&w.store, "root").operator.is_some());
    assert!(known_key(&w.store, "ann's key").operator.is_none());
}

#[test]
fn the_last_operator_stays() {
    let w = world();
    let root = w.operator.user();
    assert!(matches!(w.store.user_delete(&w.operator, root), Err(StoreError::Conflict { .. })));
    assert!(matches!(w.store.user_set_disabled(&w.operator, root, Some(NOW)), Err(StoreError::Conflict { .. })));
    let new = NewUser { name: "second".parse().unwrap(), operator: true, limits: UserLimits::STANDARD };
    w.store.user_create(&w.operator, &new, NOW).unwrap();
    w.store.user_delete(&w.operator, root).unwrap();
    assert!(w.store.user_get(&w.operator, root).unwrap_err().is_not_found());
}

#[test]
fn a_deleted_user_leaves_no_row_and_others_keep_theirs() {
    let w = world();
    let user = w.bob.scope.user();
    assert!(matches!(w.store.user_delete(&w.operator, user), Err(StoreError::Conflict { .. })), "a sandbox is alive");
    w.store.sandbox_end(&w.bob.scope, w.bob.sandbox, "asked", NOW).unwrap();
    let subject = "INSERT INTO subjects (issuer, subject, user, created) VALUES ('i', 's', ?1, 1)";
    let raw = rusqlite::Connection::open(w.dir.path().join("state.db")).unwrap();
    raw.execute(subject, [user.bits().to_be_bytes()]).unwrap();
    let snapshot = Snapshot {
        id: SnapshotId::random(),
        name: None,
        sandbox: w.bob.sandbox,
        spec: SandboxSpec::standard(HOUR),
        bytes: 1,
        files: 1,
        durable: true,
        created: NOW,
    };
    w.store.snapshot_insert(&w.system, user, &snapshot).unwrap();
    let repeated = insert_once(&w, &w.bob.scope, "k", NOW);
    w.store.sandbox_end(&w.bob.scope, repeated, "x", NOW).unwrap();
    // Every table that has a column `user`, so that a new one is counted too.
    let rows = |user: rf_types::UserId| -> Vec<(String, u32)> {
        let sql = "SELECT m.name FROM sqlite_schema m JOIN pragma_table_info(m.name) c ON c.name = 'user'
                   WHERE m.type = 'table' ORDER BY 1";
        let mut statement = raw.prepare(sql).unwrap();
        let tables = statement.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap);
        tables
            .map(|table| {
                let sql = format!("SELECT count(*) FROM {table} WHERE user = ?1");
                let count = raw.query_row(&sql, [user.bits().to_be_bytes()], |row| row.get(0)).unwrap();
                (table, count)
            })
            .collect()
    };
    let before = rows(user);
    assert_eq!(before.len(), 8, "{before:?}");
    assert!(before.iter().all(|(_, count)| *count > 0), "there is something to remove: {before:?}");
    let anns = rows(w.ann.scope.user());
    w.store.user_delete(&w.operator, user).unwrap();
    assert!(rows(user).iter().all(|(_, count)| *count == 0), "{:?}", rows(user));
    assert_eq!(rows(w.ann.scope.user()), anns);
    assert!(w.store.scope_by_key(&w.bob.key_hash, NOW).unwrap().is_err());
    // The name is free for somebody else, who is another user.
    let new = NewUser { name: "bob".parse().unwrap(), operator: false, limits: UserLimits::STANDARD };
    assert_ne!(w.store.user_create(&w.operator, &new, NOW).unwrap().1.id, user);
}

#[test]
fn an_enrolment_token_is_used_once_however_many_try() {
    let w = world();
    for round in 0..50_u8 {
        let token = hash(&format!("round {round}"));
        w.store.enrolment_token_make(&w.bob.scope, &token, NOW + HOUR, NOW).unwrap();
        let barrier = Barrier::new(8);
        let joined: Vec<_> = std::thread::scope(|threads| {
            let handles: Vec<_> = (0..8_u8)
                .map(|thread| {
                    let (w, token, barrier) = (&w, &token, &barrier);
                    threads.spawn(move || {
                        barrier.wait();
                        let mut key = [thread; 32];
                        key[0] = round;
                        key[1] = 0xaa;
                        enrol(&w.store, token, key)
                    })
                })
                .collect();
            handles.into_iter().filter_map(|handle| handle.join().unwrap()).collect()
        });
        assert_eq!(joined.len(), 1, "round {round}");
        w.store.machine_remove(&w.bob.scope, joined[0].1, NOW).unwrap();
    }
}

#[test]
fn a_failed_enrolment_does_not_use_the_token_up() {
    let w = world();
    let mut anns = [0; 32];
    anns[..3].copy_from_slice(b"ann");
    let facts = serde_json::Value::Null;
    let new = rf_store::NewMachine { name: "x", public_key: &anns, facts: &facts, level: "full" };
    assert!(matches!(w.store.machine_enrol(&w.bob.token, &new, NOW), Err(StoreError::Conflict { .. })));
    assert!(enrol(&w.store, &w.bob.token, [9; 32]).is_some());
    assert!(enrol(&w.store, &w.bob.token, [8; 32]).is_none(), "now it is used up");
    assert_eq!(w.store.machine_enrol(&hash("x"), &new, NOW).unwrap().err(), Some(Refused::Unknown));
    assert_eq!(w.store.machine_enrol(&w.ann.token, &new, NOW + HOUR).unwrap().err(), Some(Refused::Expired));
}

#[test]
fn all_that_a_machine_may_tell_of_itself_is_kept() {
    let w = world();
    // Each byte is two in JSON.
    let facts = serde_json::json!(vec!["\"".repeat(1024); 24]);
    w.store.machine_seen(&w.ann.scope, w.ann.machine, Some((&facts, "full")), NOW).unwrap();
    assert_eq!(w.store.machine_get(&w.ann.scope, w.ann.machine).unwrap().facts, facts);
    let more = serde_json::json!(vec!["x".repeat(1024); 64]);
    assert!(w.store.machine_seen(&w.ann.scope, w.ann.machine, Some((&more, "full")), NOW).is_err());
}

#[test]
fn a_subject_becomes_one_user_and_never_takes_anothers_name() {
    let w = world();
    let names: Vec<Username> = ["ann", "ann-x"].map(|name| name.parse().unwrap()).to_vec();
    let barrier = Barrier::new(8);
    let mut users: Vec<_> = std::thread::scope(|threads| {
        let handles: Vec<_> = (0..8)
            .map(|_| {
                threads.spawn(|| {
                    barrier.wait();
                    let limits = UserLimits::STANDARD;
                    w.store.scope_by_subject_or_create("iss", "sub", &names, &limits, NOW).unwrap().unwrap().scope
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    users.dedup();
    assert_eq!(users.len(), 1);
    assert_eq!(users[0].username().as_str(), "ann-x");
    assert_ne!(users[0].user(), w.ann.scope.user());
    let other = w.store.scope_by_subject_or_create("other", "sub", &names, &UserLimits::STANDARD, NOW);
    assert!(matches!(other, Err(StoreError::Conflict { .. })), "no name is left");
    assert_eq!(w.store.scope_by_subject("other", "sub", NOW).unwrap().err(), Some(Refused::Unknown));
}

#[test]
fn a_name_is_unique_while_its_sandbox_lives() {
    let w = world();
    assert!(matches!(insert(&w.store, &w.system, &w.bob.scope, Some("mine")), Err(StoreError::Conflict { .. })));
    w.store.sandbox_end(&w.bob.scope, w.bob.sandbox, "asked", NOW).unwrap();
    let next = insert(&w.store, &w.system, &w.bob.scope, Some("mine")).unwrap();
    assert_eq!(w.store.sandbox_by_name(&w.bob.scope, "mine").unwrap().id, next);
}

#[test]
fn a_life_goes_one_way() {
    let w = world();
    let (scope, id) = (&w.bob.scope, w.bob.sandbox);
    w.store.sandbox_end(scope, id, "lease over", NOW + 5).unwrap();
    assert!(w.store.sandbox_end(scope, id, "again", NOW + 6).unwrap_err().is_not_found());
    let row = w.store.sandbox_get(scope, id).unwrap();
    assert_eq!((row.ended, row.ended_why.as_deref()), (Some(NOW + 5), Some("lease over")));
}

#[test]
fn pages_hold_everything_once_newest_first() {
    let w = world();
    let mut made = vec![w.bob.sandbox];
    for _ in 0..24 {
        made.push(insert(&w.store, &w.system, &w.bob.scope, None).unwrap());
    }
    let mut seen = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let ask = PageAsk { after: after.as_deref(), items_max: Some(7) };
        let page = w.store.sandbox_list(&w.bob.scope, SandboxFilter::default(), ask).unwrap();
        assert!(page.items.len() <= 7);
        seen.extend(page.items.into_iter().map(|sandbox| sandbox.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert!(seen.is_sorted_by(|a, b| a > b), "all were made in one millisecond, so by id");
    made.sort();
    seen.sort();
    assert_eq!(seen, made);
    for bad in ["", "x", &"0".repeat(47), &"F".repeat(48), &"f".repeat(48)] {
        let ask = PageAsk { after: Some(bad), items_max: None };
        assert!(
            matches!(
                w.store.sandbox_list(&w.bob.scope, SandboxFilter::default(), ask),
                Err(StoreError::Invalid { .. })
            ),
            "{bad}"
        );
    }
    for items_max in [Some(0), Some(1_001)] {
        let ask = PageAsk { after: None, items_max };
        assert!(w.store.sandbox_list(&w.bob.scope, SandboxFilter::default(), ask).is_err());
    }
}

#[test]
fn usage_is_the_sum_of_the_live_ones() {
    let w = world();
    let mut spec = SandboxSpec::standard(HOUR);
    spec.limits.memory_bytes_max = 1 << 40;
    spec.limits.disk_bytes_max = 16 << 40;
    spec.limits.cpu_milli_max = 1_024_000;
    let mut ids = Vec::new();
    for _ in 0..100 {
        let new = NewSandbox {
            id: SandboxId::random(),
            name: None,
            spec: &spec,
            about: &SandboxAbout::default(),
            from_snapshot: None,
        };
        w.store.sandbox_insert(&w.system, w.ann.scope.user(), &new, NOW, NOW + HOUR).unwrap();
        ids.push(new.id);
    }
    let usage = w.store.usage(&w.ann.scope).unwrap();
    let standard = rf_types::Limits::STANDARD;
    assert_eq!(usage.sandboxes, 101);
    assert_eq!(usage.memory_bytes, 100 * (1 << 40) + standard.memory_bytes_max);
    assert_eq!(usage.disk_bytes, 100 * (16 << 40) + standard.disk_bytes_max);
    assert_eq!(usage.cpu_milli, 100 * 1_024_000 + standard.cpu_milli_max);
    for id in ids {
        w.store.sandbox_end(&w.ann.scope, id, "asked", NOW).unwrap();
    }
    assert_eq!(w.store.usage(&w.ann.scope).unwrap().sandboxes, 1);
}

#[test]
fn a_filter_finds_what_passes_it_and_pages_through_it() {
    let w = world();
    w.store.sandbox_end(&w.bob.scope, w.bob.sandbox, "asked", NOW).unwrap();
    let bob = w.bob.scope.user();
    let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let mut ids = Vec::new();
    for n in 0..10_u64 {
        let mut spec = SandboxSpec::standard(HOUR);
        if n % 2 == 1 {
            spec.template = "python".parse().unwrap();
        }
        let pairs = [("n", n.to_string()), ("odd", (n % 2).to_string()), ("quote\"d", "it's".to_owned())];
        let labels = pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let about = SandboxAbout { labels, ..SandboxAbout::default() };
        let new = NewSandbox { id: SandboxId::random(), name: None, spec: &spec, about: &about, from_snapshot: None };
        w.store.sandbox_insert(&w.system, bob, &new, NOW + n, NOW + HOUR).unwrap();
        let state = if n < 3 { SandboxState::Paused } else { SandboxState::Running };
        let pause_kind = (n < 3).then_some(PauseKind::Memory);
        let (lease_until, started) = (NOW + HOUR, NOW + n);
        let (paused, saved) = (None, None);
        let change =
            SandboxChange { spec: &spec, lease_until, state, pause_kind, paused, saved, started, about: &about };
        w.store.sandbox_change(&w.system, bob, new.id, &change).unwrap();
        ids.push(new.id);
    }
    let found = |filter: SandboxFilter<'_>| {
        let (mut found, mut after) = (Vec::new(), None::<String>);
        loop {
            let ask = PageAsk { after: after.as_deref(), items_max: Some(2) };
            let page = w.store.sandbox_list(&w.bob.scope, filter, ask).unwrap();
            found.extend(page.items.iter().map(|row| ids.iter().position(|id| *id == row.id).unwrap()));
            after = page.next;
            if after.is_none() {
                return found;
            }
        }
    };
    let all = SandboxFilter::default();
    let python = "python".parse().unwrap();
    assert_eq!(found(all), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
    assert_eq!(found(SandboxFilter { oldest_first: true, ..all }), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(found(SandboxFilter { state: Some(SandboxState::Paused), ..all }), [2, 1, 0]);
    assert_eq!(found(SandboxFilter { started_from: Some(NOW + 8), ..all }), [9, 8]);
    assert_eq!(found(SandboxFilter { template: Some(&python), started_from: Some(NOW + 6), ..all }), [9, 7]);
    let one = labels(&[("n", "4"), ("odd", "0"), ("quote\"d", "it's")]);
    assert_eq!(found(SandboxFilter { labels: Some(&one), ..all }), [4]);
    for none in [&[("n", "4"), ("odd", "1")][..], &[("n", "4 ")], &[("N", "4")], &[("n", "")]] {
        assert_eq!(found(SandboxFilter { labels: Some(&labels(none)), ..all }), [0_usize; 0], "{none:?}");
    }
    assert_eq!(found(SandboxFilter { labels: Some(&labels(&[])), ..all }).len(), 10);
    let anns = w.store.sandbox_list(&w.ann.scope, SandboxFilter { labels: Some(&one), ..all }, PageAsk::default());
    assert!(anns.unwrap().items.is_empty());
}

#[test]
fn a_snapshot_is_one_users_and_its_name_goes_over_to_the_next() {
    let w = world();
    let (ann, bob) = (w.ann.scope.user(), w.bob.scope.user());
    let new = |n: u128, name: Option<&str>| Snapshot {
        id: SnapshotId::from_bits(n),
        name: name.map(str::to_owned),
        sandbox: w.bob.sandbox,
        spec: SandboxSpec::standard(HOUR),
        bytes: 7,
        files: 1,
        durable: false,
        created: NOW + n as u64,
    };
    let put = |user, snapshot: &Snapshot| w.store.snapshot_insert(&w.system, user, snapshot);
    put(bob, &new(1, Some("base"))).unwrap();
    put(ann, &new(2, Some("base"))).unwrap();
    assert!(matches!(put(ann, &new(1, None)), Err(StoreError::Conflict { .. })), "an id is used once");
    assert!(put(rf_types::UserId::from_bits(1), &new(9, None)).unwrap_err().is_not_found());
    assert!(matches!(put(bob, &new(9, Some(""))), Err(StoreError::Invalid { .. })));
    put(bob, &new(3, Some("base"))).unwrap();
    put(bob, &new(4, None)).unwrap();
    let list = |sandbox, name| {
        let page = w.store.snapshot_list(&w.bob.scope, sandbox, name, PageAsk::default()).unwrap();
        page.items.iter().map(|snapshot| snapshot.id.bits()).collect::<Vec<_>>()
    };
    assert_eq!(list(None, None), [4, 3, 1]);
    assert_eq!(list(None, Some("base")), [3]);
    assert_eq!(list(Some(w.ann.sandbox), None), [0_u128; 0]);
    let ask = PageAsk { after: None, items_max: Some(2) };
    let first = w.store.snapshot_list(&w.bob.scope, None, None, ask).unwrap();
    let ask = PageAsk { after: first.next.as_deref(), items_max: Some(2) };
    assert_eq!(w.store.snapshot_list(&w.bob.scope, None, None, ask).unwrap().items, [new(1, None)]);

    let id = SnapshotId::from_bits(3);
    let change = |user| w.store.snapshot_change(&w.system, user, id, 70, 2, true);
    assert!(change(ann).unwrap_err().is_not_found());
    change(bob).unwrap();
    let row = w.store.snapshot_get(&w.bob.scope, id).unwrap();
    assert_eq!((row.bytes, row.files, row.durable), (70, 2, true));
    assert_eq!(w.store.snapshots_all(&w.system).unwrap().len(), 4);
    assert!(w.store.snapshot_remove(&w.system, ann, id).unwrap_err().is_not_found());
    w.store.snapshot_remove(&w.system, bob, id).unwrap();
    assert!(w.store.snapshot_get(&w.bob.scope, id).unwrap_err().is_not_found());
}

/// A user who makes and destroys all day must not wait longer for each request: what ended is not walked.
#[test]
fn what_ended_costs_nothing() {
    let w = world();
    let raw = rusqlite::Connection::open(w.dir.path().join("state.db")).unwrap();
    let insert = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
                  INSERT INTO sandboxes
                  (id, user, name, spec, cpu_milli, memory_bytes, disk_bytes, phase, created, lease_until, ended, ended_why)
                  SELECT randomblob(16), ?1, NULL, s.spec, 1, 1, 1, 'ended', i, i, i, 'over'
                  FROM n, (SELECT spec FROM sandboxes LIMIT 1) s";
    raw.execute(insert, [w.bob.scope.user().bits().to_be_bytes()]).unwrap();
    let user = w.bob.scope.user().bits().to_be_bytes();
    // Not by the clock, which is noisy, but by what SQLite says it walks.
    let steps = |sql: &str| {
        let mut statement = raw.prepare(sql).unwrap();
        let mut rows = statement.query([user]).unwrap();
        while rows.next().unwrap().is_some() {}
        drop(rows);
        statement.get_status(rusqlite::StatementStatus::VmStep)
    };
    let sums = "SELECT count(*), total(cpu_milli), total(memory_bytes), total(disk_bytes)
             FROM sandboxes INDEXED BY sandboxes_alive_by_user WHERE user = ?1 AND ended IS NULL";
    let source = include_str!("../src/lookup.rs");
    assert!(source.contains(sums), "this is the statement that the store has");
    assert!(steps(sums) < 200, "{}", steps(sums));
    // Control: without the index's name the same question walks them all.
    let unnamed = sums.replace("INDEXED BY sandboxes_alive_by_user", "INDEXED BY sandboxes_by_user");
    assert!(steps(&unnamed) > 20_000, "{}", steps(&unnamed));
    assert_eq!(w.store.usage(&w.bob.scope).unwrap().sandboxes, 1);
    assert_eq!(
        w.store.sandbox_list(&w.bob.scope, SandboxFilter::default(), PageAsk::default()).unwrap().items.len(),
        1
    );
}

#[test]
fn background_work_sees_the_live_ones_of_all() {
    let w = world();
    let alive = w.store.sandboxes_alive_all(&w.system).unwrap();
    let mut whose: Vec<_> = alive.iter().map(|(scope, sandbox)| (scope.username().as_str(), sandbox.id)).collect();
    whose.sort();
    assert_eq!(whose, [("ann", w.ann.sandbox), ("bob", w.bob.sandbox)]);
}

#[test]
fn the_servers_own_calls_name_the_user_and_touch_no_other() {
    let w = world();
    let (ann, bob) = (w.ann.scope.user(), w.bob.scope.user());
    let mut spec = SandboxSpec::standard(HOUR);
    let about = SandboxAbout {
        labels: [("team".to_owned(), "a b".to_owned())].into(),
        env: BTreeMap::from([("TOKEN".to_owned(), "x".to_owned())]).into(),
        door: serde_json::json!({ "secured": true }),
        ..SandboxAbout::default()
    };
    let new = NewSandbox {
        id: SandboxId::random(),
        name: Some("made"),
        spec: &spec.clone(),
        about: &about,
        from_snapshot: None,
    };
    let nobody = rf_types::UserId::from_bits(1);
    assert!(w.store.sandbox_insert(&w.system, nobody, &new, NOW, NOW + HOUR).unwrap_err().is_not_found());
    w.store.sandbox_insert(&w.system, bob, &new, NOW, NOW + HOUR).unwrap();
    let again = w.store.sandbox_insert(&w.system, ann, &new, NOW, NOW + HOUR);
    assert!(matches!(again, Err(StoreError::Conflict { .. })), "an id is used once, whoever has it");
    let row = w.store.sandbox_by_name(&w.bob.scope, "made").unwrap();
    assert_eq!((row.id, row.ended, row.state), (new.id, None, SandboxState::Running));
    assert_eq!((&row.about, row.started), (&about, NOW));

    let id = new.id;
    spec.limits.memory_bytes_max *= 2;
    let auto_pause = PauseKind::Files;
    let about = SandboxAbout { auto_resume: true, idle_pause_ms: Some(5_000), auto_pause, ..about };
    let change = SandboxChange {
        spec: &spec,
        lease_until: NOW + 7,
        state: SandboxState::Paused,
        pause_kind: Some(PauseKind::Files),
        paused: Some(NOW + 3),
        saved: Some(SnapshotId::from_bits(5)),
        started: NOW + 1,
        about: &about,
    };
    assert!(w.store.sandbox_change(&w.system, ann, id, &change).unwrap_err().is_not_found());
    assert_eq!(w.store.sandbox_get(&w.bob.scope, id).unwrap(), row);
    let before = w.store.usage(&w.bob.scope).unwrap().memory_bytes;
    w.store.sandbox_change(&w.system, bob, id, &change).unwrap();
    assert_eq!(w.store.usage(&w.bob.scope).unwrap().memory_bytes, before + spec.limits.memory_bytes_max / 2);
    let row = w.store.sandbox_get(&w.bob.scope, id).unwrap();
    assert_eq!((row.lease_until, row.started, row.created), (NOW + 7, NOW + 1, NOW));
    assert_eq!((row.state, row.pause_kind), (SandboxState::Paused, Some(PauseKind::Files)));
    assert_eq!((row.paused, row.saved), (Some(NOW + 3), Some(SnapshotId::from_bits(5))));
    assert_eq!(row.about, about);

    assert!(w.store.sandbox_end_of(&w.system, ann, id, "x", NOW).unwrap_err().is_not_found());
    w.store.sandbox_end_of(&w.system, bob, id, "lease", NOW).unwrap();
    assert!(w.store.sandbox_end_of(&w.system, bob, id, "again", NOW).unwrap_err().is_not_found());
    assert!(w.store.sandbox_change(&w.system, bob, id, &change).unwrap_err().is_not_found());
}

#[test]
fn a_store_that_cannot_be_written_says_so_and_is_read_on() {
    let w = world();
    let mut raw = rusqlite::Connection::open(w.dir.path().join("state.db")).unwrap();
    let held = raw.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    let refused = w.store.key_revoke(&w.bob.scope, w.bob.key, NOW).unwrap_err();
    assert_eq!(rf_types::Fault::from(refused).code, rf_types::Code::StoreUnavailable);
    assert!(w.store.check().is_err());
    assert_eq!(w.store.usage(&w.bob.scope).unwrap().sandboxes, 1);
    assert!(w.store.scope_by_key(&w.bob.key_hash, NOW).unwrap().is_ok(), "and the refused call changed nothing");
    drop(held);
    w.store.key_revoke(&w.bob.scope, w.bob.key, NOW).unwrap();
}

#[test]
fn pruning_takes_what_ended_and_nothing_alive() {
    let w = world();
    w.store.sandbox_end(&w.bob.scope, w.bob.sandbox, "asked", NOW).unwrap();
    w.store.key_revoke(&w.bob.scope, w.bob.key, NOW).unwrap();
    w.store.session_end(&w.bob.scope, &w.bob.session, NOW).unwrap();
    w.store.machine_remove(&w.bob.scope, w.bob.machine, NOW).unwrap();
    assert_eq!(w.store.prune(&w.system, NOW).unwrap(), 0, "not before its time");
    // Bob's four, and the two tokens that were used at NOW.
    assert_eq!(w.store.prune(&w.system, NOW + 1).unwrap(), 6);
    assert!(w.store.sandbox_get(&w.bob.scope, w.bob.sandbox).unwrap_err().is_not_found());
    assert!(w.store.scope_by_key(&w.ann.key_hash, NOW).unwrap().is_ok());
    w.store.sandbox_get(&w.ann.scope, w.ann.sandbox).unwrap();
    w.store.machine_get(&w.ann.scope, w.ann.machine).unwrap();
}

#[test]
fn users_change_as_told() {
    let w = world();
    let user = w.bob.scope.user();
    let limits = UserLimits { sandboxes_max: 3, ..UserLimits::STANDARD };
    w.store.user_set_limits(&w.operator, user, &limits).unwrap();
    w.store.set_preference(&w.bob.scope, Preference::Machine).unwrap();
    let row = w.store.user_get(&w.operator, user).unwrap();
    assert_eq!((row.limits, row.preference), (limits, Preference::Machine));
    assert_eq!(w.store.user_by_name(&w.operator, &"bob".parse().unwrap()).unwrap(), row);
    assert_eq!(w.store.scope_by_key(&w.bob.key_hash, NOW).unwrap().unwrap().limits, limits);
    let names = w.store.user_list(&w.operator, PageAsk::default()).unwrap().items;
    assert_eq!(names.len(), 5, "root, ann, bob, and the two subjects' users");
    let new = NewUser { name: "bob".parse().unwrap(), operator: false, limits };
    assert!(matches!(w.store.user_create(&w.operator, &new, NOW), Err(StoreError::Conflict { .. })));
    assert_eq!(w.store.act_for(&w.operator, user).unwrap(), w.bob.scope);
    assert!(w.store.act_for(&w.operator, rf_types::UserId::from_bits(1)).unwrap_err().is_not_found());
}

#[test]
fn rows_of_one_user_are_bounded() {
    let w = world();
    for n in 1..64 {
        w.store.enrolment_token_make(&w.bob.scope, &hash(&format!("t{n}")), NOW + HOUR, NOW).unwrap();
    }
    let more = w.store.enrolment_token_make(&w.bob.scope, &hash("more"), NOW + HOUR, NOW);
    assert!(matches!(more, Err(StoreError::TooMany { max: 64, .. })));
    // Expired ones do not count.
    w.store.enrolment_token_make(&w.bob.scope, &hash("later"), NOW + 2 * HOUR, NOW + HOUR).unwrap();
    for bad in ["", "a\nb", &"x".repeat(101)] {
        let new = NewKey { name: bad, hash: hash("n"), scopes: "read", expires: None };
        assert!(matches!(w.store.key_insert(&w.bob.scope, &new, NOW), Err(StoreError::Invalid { .. })), "{bad:?}");
    }
}

#[test]
fn templates_and_settings_are_kept() {
    let w = world();
    let name = "debian:13".parse().unwrap();
    let layers = vec!["sha256:aa".to_owned(), "sha256:bb".to_owned()];
    let mut config = TemplateConfig { user: "app".to_owned(), ..TemplateConfig::default() };
    let source = "docker.io/debian";
    let mut new = NewTemplate { name: &name, layers: &layers, source, digest: "sha256:cc", config: &config };
    w.store.template_put(&w.operator, &new, NOW).unwrap();
    new.digest = "sha256:dd";
    let put = w.store.template_put(&w.operator, &new, NOW + 1).unwrap();
    assert_eq!(put.config.user, "app");
    assert_eq!(w.store.template_get(&w.ann.scope, &name).unwrap(), put);
    assert_eq!(w.store.template_list(&w.bob.scope).unwrap(), [put]);
    config.env = vec![format!("A={}", "x".repeat(3 << 20))];
    let new = NewTemplate { name: &name, layers: &layers, source, digest: "sha256:dd", config: &config };
    assert!(matches!(w.store.template_put(&w.operator, &new, NOW), Err(StoreError::Invalid { .. })));
    w.store.template_remove(&w.operator, &name).unwrap();
    assert!(w.store.template_get(&w.ann.scope, &name).unwrap_err().is_not_found());
    assert_eq!(w.store.setting_get(&w.system, "id").unwrap(), None);
    w.store.setting_set(&w.system, "id", "1").unwrap();
    w.store.setting_set(&w.system, "id", "2").unwrap();
    assert_eq!(w.store.setting_get(&w.system, "id").unwrap().as_deref(), Some("2"));
}

#[test]
fn a_client_learns_nothing_of_the_inside_of_a_failure() {
    let errors = [
        StoreError::Open { step: "make", path: "/secret/path".into(), source: std::io::Error::other("secret") },
        StoreError::Foreign { path: "/secret/path".into() },
        StoreError::Unreadable { what: "secret" },
    ];
    for error in errors {
        let fault = rf_types::Fault::from(error);
        assert_eq!(fault.code, rf_types::Code::StoreUnavailable);
        assert!(!format!("{fault:?}").contains("secret"), "{fault:?}");
    }
}

#[test]
fn a_revoked_key_takes_along_every_session_that_goes_back_to_it() {
    let w = world();
    let second = hash("a session of a session");
    let begin = |text: &str, maker| {
        let id = SessionId::new(w.bob.scope.username(), NOW / 1_000);
        let new = NewSession { id: &id, hash: hash(text), scopes: "read", expires: NOW + HOUR, maker };
        w.store.session_begin(&w.bob.scope, &new, NOW).unwrap()
    };
    begin("a session of a session", SessionMaker::Session(&w.bob.session)).unwrap();
    begin("of a token", SessionMaker::Other).unwrap();
    let stands = |hash: &CredentialHash| w.store.scope_by_session(hash, NOW).unwrap().is_ok();
    assert!(stands(&w.bob.session_hash) && stands(&second));
    w.store.key_revoke(&w.bob.scope, w.bob.key, NOW).unwrap();
    assert!(!stands(&w.bob.session_hash) && !stands(&second));
    let proof = Proof::Session(&w.bob.session);
    assert!(w.store.standing(&w.bob.scope, proof, NOW).unwrap().is_err());
    // Controls: what goes back to something else stands, and so does another user's.
    assert!(stands(&hash("of a token")) && stands(&w.ann.session_hash));
    // One that was judged before the revocation and comes to the store after it.
    for maker in [SessionMaker::Key(w.bob.key), SessionMaker::Session(&w.bob.session)] {
        assert_eq!(begin("too late", maker).unwrap_err(), Refused::Revoked);
    }
    assert!(!stands(&hash("too late")));
    begin("too late", SessionMaker::Other).unwrap();
}

#[test]
fn a_repeated_request_is_known_for_its_time_and_only_to_its_user() {
    let mut w = world();
    assert_eq!(w.store.repeat_get(&w.ann.scope, "k", 0).unwrap(), None);
    let first = Repeat { digest: [1; 32], made: insert_once(&w, &w.ann.scope, "k", NOW) };
    assert_eq!(w.store.repeat_get(&w.ann.scope, "k", NOW).unwrap(), Some(first));
    assert_eq!(w.store.repeat_get(&w.ann.scope, "k", NOW + 1).unwrap(), None, "it is too old");
    assert_eq!(w.store.repeat_get(&w.bob.scope, "k", 0).unwrap(), None);
    // The next server knows it too.
    drop((w.store, w.system));
    (w.store, w.system) = Store::open(w.dir.path()).unwrap();
    assert_eq!(w.store.repeat_get(&w.ann.scope, "k", NOW).unwrap(), Some(first));
    // One whose answer was a fault is forgotten, whosever it is asked for, and another of the user's is not.
    let second = insert_once(&w, &w.ann.scope, "l", NOW);
    w.store.repeat_forget(&w.system, w.bob.scope.user(), second).unwrap();
    assert!(w.store.repeat_get(&w.ann.scope, "l", NOW).unwrap().is_some());
    w.store.repeat_forget(&w.system, w.ann.scope.user(), second).unwrap();
    assert_eq!(w.store.repeat_get(&w.ann.scope, "l", NOW).unwrap(), None);
    assert_eq!(w.store.repeats_prune(&w.system, NOW).unwrap(), 0);
    assert_eq!(w.store.repeats_prune(&w.system, NOW + 1).unwrap(), 1);
    // No user has more than so many: the oldest go.
    let made: Vec<_> = (0..10_003_u64).map(|n| insert_once(&w, &w.ann.scope, &n.to_string(), NOW + n)).collect();
    assert_eq!(w.store.repeat_get(&w.ann.scope, "2", 0).unwrap(), None);
    assert_eq!(w.store.repeat_get(&w.ann.scope, "3", 0).unwrap().map(|repeat| repeat.made), Some(made[3]));
}

#[test]
fn a_sandbox_that_is_not_inserted_leaves_no_key() {
    let w = world();
    let (spec, about) = (SandboxSpec::standard(HOUR), SandboxAbout::default());
    let new =
        NewSandbox { id: SandboxId::random(), name: Some("mine"), spec: &spec, about: &about, from_snapshot: None };
    let repeat = NewRepeat { key: "k", digest: [1; 32] };
    let refused = w.store.sandbox_insert_once(&w.system, w.ann.scope.user(), &new, NOW, NOW + HOUR, Some(&repeat));
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "its name is taken: {refused:?}");
    assert_eq!(w.store.repeat_get(&w.ann.scope, "k", 0).unwrap(), None);
}
