//! Generated lives of a sandbox: whatever happens in whatever order, nothing is served after its end, the warden is
//! told to destroy at most once for each time it made one, and the end is told exactly once.

use proptest::prelude::*;
use rf_places::life::{Effect, Event, Phase, step};

/// What comes from outside, at whatever moment.
const FROM_OUTSIDE: [Event; 6] = [
    Event::LeasePassed,
    Event::DestroyAsked,
    Event::InitBroken,
    Event::WardenSaysGone,
    Event::WardenLost,
    Event::WardenSaysPaused,
];

/// What ends a step that somebody began, whenever it ends.
const ENDS_OF_STEPS: [(Phase, [Event; 2]); 4] = [
    (Phase::Pausing, [Event::Frozen, Event::PauseFailed]),
    (Phase::Resuming, [Event::Thawed, Event::ResumeFailed]),
    (Phase::Saving, [Event::Saved, Event::SaveFailed]),
    (Phase::Rebuilding, [Event::Rebuilt, Event::RebuildFailed]),
];

#[test]
fn no_step_leads_back_from_the_end_and_only_our_own_mistakes_are_refused() {
    let order = |phase: Phase| match phase {
        Phase::Starting => 0,
        Phase::Stopping => 2,
        Phase::Gone => 3,
        there => {
            assert!(there.is_there());
            1
        }
    };
    for phase in Phase::ALL {
        for event in Event::ALL {
            if let Ok((next, _)) = step(phase, event) {
                assert!(order(next) >= order(phase), "{phase:?} {event:?} {next:?}");
            }
        }
        // What comes from outside may come at any time once the sandbox is there, and for ever after.
        if phase != Phase::Starting {
            for event in FROM_OUTSIDE {
                assert!(step(phase, event).is_ok(), "{phase:?} {event:?}");
            }
        }
    }
}

#[test]
fn a_step_that_was_begun_can_end_wherever_what_came_between_led() {
    for (begun, ends) in ENDS_OF_STEPS {
        // All that can be reached from there without its own end.
        let mut reached = vec![begun];
        let mut at = 0;
        while let Some(phase) = reached.get(at).copied() {
            at += 1;
            for event in FROM_OUTSIDE.into_iter().chain([Event::Destroyed]) {
                if let Ok((next, _)) = step(phase, event)
                    && !reached.contains(&next)
                {
                    reached.push(next);
                }
            }
        }
        for phase in reached {
            assert!(phase == begun || matches!(phase, Phase::Stopping | Phase::Gone), "{begun:?} {phase:?}");
            for end in ends {
                assert!(step(phase, end).is_ok(), "{phase:?} {end:?}");
            }
        }
    }
}

#[test]
fn nothing_paused_is_served_and_what_is_stored_outlives_the_warden() {
    for phase in Phase::ALL {
        for event in Event::ALL {
            let Ok((next, effect)) = step(phase, event) else { continue };
            if effect == Effect::Serve {
                assert_eq!(next, Phase::Running);
            }
            if next == Phase::Running && phase != Phase::Running {
                assert_eq!(effect, Effect::Serve, "{phase:?} {event:?}");
            }
            if matches!(phase, Phase::Stored | Phase::Rebuilding) && FROM_OUTSIDE.contains(&event) {
                assert!(next == phase || event == Event::DestroyAsked, "{phase:?} {event:?}");
            }
        }
    }
}

proptest! {
    // A failure prints its seed and the shortest life that shows it.
    #[test]
    fn a_life_ends_once(lives in prop::collection::vec(prop::sample::select(Event::ALL.to_vec()), 1..80)) {
        let mut phase = Phase::Starting;
        let (mut made, mut destroyed, mut stored, mut ended) = (0, 0, 0, 0);
        for event in lives {
            // A refused event is logged and changes nothing.
            let Ok((next, effect)) = step(phase, event) else { continue };
            prop_assert!(!(ended > 0 && effect != Effect::Nothing), "{phase:?} {event:?} {effect:?}");
            match effect {
                Effect::Serve => {
                    prop_assert!(matches!(
                        phase,
                        Phase::Starting | Phase::Pausing | Phase::Resuming | Phase::Rebuilding
                    ));
                    made += usize::from(matches!(phase, Phase::Starting | Phase::Rebuilding));
                }
                Effect::Shut | Effect::Rest => prop_assert!(next.is_there() && next != Phase::Running),
                Effect::Store => {
                    prop_assert_eq!((phase, next), (Phase::Saving, Phase::Stored));
                    stored += 1;
                }
                Effect::Destroy => {
                    // One that was made and not yet served counts as well.
                    made += usize::from(matches!(phase, Phase::Starting | Phase::Stopping));
                    destroyed += 1;
                }
                Effect::End => {
                    prop_assert!(phase.is_there() && !matches!(phase, Phase::Stored | Phase::Rebuilding));
                    ended += 1;
                }
                Effect::EndRow => {
                    prop_assert!(matches!(phase, Phase::Stopping | Phase::Stored));
                    ended += 1;
                }
                Effect::Nothing => {}
            }
            phase = next;
            prop_assert!(ended <= 1);
            // Whatever runs was made once more than it was taken away.
            prop_assert!(destroyed + stored <= made, "{destroyed} {stored} {made}");
        }
        if phase == Phase::Running {
            prop_assert_eq!((made, destroyed, ended), (stored + 1, 0, 0));
        }
    }
}
