//! Inits and wardens that die or break the rules: every caller gets a typed error, and the sandbox is destroyed.

mod support;

use std::time::Duration;

use bytes::Bytes;
use rf_places::{EndedWhy, FileAnswer};
use rf_policy::Action;
use rf_types::{Code, ExecId, ExecState, FileOp};
use rf_wire::warden::GoneWhy;
use support::{Behaviour, Field, claim_exec, id_of, permit_of, sandbox, shell, spec_of, until, user};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_init_that_breaks_the_rules_loses_its_sandbox_and_nothing_else() {
    for behaviour in [
        Behaviour::DiesOnSpawn,
        Behaviour::Short,
        Behaviour::OtherVersion,
        Behaviour::ExtraFds,
        Behaviour::NoFds,
        Behaviour::WrongFds,
        Behaviour::FileFds,
        Behaviour::UnknownTag,
        Behaviour::OtherExec,
        Behaviour::WrongKind,
        Behaviour::EndlessNews,
    ] {
        let field = Field::new();
        let places = field.places().await;
        let sound = sandbox(&places, user(1)).await;
        field.warden.behave(behaviour);
        let place = sandbox(&places, user(1)).await;
        let id = id_of(&place);
        let exec = ExecId::random();
        let run = places.execs().run(claim_exec(&places, user(1)), &place, exec, &spec_of(&["true"])).await;
        assert_eq!(run.err().unwrap().code, Code::PlaceLost, "{behaviour:?}");
        // It may have started, so the id stays used.
        assert_eq!(places.execs().info(user(1), exec).unwrap().state, ExecState::Lost, "{behaviour:?}");
        until(|| places.sandboxes().get(user(1), id).is_err() && !field.warden.alive().contains(&id)).await;
        let why = if behaviour == Behaviour::DiesOnSpawn { EndedWhy::InitDied } else { EndedWhy::Broken };
        until(|| field.rows.ended.lock().unwrap().contains(&(id, why))).await;
        until(|| places.usage(user(1)).sandboxes == 1).await;
        let claim = claim_exec(&places, user(1));
        let run = places.execs().run(claim, &sound, ExecId::random(), &spec_of(&["true"])).await.unwrap();
        assert_eq!(run.collect(Bytes::new(), 10, 10).await.unwrap().exit.code, Some(0), "{behaviour:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_init_that_dies_ends_its_execs_at_once() {
    let field = Field::new();
    let places = field.places().await;
    for tell in [None, Some(GoneWhy::InitDied)] {
        let place = sandbox(&places, user(1)).await;
        let id = id_of(&place);
        let claim = claim_exec(&places, user(1));
        let run = places.execs().run(claim, &place, ExecId::random(), &shell("sleep 1000")).await.unwrap();
        let background = ExecId::random();
        let claim = claim_exec(&places, user(1));
        places.execs().run_background(claim, &place, background, &shell("sleep 1000")).await.unwrap();
        field.warden.kill_init(id, tell);
        assert_eq!(run.collect(Bytes::new(), 10, 10).await.unwrap_err().code, Code::PlaceLost);
        let state = places.execs().wait(&permit_of(user(1), Action::ExecRead), background).await.unwrap();
        assert_eq!(state, ExecState::Lost);
        until(|| field.rows.ended.lock().unwrap().contains(&(id, EndedWhy::InitDied))).await;
        let claim = claim_exec(&places, user(1));
        let late = places.execs().run(claim, &place, ExecId::random(), &shell("true")).await;
        assert_eq!(late.err().unwrap().code, Code::PlaceLost);
    }
    assert_eq!(places.usage(user(1)).execs, 0);
}

#[tokio::test(start_paused = true)]
async fn a_silent_init_is_a_time_out_first_and_lost_later() {
    // The clock jumps when nothing is under way, and the fakes' threads are unknown to it: so by hand.
    tokio::time::resume();
    let field = Field::new();
    let places = field.places().await;
    field.warden.behave(Behaviour::Silent);
    let place = sandbox(&places, user(1)).await;
    let id = id_of(&place);
    tokio::time::pause();
    let claim = claim_exec(&places, user(1));
    let run = places.execs().run(claim, &place, ExecId::random(), &spec_of(&["true"])).await;
    assert_eq!(run.err().unwrap().code, Code::TimedOut);
    // Late, but not yet given up.
    assert!(places.sandboxes().get(user(1), id).is_ok());
    tokio::time::sleep(rf_places::PING_TIME + Duration::from_secs(1)).await;
    tokio::time::resume();
    until(|| places.sandboxes().get(user(1), id).is_err() && field.warden.alive().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_helper_that_breaks_the_rules_fails_its_operation_only() {
    for behaviour in [Behaviour::BadFiles, Behaviour::PipeForFile] {
        let field = Field::new();
        let places = field.places().await;
        field.warden.behave(behaviour);
        let place = sandbox(&places, user(1)).await;
        let op = FileOp::Read { path: "/etc/passwd".into(), offset: 0, length: None };
        let read = place.file(&permit_of(user(1), Action::FileRead), &op, None).await;
        assert!(!matches!(read, Ok(FileAnswer::Content { .. })));
        assert_eq!(read.err().unwrap().code, Code::FileFailed, "{behaviour:?}");
        let claim = claim_exec(&places, user(1));
        let run = places.execs().run(claim, &place, ExecId::random(), &spec_of(&["true"])).await.unwrap();
        assert_eq!(run.collect(Bytes::new(), 10, 10).await.unwrap().exit.code, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_warden_callers_are_told_and_with_a_new_one_all_works_again() {
    let mut field = Field::new();
    let places = field.places().await;
    let place = sandbox(&places, user(1)).await;
    let id = id_of(&place);
    let claim = claim_exec(&places, user(1));
    let run = places.execs().run(claim, &place, ExecId::random(), &shell("sleep 1000")).await.unwrap();
    field.warden.die();
    assert_eq!(run.collect(Bytes::new(), 10, 10).await.unwrap_err().code, Code::PlaceLost);
    until(|| !field.rows.ended.lock().unwrap().is_empty()).await;
    assert_eq!(*field.rows.ended.lock().unwrap(), [(id, EndedWhy::WardenRestarted)]);
    until(|| !places.is_ready()).await;
    let status = places.warden().status().await;
    assert_eq!(status.unwrap_err().code, Code::WardenUnavailable);
    assert_eq!(places.usage(user(1)).sandboxes, 0);
    field.warden.listen();
    places.ready().await;
    let place = sandbox(&places, user(1)).await;
    let claim = claim_exec(&places, user(1));
    let run = places.execs().run(claim, &place, ExecId::random(), &spec_of(&["true"])).await.unwrap();
    assert_eq!(run.collect(Bytes::new(), 10, 10).await.unwrap().exit.code, Some(0));
}
