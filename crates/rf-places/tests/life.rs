//! Generated lives of a sandbox: whatever happens in whatever order, nothing is served after its end, the warden is
//! told to destroy at most once, and the end is told exactly once.

use proptest::prelude::*;
use rf_places::life::{Effect, Event, Phase, step};

const EVENTS: [Event; 8] = [
    Event::Made,
    Event::MakeFailed,
    Event::LeasePassed,
    Event::DestroyAsked,
    Event::InitBroken,
    Event::WardenSaysGone,
    Event::WardenLost,
    Event::Destroyed,
];

#[test]
fn no_step_leads_back_and_only_our_own_mistakes_are_refused() {
    let order = |phase| match phase {
        Phase::Starting => 0,
        Phase::Running => 1,
        Phase::Stopping => 2,
        Phase::Gone => 3,
    };
    for phase in [Phase::Starting, Phase::Running, Phase::Stopping, Phase::Gone] {
        for event in EVENTS {
            if let Ok((next, _)) = step(phase, event) {
                assert!(order(next) >= order(phase), "{phase:?} {event:?} {next:?}");
            }
        }
        // What comes from outside may come at any time once the sandbox runs, and for ever after.
        if phase != Phase::Starting {
            for event in [Event::LeasePassed, Event::DestroyAsked, Event::InitBroken, Event::WardenLost] {
                assert!(step(phase, event).is_ok(), "{phase:?} {event:?}");
            }
        }
    }
}

proptest! {
    // A failure prints its seed and the shortest life that shows it.
    #[test]
    fn a_life_ends_once(lives in prop::collection::vec(prop::sample::select(EVENTS.to_vec()), 1..40)) {
        let mut phase = Phase::Starting;
        let (mut served, mut destroyed, mut ended) = (0, 0, 0);
        for event in lives {
            // A refused event is logged and changes nothing.
            let Ok((next, effect)) = step(phase, event) else { continue };
            match effect {
                Effect::Serve => {
                    prop_assert_eq!(phase, Phase::Starting);
                    served += 1;
                }
                Effect::Destroy => destroyed += 1,
                Effect::End => {
                    prop_assert_eq!(phase, Phase::Running);
                    ended += 1;
                }
                Effect::EndRow => {
                    prop_assert_eq!(phase, Phase::Stopping);
                    ended += 1;
                }
                Effect::Nothing => {}
            }
            phase = next;
            prop_assert!(served <= 1 && destroyed <= 1 && ended <= 1);
        }
        if phase == Phase::Gone && served == 1 {
            prop_assert_eq!(ended, 1);
        }
        if phase == Phase::Running {
            prop_assert_eq!((served, destroyed, ended), (1, 0, 0));
        }
    }
}
