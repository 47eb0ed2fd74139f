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
