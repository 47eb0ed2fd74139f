//! A machine whose server is away: it tries again, each time after twice as long, up to a bound, and never gives up.

mod common;

use std::time::{Duration, Instant};

use common::Joined;
use rf_machine::JoinEvent;
use rf_testkit::machines::within;
use rf_wire::machine::Level;

/// As `common::arguments` has them.
const LEAST: Duration = Duration::from_millis(20);
const MOST: Duration = Duration::from_millis(200);

/// The next connection that could not be had: how long the machine waits until it tries again.
async fn retry(joined: &mut Joined) -> Duration {
    loop {
        match within(joined.events.recv()).await.unwrap() {
            JoinEvent::Disconnected { retry_in, .. } => return retry_in,
            JoinEvent::Connected { .. } => panic!("nobody is there"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn waits_grow_up_to_a_bound_and_begin_anew_after_a_connection() {
    let mut joined = Joined::start(Level::Workspace).await;
    for round in 0..2 {
        joined.server.set_open(false);
        joined.server.cut();
        let mut wait = LEAST;
        for turn in 0..7 {
            let begun = Instant::now();
            let told = retry(&mut joined).await;
            // Between half of it and all: machines that lost one server do not come back all at once.
            assert!(wait / 2 <= told && told <= wait, "round {round}, turn {turn}: {told:?} of {wait:?}");
            wait = (wait * 2).min(MOST);
            if turn > 0 {
                // What was told the turn before was waited for: at least half of the wait before this one.
                assert!(begun.elapsed() >= wait / 8, "round {round}, turn {turn}: only {:?}", begun.elapsed());
            }
        }
        assert_eq!(wait, MOST, "the control: it came to the bound");
        joined.server.set_open(true);
        let event = loop {
            match within(joined.events.recv()).await.unwrap() {
                JoinEvent::Disconnected { .. } => {}
                event => break event,
            }
        };
        assert!(matches!(event, JoinEvent::Connected { .. }), "{event:?}");
    }
    joined.stop().await;
}
