//! Directories above a file that is to be written where its user may not make any, such as below `/`: made as `root` of the
//! sandbox and given to the user, as these clients expect. Where the sandbox's user may not be root, they are not made.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use rf_places::place::Place;
use rf_policy::Action;
use rf_types::{ExecId, ExecSpec, Program, Rlimits};

use super::Asked;
use crate::operation::Ask;

/// `$1` is the directory, `$2` whose it will be. What is there stays as it is.
const SCRIPT: &str = r#"
make() {
    [ -d "$1" ] && return 0
    make "$(dirname -- "$1")" "$2" && mkdir -m 755 -- "$1" && chown -- "$2:" "$1"
}
make "$1" "$2"
"#;
/// The user of a sandbox for whom nobody named another.
const DEFAULT_USER: &str = "user";
/// Longest time that this may take, milliseconds. Chosen.
const TIME_MS: u64 = 10_000;
/// Deepest path. Chosen: each step is a process.
const DEPTH_MAX: usize = 64;

/// Makes the directories above `path`; whether they are there now.
pub(super) async fn make(asked: &Asked, path: &str, user: Option<&str>) -> bool {
    let Some((above, _)) = path.rsplit_once('/').filter(|(above, _)| above.starts_with('/')) else { return false };
    let root_allowed = asked.target.row(&asked.app).is_ok_and(|row| row.spec.root_allowed);
    if !root_allowed || above.split('/').count() > DEPTH_MAX {
        return false;
    }
    let (app, user) = (&asked.app, user.unwrap_or(DEFAULT_USER));
    let spec = ExecSpec {
        program: Program::Argv(["/bin/sh", "-c", SCRIPT, "sh", above, user].map(str::to_owned).to_vec()),
        env: BTreeMap::new(),
        no_language: false,
        cwd: Some("/".to_owned()),
        user: Some("root".to_owned()),
        pty: None,
        stdin: false,
        timeout_ms: Some(TIME_MS),
        rlimits: Rlimits::default(),
    };
    let exec = ExecId::random();
    let ask = Ask::of(Action::Exec)
        .place(asked.place())
        .subject(exec)
        .detail("command_of", "directories above a file")
        .detail("paths", vec![app.redactor().text(above, &[])])
        .detail("as", "root");
    let judged = app.claim_exec(&asked.caller, true);
    // Not let: then it stays what it was for the user alone.
    let Ok((mut operation, claim)) = app.begin_judged(&asked.caller, ask, judged).await else { return false };
    let place: Arc<dyn Place> = Arc::clone(&asked.target.place) as Arc<dyn Place>;
    let run = async { app.places().execs().run(claim, &place, exec, &spec).await?.collect(Bytes::new(), 0, 0).await };
    let result = run.await;
    if let Ok(done) = &result {
        operation.set_exit(&done.exit);
    }
    operation.finish(result).await.is_ok_and(|done| done.exit.code == Some(0))
}
