//! Joining: who is let in, once, by what proof; and what hostile peers get.

mod common;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::{Joined, Machine, TOKEN, arguments};
use futures::{SinkExt, StreamExt};
use rf_machine::{JoinError, JoinEvent, join};
use rf_places::place::Place;
use rf_policy::Action;
use rf_testkit::{
    machines::{MachineServer, TestKey as Key, Wire, within},
    permits::permit,
};
use rf_types::{Code, FileOp, UserId};
use rf_wire::machine::{
    Bye, Challenge, Facts, Frame, Hello, Level, MESSAGE_MAX, Proof, VERSION, Welcome, encode, encode_ack, encode_json,
    kind, proof_message,
};
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread")]
async fn a_token_joins_once_and_the_key_from_then_on() {
    let mut joined = Joined::start(Level::Workspace).await;
    let place = joined.place().await;
    assert_eq!(place.facts().level, Level::Workspace);
    assert_eq!(place.facts().workspace, joined.workspace().to_str().unwrap());
    assert_eq!(joined.server.authority.enrolments(), 1);
    // Again without a token: by its key, as the same machine.
    joined.restart_machine().await;
    let again = within(async {
        loop {
            let again = joined.place().await;
            if !Arc::ptr_eq(&again, &place) {
                return again;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(again.machine(), place.machine());
    assert_eq!(joined.server.authority.enrolments(), 1);
    // With another token, be it another user's: still that machine, and its owner is told.
    joined.stop_machine().await;
    joined.server.authority.allow("rfe_another", UserId::random());
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
    let mut args = joined.arguments();
    args.token = Some("rfe_another".to_owned());
    args.report = Box::new(move |event| drop(sender.send(event)));
    joined.machine = Some(Machine::run(args));
    let connected = within(events.recv()).await;
    assert!(matches!(connected, Some(JoinEvent::Connected { resumed: false, .. })), "{connected:?}");
    let told = within(events.recv()).await.unwrap();
    assert!(matches!(told, JoinEvent::TokenUnused { machine } if machine == place.machine()), "{told:?}");
    assert_eq!(joined.server.authority.enrolments(), 1);

    // The used token joins no other machine.
    let other = tempfile::tempdir().unwrap();
    std::fs::create_dir(other.path().join("workspace")).unwrap();
    let mut args = arguments(&joined.server, &other, Level::Workspace);
    args.token = Some(TOKEN.to_owned());
    let error = within(join(args, std::future::pending())).await.unwrap_err();
    assert!(matches!(&error, JoinError::Refused(fault) if fault.code == Code::Unauthenticated), "{error:?}");
    // Nor does nothing at all.
    let error = within(join(arguments(&joined.server, &other, Level::Workspace), std::future::pending())).await;
    assert!(matches!(error, Err(JoinError::NotEnrolled { .. })), "{error:?}");
    joined.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_who_ends_it_is_believed_at_once() {
    // The grace is far longer than this test may take.
    let mut joined = Joined::start_with(Level::Workspace, Duration::from_secs(600)).await;
    let place = joined.place().await;
    let line = rf_types::ExecSpec {
        program: rf_types::Program::Shell("echo $$ > pid; exec sleep 1000".into()),
        env: Default::default(),
        no_language: false,
        cwd: None,
        user: None,
        pty: None,
        stdin: false,
        timeout_ms: None,
        rlimits: Default::default(),
    };
    let exec = rf_types::ExecId::random();
    let spawned = place.spawn(&permit(joined.user, Action::Exec), exec, &line, true).await.unwrap();
    joined.stop_machine().await;
    assert_eq!(within(spawned.exit).await.unwrap_err().code, Code::PlaceLost);
    assert!(joined.server.hub().joined(joined.user).is_none());
    joined.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_is_refused() {
    let mut joined = Joined::start(Level::Workspace).await;
    joined.place().await;
    joined.stop_machine().await;
    let state = joined.directory.path().join("state");
    let directory = std::fs::read_dir(state).unwrap().next().unwrap().unwrap().path();
    std::fs::write(directory.join("key"), "11".repeat(32)).unwrap();
    let error = within(join(joined.arguments(), std::future::pending())).await.unwrap_err();
    assert!(matches!(&error, JoinError::Refused(fault) if fault.code == Code::Unauthenticated), "{error:?}");
    joined.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_machine_is_told_and_ends() {
    let joined = Joined::start(Level::Workspace).await;
    let place = joined.place().await;
    joined.server.authority.forget(place.machine());
    joined.server.hub().remove(place.machine());
    let server_side = within(place.file(
        &permit(joined.user, Action::FileRead),
        &FileOp::Stat { path: ".".into(), follow: true },
        None,
    ))
    .await;
    assert!(server_side.is_err(), "a removed machine serves nothing");
    let error = within(joined.ended()).await.unwrap_err();
    assert!(error.to_string().contains("removed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_machine_joins_again_with_a_new_token() {
    let mut joined = Joined::start(Level::Workspace).await;
    let before = joined.place().await.machine();
    joined.stop_machine().await;
    joined.server.authority.forget(before);
    joined.server.authority.allow("token-two", joined.user);
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
    let mut args = joined.arguments();
    args.token = Some("token-two".to_owned());
    args.report = Box::new(move |event| drop(sender.send(event)));
    joined.machine = Some(Machine::run(args));
    let told = within(events.recv()).await.unwrap();
    assert!(matches!(&told, JoinEvent::Disconnected { reason, .. } if reason.contains("no longer knows")), "{told:?}");
    let JoinEvent::Connected { machine, .. } = within(events.recv()).await.unwrap() else { panic!("it joins") };
    assert_ne!(machine, before);
    assert_eq!(joined.server.authority.enrolments(), 2);
    // Control: removed again, and the token is used up.
    joined.stop_machine().await;
    joined.server.authority.forget(machine);
    let mut args = joined.arguments();
    args.token = Some("token-two".to_owned());
    let error = within(join(args, std::future::pending())).await.unwrap_err();
    assert!(matches!(&error, JoinError::Refused(fault) if fault.code == Code::Unauthenticated), "{error:?}");
    joined.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_connection_of_a_machine_replaces_the_first() {
    let joined = Joined::start(Level::Workspace).await;
    let first = joined.place().await;
    joined.server.cut();
    within(async {
        loop {
            let second = joined.place().await;
            if !Arc::ptr_eq(&first, &second) {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(joined.server.hub().connected_count(), 1);
    joined.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_users_machine_is_no_machine() {
    let joined = Joined::start(Level::Workspace).await;
    let place = joined.place().await;
    let stranger = UserId::random();
    assert!(joined.server.hub().joined(stranger).is_none());
    assert!(joined.server.hub().machine(stranger, place.machine()).is_none());
    let op = FileOp::Stat { path: ".".into(), follow: true };
    let refused = place.file(&permit(stranger, Action::FileRead), &op, None).await;
    assert_eq!(refused.err().unwrap().code, Code::NotFound);
    // Control: its own user.
    assert!(place.file(&permit(joined.user, Action::FileRead), &op, None).await.is_ok());
    joined.stop().await;
}

/// A machine made by hand.
struct Hand {
    wire: Wire,
    challenge: Challenge,
}

fn facts() -> Facts {
    Facts {
        hostname: "h".into(),
        os: "linux".into(),
        kernel: "k".into(),
        arch: "a".into(),
        home: "/h".into(),
        username: "u".into(),
        workspace: "/w".into(),
        level: Level::Full,
        version: "1".into(),
        landlock_abi: 0,
        not_held: Vec::new(),
    }
}

impl Hand {
    async fn dial(server: &MachineServer) -> Self {
        let stream = TcpStream::connect(server.address()).await.unwrap();
        let (socket, _) =
            tokio_tungstenite::client_async(format!("ws://{}/v1/machines/connect", server.address()), stream)
                .await
                .unwrap();
        let mut wire = Wire(socket);
        let message = wire.next().await.unwrap().unwrap();
        let Ok(Frame::Json { kind: kind::CHALLENGE, json }) = Frame::decode(&message) else { panic!("no challenge") };
        let challenge = serde_json::from_slice(json).unwrap();
        Self { wire, challenge }
    }

    fn hello(&self, proof: Proof) -> Hello {
        Hello {
            version_min: VERSION,
            version_max: VERSION,
            origin: "http://x".into(),
            facts: facts(),
            proof,
            resume: None,
        }
    }

    fn enrol(&self, key: &Key, token: &str) -> Hello {
        let public_key = key.public();
        let message = proof_message(&self.challenge, "http://x", &format!("enrol {public_key} {token}"));
        self.hello(Proof::Token { token: token.into(), public_key, signature: key.sign(&message) })
    }

    /// Says hello; the welcome, or why not.
    async fn say(&mut self, hello: &Hello) -> Result<Welcome, Bye> {
        self.wire.send(encode_json(kind::HELLO, hello).into()).await.unwrap();
        let message = within(self.wire.next()).await.unwrap().unwrap();
        match Frame::decode(&message).unwrap() {
            Frame::Json { kind: kind::WELCOME, json } => Ok(serde_json::from_slice(json).unwrap()),
            Frame::Json { kind: kind::BYE, json } => Err(serde_json::from_slice(json).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the server closes; its goodbye, if it said one.
    async fn until_closed(&mut self) -> Option<Bye> {
        let mut bye = None;
        while let Some(Ok(message)) = within(self.wire.next()).await {
            if let Ok(Frame::Json { kind: kind::BYE, json }) = Frame::decode(&message) {
                bye = serde_json::from_slice(json).ok();
            }
        }
        bye
    }
}

/// Attack: send an answer to one challenge on another connection, change what it is for, or sign by another key.
/// Held by: the signature over nonce, server, origin and machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_proof_serves_once_and_for_what_it_says() {
    let server = MachineServer::start(Duration::from_secs(5)).await;
    let user = UserId::random();
    server.authority.allow(TOKEN, user);
    let key = Key::new();
    let mut first = Hand::dial(&server).await;
    let enrolment = first.enrol(&key, TOKEN);
    let machine = first.say(&enrolment).await.expect("control: the first is taken").machine;

    let sign = |hand: &Hand, key: &Key, who: &str| {
        let message = proof_message(&hand.challenge, "http://x", who);
        hand.hello(Proof::Key { machine, signature: key.sign(&message) })
    };
    let mut hand = Hand::dial(&server).await;
    let good = sign(&hand, &key, &machine.to_string());
    assert_eq!(hand.say(&good).await.expect("control: a fresh proof is taken").machine, machine);

    let other = Key::new();
    type Attack<'a> = Box<dyn Fn(&Hand) -> Hello + 'a>;
    let attacks: [(&str, Attack<'_>); 7] = [
        ("replayed", Box::new(|_| good.clone())),
        ("replayed enrolment", Box::new(|_| enrolment.clone())),
        ("another key", Box::new(|hand| sign(hand, &other, &machine.to_string()))),
        ("another machine", Box::new(|hand| sign(hand, &key, "mch_00000000000000000000000000000000"))),
        ("an enrolment's signature", Box::new(|hand| sign(hand, &key, &format!("enrol {} {TOKEN}", key.public())))),
        (
            "another origin",
            Box::new(|hand| Hello { origin: "http://y".into(), ..sign(hand, &key, &machine.to_string()) }),
        ),
        (
            "another server's challenge",
            Box::new(|hand| {
                let mut challenge = hand.challenge.clone();
                challenge.server = "other-server".into();
                let message = proof_message(&challenge, "http://x", &machine.to_string());
                hand.hello(Proof::Key { machine, signature: key.sign(&message) })
            }),
        ),
    ];
    for (name, attack) in &attacks {
        let mut hand = Hand::dial(&server).await;
        let hello = attack(&hand);
        let bye = hand.say(&hello).await.expect_err(name);
        assert_eq!((bye.fault.code, bye.retry), (Code::Unauthenticated, false), "{name}");
    }
    assert_eq!(server.authority.machines(), [machine]);
}

/// Attack: a machine that has proved itself sends what no machine would.
/// Held by: each frame's checks; the session ends, and the next one is as any.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_machine_ends_its_own_session_only() {
    let server = MachineServer::start(Duration::from_secs(5)).await;
    let user = UserId::random();
    let neighbour = Joined::start(Level::Workspace).await;
    let data = |stream: u32, offset: u64, bytes: &[u8]| {
        let mut message = Vec::new();
        rf_wire::machine::data_header(&mut message, kind::DATA, stream, offset);
        message.extend_from_slice(bytes);
        message
    };
    let record = |tag: u8, json: &str| {
        let mut bytes = vec![tag];
        bytes.extend((json.len() as u32).to_le_bytes());
        bytes.extend(json.as_bytes());
        data(0, 0, &bytes)
    };
    let attacks: Vec<Vec<u8>> = vec![
        vec![],
        vec![0],
        vec![99; 100],
        encode(kind::PING, b"x"),
        encode(kind::DATA, b""),
        encode(kind::HELLO, b"{}"),
        encode(kind::WELCOME, b"{}"),
        encode(kind::BYE, b"not json"),
        vec![kind::DATA; MESSAGE_MAX],
        vec![kind::DATA; MESSAGE_MAX + 1],
        encode_ack(0, u64::MAX),
        encode_ack(0, 1 << 40),
        data(0, 1, b"a gap"),
        data(0, u64::MAX, b"x"),
        data(0, 0, &[1, 255, 255, 255, 255]),
        record(7, "{}"),
        record(1, "not json"),
        record(1, "{\"order\":{}}"),
        record(1, &"[".repeat(60_000)),
        record(0, "{\"news\":\"unknown\"}"),
    ];
    for attack in attacks {
        let shown = format!("{:?}", &attack[..attack.len().min(24)]);
        server.authority.allow(TOKEN, user);
        let mut hand = Hand::dial(&server).await;
        let hello = hand.enrol(&Key::new(), TOKEN);
        hand.say(&hello).await.unwrap();
        hand.wire.send(Bytes::from(attack)).await.unwrap();
        hand.until_closed().await;
        within(async {
            while server.hub().joined(user).is_some() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(server.hub().connected_count(), 0, "{shown}");
    }
    // Harmless: bytes and news of streams that are not there, answers to orders that were not given.
    server.authority.allow(TOKEN, user);
    let mut hand = Hand::dial(&server).await;
    let hello = hand.enrol(&Key::new(), TOKEN);
    hand.say(&hello).await.unwrap();
    for harmless in [
        data(77, 0, b"x"),
        data(77, 1 << 50, b"x"),
        encode_ack(77, 5),
        record(1, "{\"answer\":{\"id\":12345,\"answer\":{\"is\":\"done\"}}}"),
    ] {
        hand.wire.send(harmless.into()).await.unwrap();
    }
    let place = server.joined(user).await;
    assert!(place.is_connected());
    // A machine that answers an order with another's answer is not believed.
    let asked = {
        let place = place.clone();
        tokio::spawn(async move {
            let op = FileOp::Stat { path: "x".into(), follow: true };
            place.file(&permit(user, Action::FileRead), &op, None).await.err()
        })
    };
    let id = within(async {
        loop {
            let message = hand.wire.next().await.unwrap().unwrap();
            if let Ok(Frame::Data { stream: 0, bytes, .. }) = Frame::decode(&message) {
                let value: serde_json::Value = serde_json::from_slice(&bytes[5..]).unwrap();
                return value["order"]["id"].as_u64().unwrap();
            }
        }
    })
    .await;
    let sent = "{\"answer\":{\"id\":12345,\"answer\":{\"is\":\"done\"}}}".len() as u64 + 5;
    let json = format!("{{\"answer\":{{\"id\":{id},\"answer\":{{\"is\":\"spawned\",\"pid\":1}}}}}}");
    let mut bytes = vec![1];
    bytes.extend((json.len() as u32).to_le_bytes());
    bytes.extend(json.as_bytes());
    hand.wire.send(data(0, sent, &bytes).into()).await.unwrap();
    assert_eq!(within(asked).await.unwrap().expect("the answer does not fit").code, Code::PlaceLost);

    assert!(neighbour.place().await.is_connected());
    neighbour.stop().await;
}

/// Attack: whoever is not let in learns nothing and holds nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_greeting_that_is_none_is_turned_away() {
    let server = MachineServer::start(Duration::from_secs(5)).await;
    server.authority.allow(TOKEN, UserId::random());
    let key = Key::new();
    type Change = fn(&mut Hello);
    let changes: [(Code, Change); 6] = [
        (Code::Unsupported, |hello| hello.version_min = VERSION + 1),
        (Code::Unsupported, |hello| hello.version_max = 0),
        (Code::InvalidRequest, |hello| hello.facts.hostname = "x".repeat(2000)),
        (Code::InvalidRequest, |hello| hello.facts.hostname = "\u{1b}]0;owned".into()),
        (Code::InvalidRequest, |hello| hello.facts.not_held = vec![String::new(); 17]),
        (Code::Unauthenticated, |hello| {
            if let Proof::Token { signature, .. } = &mut hello.proof {
                signature.truncate(10);
            }
        }),
    ];
    for (code, change) in changes {
        let mut hand = Hand::dial(&server).await;
        let mut hello = hand.enrol(&key, TOKEN);
        change(&mut hello);
        let bye = hand.say(&hello).await.unwrap_err();
        assert_eq!((bye.fault.code, bye.retry), (code, false));
    }
    for junk in [vec![], vec![1, 2, 3], encode(kind::HELLO, b"junk"), encode(kind::PING, b""), vec![2; MESSAGE_MAX]] {
        let mut hand = Hand::dial(&server).await;
        hand.wire.send(junk.into()).await.unwrap();
        assert!(hand.until_closed().await.is_some());
    }
    // Control: the token is still good.
    let mut hand = Hand::dial(&server).await;
    let hello = hand.enrol(&key, TOKEN);
    hand.say(&hello).await.unwrap();
}
