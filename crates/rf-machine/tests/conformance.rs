//! A joined machine does what every place does: the suite that sandboxes run too, over a real WebSocket.

mod common;

use rf_testkit::conformance;
use rf_wire::machine::Level;

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_at_level_workspace_conforms() {
    let joined = common::Joined::start(Level::Workspace).await;
    conformance::run(joined.place().await, joined.user).await;
    joined.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_at_level_full_conforms() {
    let joined = common::Joined::start(Level::Full).await;
    conformance::run(joined.place().await, joined.user).await;
    joined.stop().await;
}
