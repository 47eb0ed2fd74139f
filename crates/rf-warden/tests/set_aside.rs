//! A snapshot whose file in the warden's state cannot be read, on the real kernel.

mod support;

use std::fs;

use rf_types::{Code, SandboxId, SandboxSpec};
use rf_wire::warden::Order;
use support::{Warden, eventually};

#[test]
fn a_warden_starts_beside_a_file_that_is_cut_off_and_keeps_every_layer() {
    let mut warden = Warden::start();
    let mut server = warden.connect();
    let spec = SandboxSpec::standard(600_000);
    let source = server.create(&spec);
    source.sh("echo one > ~/file");
    let bad = server.snapshot(source.id()).id;
    source.sh("echo two > ~/file");
    let good = server.snapshot(source.id()).id;
    server.durable(bad);
    server.durable(good);
    let file = warden.state().join(format!("snapshots/{bad}.json"));
    let text = fs::read(&file).unwrap();
    fs::write(&file, &text[..text.len() / 2]).unwrap();

    warden.restart();
    let mut server = warden.connect();
    let (list, set_aside) = server.all_snapshots();
    assert_eq!((list.len(), list[0].id, set_aside), (1, good, vec![bad]));
    for (from, id) in [(Some(bad), None), (Some(bad), Some(SandboxId::random()))] {
        assert_eq!(server.refused(Order::Create { spec: spec.clone(), from, id }), Code::StoreUnavailable);
    }
    let fork = server.create_from(&spec, good);
    assert_eq!(fork.sh("cat ~/file"), "two");
    assert_eq!(server.refused(Order::Snapshot { id: fork.id(), snapshot: bad }), Code::Conflict);
    assert!(warden.log().contains(&bad.to_string()), "{}", warden.log());
    // What stands on the same layers goes; they stay.
    server.done(Order::Destroy { id: fork.id() });
    server.done(Order::RemoveSnapshot { snapshot: good });

    // Whole again, it is the snapshot that it was.
    fs::write(&file, text).unwrap();
    warden.restart();
    let mut server = warden.connect();
    let fork = server.create_from(&spec, bad);
    assert_eq!(fork.sh("cat ~/file"), "one");
    server.done(Order::Destroy { id: fork.id() });
    server.done(Order::RemoveSnapshot { snapshot: bad });
    let kept = warden.state().join("snapshots/kept");
    eventually("the layers are gone", || fs::read_dir(&kept).unwrap().count() == 0);
    warden.stop();
}
