use rf_types::{DiskKind, TemplateName};
use rf_wire::warden::SnapshotWay;

use super::*;

fn info(id: SnapshotId, created_at: UnixMs) -> Snapshot {
    Snapshot {
        id,
        template: TemplateName::host(),
        disk: DiskKind::Memory,
        created_at,
        way: SnapshotWay::Pushed,
        bytes: 0,
        files: 0,
        layers: 2,
        durable: false,
    }
}

fn empty(state: &tempfile::TempDir) -> Snapshots {
    fs::create_dir(state.path().join("kept")).unwrap();
    Snapshots::open_at(state.path().to_owned()).unwrap()
}

/// A layer that is nowhere but where a sandbox wrote it.
fn written(snapshots: &mut Snapshots, owner: SandboxId) -> LayerId {
    let id = LayerId::random();
    let disk = fs::File::open("/").unwrap().into();
    let origin = Origin { owner, disk, written: vec![Written { bind: None, dir: "upper".into() }] };
    snapshots.add_layer(id, Vec::new(), Some(origin), Kept { bytes: 1, files: 1 });
    id
}

/// A durable snapshot of two layers whose layers are put together; whether its file can be written then. Gives the
/// layers on which a warden that starts afterwards finds it, those that are there until then; before, and the new one.
fn merged(can_store: bool) -> [Vec<LayerId>; 4] {
    let state = tempfile::tempdir().unwrap();
    let dir = || state.path().to_owned();
    fs::create_dir(dir().join("kept")).unwrap();
    let mut snapshots = Snapshots::open_at(dir()).unwrap();
    let [low, high, into] = [(); 3].map(|()| LayerId::random());
    for layer in [low, high, into] {
        fs::create_dir(snapshots.layer_dir(layer)).unwrap();
    }
    snapshots.add_layer(low, Vec::new(), None, Kept::default());
    snapshots.add_layer(high, Vec::new(), None, Kept::default());
    let id = SnapshotId::random();
    assert!(snapshots.add(info(id, 1), vec![low, high], Vec::new()).unwrap().durable);
    let in_the_way = snapshots.file(id).with_extension("part");
    if !can_store {
        fs::create_dir(&in_the_way).unwrap();
    }
    snapshots.keep_done(&[low, high], into, Vec::new(), Kept::default());
    snapshots.collect(&BTreeSet::new());
    if !can_store {
        fs::remove_dir(&in_the_way).unwrap();
    }
    let mut there: Vec<LayerId> =
        [low, high, into].into_iter().filter(|id| snapshots.layer_dir(*id).is_dir()).collect();
    let again = Snapshots::open_at(dir()).unwrap();
    there.sort();
    let mut all = [low, high, into];
    all.sort();
    assert!(there.iter().all(|id| all.contains(id)));
    [again.get(id).unwrap().1.to_vec(), there, vec![low, high], vec![into]]
}

#[test]
fn a_snapshot_keeps_the_layers_that_its_file_names_when_that_cannot_be_written_anew() {
    let [chain, there, before, into] = merged(false);
    assert_eq!(chain, before);
    assert!(before.iter().chain(&into).all(|id| there.contains(id)));
    // Control: where it can, it stands on the new layer alone, and the others go.
    let [chain, there, _, into] = merged(true);
    assert_eq!((chain, there), (into.clone(), into));
}

#[test]
fn a_layer_that_cannot_be_kept_takes_no_other_along() {
    let state = tempfile::tempdir().unwrap();
    let mut snapshots = empty(&state);
    let owner = SandboxId::random();
    let chain: Vec<LayerId> = (0..MERGE_FROM).map(|_| written(&mut snapshots, owner)).collect();
    let (bad, good) = chain.split_last().unwrap();
    let [first, whole] = [(); 2].map(|()| SnapshotId::random());
    snapshots.add(info(first, 1), good.to_vec(), Vec::new()).unwrap();
    snapshots.add(info(whole, 2), chain.clone(), Vec::new()).unwrap();
    let next = |snapshots: &mut Snapshots| snapshots.next_job(true, |_| false, std::iter::empty());
    // Whatever is tried, it fails with the last layer and with no other: as often as it is given up after.
    let mut tried = 0;
    while let Some(Job { from, into }) = next(&mut snapshots) {
        tried += 1;
        assert!(tried < 100, "it goes round");
        if from.contains(bad) {
            snapshots.keep_failed(&from, into, "too deep");
            if let Some(failed) = snapshots.failed.get_mut(&into) {
                failed.at -= RETRY;
            }
        } else {
            fs::create_dir(snapshots.layer_dir(into)).unwrap();
            snapshots.keep_done(&from, into, Vec::new(), Kept { bytes: 1, files: 1 });
        }
        let lost = snapshots.give_up(|_| false);
        assert!(lost.iter().all(|(id, _)| *id == whole), "{lost:?}");
    }
    assert!(snapshots.get(whole).is_err());
    assert!(snapshots.get(first).unwrap().0.durable);
}

#[test]
fn a_copy_that_was_named_and_not_synced_is_made_once_more() {
    let state = tempfile::tempdir().unwrap();
    let mut snapshots = empty(&state);
    let id = written(&mut snapshots, SandboxId::random());
    for _ in 0..2 {
        let part = snapshots.begin(id).unwrap();
        fs::create_dir(part.join("root")).unwrap();
        snapshots.name(id).unwrap();
        snapshots.keep_failed(&[id], id, "the disk does not answer");
    }
    assert!(!snapshots.layer_dir(id).exists());
    assert_eq!(snapshots.take_gone().len(), 2, "what was copied goes");
}

#[test]
fn a_name_is_taken_once() {
    let state = tempfile::tempdir().unwrap();
    let mut snapshots = empty(&state);
    let id = SnapshotId::random();
    let [mine, other] = [(); 2].map(|()| written(&mut snapshots, SandboxId::random()));
    snapshots.add(info(id, 1), vec![mine], Vec::new()).unwrap();
    assert_eq!(snapshots.add(info(id, 2), vec![other], Vec::new()).unwrap_err().code, Code::Conflict);
    assert_eq!(snapshots.get(id).unwrap().1, [mine]);
}

#[test]
fn sizes_that_a_copy_makes_up_do_not_end_the_warden() {
    let state = tempfile::tempdir().unwrap();
    let mut snapshots = empty(&state);
    let chain = [(); 2].map(|()| written(&mut snapshots, SandboxId::random()));
    let id = SnapshotId::random();
    snapshots.add(info(id, 1), chain.to_vec(), Vec::new()).unwrap();
    for layer in chain {
        fs::create_dir(snapshots.layer_dir(layer)).unwrap();
        snapshots.keep_done(&[layer], layer, Vec::new(), Kept { bytes: u64::MAX, files: u64::MAX });
    }
    assert_eq!(snapshots.get(id).unwrap().0.bytes, u64::MAX);
}

#[test]
fn layers_of_templates_are_held_by_the_snapshots_that_have_them() {
    let state = tempfile::tempdir().unwrap();
    let mut snapshots = empty(&state);
    let ids = [(); 2].map(|()| SnapshotId::random());
    for id in ids {
        let layer = written(&mut snapshots, SandboxId::random());
        snapshots.add(info(id, 1), vec![layer], vec!["sha256:aa".to_owned()]).unwrap();
    }
    for id in ids {
        assert!(snapshots.has_template_layer("sha256:aa") && !snapshots.has_template_layer("sha256:bb"));
        snapshots.remove(id).unwrap();
    }
    assert!(!snapshots.has_template_layer("sha256:aa"));
    assert_eq!(snapshots.collect(&BTreeSet::new()).len(), 2);
}

/// A durable snapshot of these layers, whose directories are made.
fn durable(snapshots: &mut Snapshots, chain: &[LayerId]) -> SnapshotId {
    for layer in chain {
        if !snapshots.has(*layer) {
            fs::create_dir(snapshots.layer_dir(*layer)).unwrap();
            snapshots.add_layer(*layer, Vec::new(), None, Kept { bytes: 1, files: 1 });
        }
    }
    let id = SnapshotId::random();
    assert!(snapshots.add(info(id, 1), chain.to_vec(), vec!["sha256:aa".to_owned()]).unwrap().durable);
    id
}

/// A fault of a file, and what makes it of one that is there and good.
type Spoils = (&'static str, fn(&Path));

/// All that can be wrong with the file of a snapshot.
fn spoilt() -> Vec<Spoils> {
    fn change(path: &Path, from: &str, to: &str) {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    }
    fn instead(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) {
        fs::remove_file(path).unwrap();
        make(path).unwrap();
    }
    vec![
        ("empty", |path| fs::write(path, "").unwrap()),
        ("cut off", |path| {
            let len = fs::metadata(path).unwrap().len();
            fs::File::options().write(true).open(path).unwrap().set_len(len / 2).unwrap();
        }),
        ("not text", |path| fs::write(path, [0xff; 100]).unwrap()),
        ("of a later version", |path| change(path, "\"template_layers\"", "\"colour\":1,\"template_layers\"")),
        ("of another snapshot", |path| {
            let id = id_in(path);
            change(path, &id.to_string(), &SnapshotId::random().to_string());
        }),
        ("not durable", |path| change(path, "\"durable\":true", "\"durable\":false")),
        ("of a layer that cannot be", |path| change(path, "\"layers\":[{\"id\":\"", "\"layers\":[{\"id\":\"../")),
        ("of a layer that is not there", |path| {
            let text: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            let high = text["layers"][1]["id"].as_str().unwrap().to_owned();
            change(path, &high, &LayerId::random().to_string());
        }),
        ("of no layer", |path| {
            let mut text: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            text["layers"] = serde_json::json!([]);
            fs::write(path, text.to_string()).unwrap();
        }),
        ("too long", |path| {
            let spaces = " ".repeat(1 << 20);
            change(path, "{", &format!("{spaces}{{"));
        }),
        ("a directory", |path| instead(path, |path| fs::create_dir(path))),
        ("a FIFO", |path| {
            instead(path, |path| {
                let mode = rustix::fs::Mode::from_raw_mode(0o600);
                Ok(rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)?)
            });
        }),
        ("a link", |path| {
            fs::copy(path, path.with_extension("real")).unwrap();
            instead(path, |path| std::os::unix::fs::symlink(path.with_extension("real"), path));
        }),
    ]
}

fn id_in(path: &Path) -> SnapshotId {
    path.file_stem().unwrap().to_str().unwrap().parse().unwrap()
}

#[test]
fn a_file_that_cannot_be_read_is_in_the_way_of_its_snapshot_alone() {
    for (what, spoil) in spoilt() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().to_owned();
        let mut snapshots = empty(&state);
        let [low, high, other] = [(); 3].map(|()| LayerId::random());
        let (bad, good) = (durable(&mut snapshots, &[low, high]), durable(&mut snapshots, &[low, other]));
        spoil(&snapshots.file(bad));

        let mut snapshots = Snapshots::open_at(dir.clone()).unwrap();
        let (list, set_aside, more) = snapshots.list(None);
        assert_eq!((list.len(), list[0].id, set_aside, more), (1, good, vec![bad], false), "{what}");
        assert_eq!(snapshots.get(good).unwrap().1, [low, other]);
        assert_eq!(snapshots.get(bad).unwrap_err().code, Code::StoreUnavailable, "{what}");
        assert_eq!(snapshots.may_add(bad, 1).unwrap_err().code, Code::Conflict);
        assert_eq!(snapshots.add(info(bad, 1), vec![low], Vec::new()).unwrap_err().code, Code::Conflict);
        let found = files::set_aside(&dir.join("no")).unwrap();
        assert!(found.is_empty(), "where there is nothing, nothing is wrong");

        // Whatever becomes of the others, no layer goes that it may name: of its own and of its template.
        snapshots.remove(good).unwrap();
        assert!(snapshots.collect(&BTreeSet::new()).is_empty());
        assert!([low, high, other].iter().all(|layer| snapshots.layer_dir(*layer).is_dir()), "{what}");
        assert!(snapshots.take_gone().is_empty());
        assert!(snapshots.has_template_layer("sha256:bb"));
        // What was made since then it cannot name.
        let late = durable(&mut snapshots, &[LayerId::random()]);
        let layer = snapshots.get(late).unwrap().1[0];
        snapshots.remove(late).unwrap();
        snapshots.collect(&BTreeSet::new());
        assert!(!snapshots.layer_dir(layer).exists());

        // The next start finds it all as it is, and its user may let go of it.
        let mut snapshots = Snapshots::open_at(dir.clone()).unwrap();
        assert!([low, high, other].iter().all(|layer| snapshots.layer_dir(*layer).is_dir()), "{what}");
        if what == "a directory" {
            assert_eq!(snapshots.remove(bad).unwrap_err().code, Code::StoreUnavailable);
            continue;
        }
        snapshots.remove(bad).unwrap();
        assert_eq!(snapshots.remove(bad).unwrap_err().code, Code::NotFound);
        assert_eq!(snapshots.get(bad).unwrap_err().code, Code::NotFound);
        let snapshots = Snapshots::open_at(dir).unwrap();
        assert!([low, high, other].iter().all(|layer| !snapshots.layer_dir(*layer).exists()), "{what}");
        assert!(!snapshots.has_template_layer("sha256:bb"));
    }
}

#[test]
fn a_file_that_is_whole_again_is_a_snapshot_again() {
    let state = tempfile::tempdir().unwrap();
    let mut snapshots = empty(&state);
    let chain = [(); 2].map(|()| LayerId::random());
    let id = durable(&mut snapshots, &chain);
    let file = snapshots.file(id);
    let text = fs::read(&file).unwrap();
    fs::write(&file, &text[..text.len() - 1]).unwrap();
    // One that is not named as a snapshot may be one that was.
    let snapshots = Snapshots::open_at(state.path().to_owned()).unwrap();
    assert!(snapshots.get(id).is_err());
    fs::rename(&file, state.path().join("backup.json")).unwrap();
    let snapshots = Snapshots::open_at(state.path().to_owned()).unwrap();
    assert_eq!(snapshots.list(None), (Vec::new(), Vec::new(), false));
    assert!(chain.iter().all(|layer| snapshots.layer_dir(*layer).is_dir()));
    fs::remove_file(state.path().join("backup.json")).unwrap();
    fs::write(&file, &text).unwrap();
    let snapshots = Snapshots::open_at(state.path().to_owned()).unwrap();
    assert_eq!(snapshots.get(id).unwrap().1, chain);
}

#[test]
fn pages_have_both_kinds_in_the_order_of_their_ids() {
    let state = tempfile::tempdir().unwrap();
    let mut snapshots = empty(&state);
    let layer = LayerId::random();
    let mut bad = BTreeSet::new();
    for number in 0..2 * SNAPSHOTS_MAX + 50 {
        let id = durable(&mut snapshots, &[layer]);
        if number % 3 == 0 {
            fs::write(snapshots.file(id), "").unwrap();
            bad.insert(id);
        }
    }
    let snapshots = Snapshots::open_at(state.path().to_owned()).unwrap();
    let (mut after, mut pages) = (None, 0);
    let (mut good_seen, mut bad_seen) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let (list, set_aside, more) = snapshots.list(after);
        pages += 1;
        assert!(list.len() + set_aside.len() <= SNAPSHOTS_MAX);
        let ids: Vec<SnapshotId> = list.iter().map(|info| info.id).collect();
        after = ids.last().max(set_aside.last()).copied();
        good_seen.extend(ids);
        bad_seen.extend(set_aside);
        if !more {
            break;
        }
    }
    assert_eq!((pages, good_seen.len() + bad_seen.len(), bad_seen), (3, 2 * SNAPSHOTS_MAX + 50, bad));
}
