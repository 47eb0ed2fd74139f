//! Which sandbox signed a link that does not name it. The signature is a hash over the sandbox's token (see
//! [`rf_e2b::signature`]), so nothing in the link leads to it, and all there are must be tried: work that whoever knows the
//! address can ask for.
//!
//! So there is one search at a time, however many ask, and after each there is a rest of nine times as long: all of it is a
//! tenth of one processor at most. Those that signed lately are tried before, without any turn; a link is seldom opened
//! once, or alone. Who is wrong hears the same after the same work, whatever is wrong.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rf_types::{Code, Fault, SandboxId};
use tokio::sync::Semaphore;

/// Sandboxes whose token is tried. Chosen: some milliseconds of work; where more live, such links need the sandbox's name
/// in their host.
const SIGNERS_MAX: usize = 4_096;
/// Tokens tried before others get their turn.
const AT_ONCE: usize = 128;
/// Sandboxes that signed lately and are tried by everybody. Chosen: together they cost as much as a request does anyhow.
const LATELY_MAX: usize = 32;
/// Who waits for their search at once. Chosen: the last of them is answered within two seconds when all are tried.
const WAITING_MAX: usize = 32;
/// How much longer than a search the rest after it is.
const REST: u32 = 9;
/// The length of a signature: `v1_` and the base64 of 32 bytes.
const SIGNATURE_LEN: usize = 46;

/// Who signed, and whose turn it is to be searched for; clones are the same.
#[derive(Clone, Debug)]
pub struct Signers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    lately: Mutex<VecDeque<SandboxId>>,
    turn: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Default for Signers {
    fn default() -> Self {
        let turn = Arc::new(Semaphore::new(1));
        Self(Arc::new(Shared { lately: Mutex::default(), turn, waiting: AtomicUsize::new(0) }))
    }
}

/// Somebody who waits; counts until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Signers {
    /// The one of `alive` of which `signs` says that the link with this `signature` is its own.
    ///
    /// # Errors
    /// `unsupported` when too many live here; `server_busy` when too many search.
    pub async fn find(
        &self,
        alive: &[SandboxId],
        signature: &str,
        signs: impl Fn(SandboxId) -> bool,
    ) -> Result<Option<SandboxId>, Fault> {
        if alive.len() > SIGNERS_MAX {
            return Err(Fault::new(
                Code::Unsupported,
                format!("more than {SIGNERS_MAX} sandboxes live here, so a link must name its own"),
                "use the sandbox's own host name, or the headers e2b-sandbox-id and e2b-sandbox-port",
            ));
        }
        // What is no signature is nobody's.
        if signature.len() != SIGNATURE_LEN {
            return Ok(None);
        }
        let lately = self.lately().clone();
        if let Some(found) = lately.into_iter().find(|id| signs(*id) && alive.contains(id)) {
            self.remember(found);
            return Ok(Some(found));
        }
        let waiting = self.wait()?;
        let turn = Arc::clone(&self.0.turn).acquire_owned().await;
        drop(waiting);
        let (mut took, mut found) = (Duration::ZERO, None);
        for some in alive.chunks(AT_ONCE) {
            let since = Instant::now();
            found = some.iter().copied().find(|id| signs(*id));
            took += since.elapsed();
            if found.is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
        // Also where it was found: who has one sandbox can sign as many links as they like.
        tokio::spawn(async move {
            tokio::time::sleep(took * REST).await;
            drop(turn);
        });
        if let Some(found) = found {
            self.remember(found);
        }
        Ok(found)
    }

    fn wait(&self) -> Result<Waiting<'_>, Fault> {
        let waiting = &self.0.waiting;
        // Counted first, so that two do not both take the last place.
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(waiting);
        if before < WAITING_MAX {
            return Ok(waiting);
        }
        let hint = "try again in a moment, or name the sandbox in the link's host or in the headers e2b-sandbox-id and \
                    e2b-sandbox-port";
        Err(Fault::new(Code::ServerBusy, "too many links that name no sandbox are looked up", hint))
    }

    fn lately(&self) -> std::sync::MutexGuard<'_, VecDeque<SandboxId>> {
        self.0.lately.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, id: SandboxId) {
        let mut lately = self.lately();
        lately.retain(|other| *other != id);
        lately.push_front(id);
        lately.truncate(LATELY_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: &str = "v1_fCUBbVtCAtYV8eXmwTnO4sRm1GmLsXRaQmYElTTnX+g";

    fn all(count: u128) -> Vec<SandboxId> {
        (0..count).map(SandboxId::from_bits).collect()
    }

    /// Searches as one would, and counts what is tried.
    async fn search(
        signers: &Signers,
        alive: &[SandboxId],
        own: Option<u128>,
    ) -> (Result<Option<SandboxId>, Code>, usize) {
        let tried = AtomicUsize::new(0);
        let found = signers.find(alive, LINK, |id| {
            tried.fetch_add(1, Ordering::Relaxed);
            own.is_some_and(|own| id == SandboxId::from_bits(own))
        });
        (found.await.map_err(|fault| fault.code), tried.into_inner())
    }

    #[tokio::test]
    async fn the_one_that_signed_is_found_and_found_again_at_once() {
        let (signers, alive) = (Signers::default(), all(1_000));
        assert_eq!(search(&signers, &alive, Some(999)).await, (Ok(Some(SandboxId::from_bits(999))), 1_000));
        assert_eq!(search(&signers, &alive, Some(999)).await, (Ok(Some(SandboxId::from_bits(999))), 1));
        // One that is gone is nobody's, as if it had never been there.
        assert_eq!(search(&signers, &alive[..999], Some(999)).await, (Ok(None), 1_000));
        assert_eq!(search(&signers, &alive, None).await, (Ok(None), 1_001));
    }

    #[tokio::test]
    async fn what_is_no_signature_costs_nothing() {
        let signers = Signers::default();
        for none in ["", "v1_x", &format!("{LINK}="), &LINK.repeat(100)] {
            let found = signers.find(&all(10), none, |_| panic!("nothing is tried")).await;
            assert_eq!(found, Ok(None), "{none}");
        }
    }

    #[tokio::test]
    async fn however_many_ask_it_is_a_tenth_of_the_time() {
        let (signers, alive) = (Signers::default(), all(256));
        let busy = Mutex::new(Duration::ZERO);
        let slow = |_| {
            let since = Instant::now();
            while since.elapsed() < Duration::from_micros(20) {}
            *busy.lock().unwrap() += since.elapsed();
            false
        };
        let since = Instant::now();
        let asked = (0..100).map(|_| signers.find(&alive, LINK, slow));
        let answers = futures::future::join_all(asked).await;
        let refused =
            answers.iter().filter(|answer| answer.as_ref().is_err_and(|f| f.code == Code::ServerBusy)).count();
        // One searches, and others wait; nobody waits without a bound.
        assert!((100 - WAITING_MAX - 1..=100 - WAITING_MAX).contains(&refused), "{refused}");
        assert!(answers.iter().all(|answer| answer.is_err() || *answer == Ok(None)));
        // The rest after the last one is nobody's wait.
        let (all, busy) = (since.elapsed(), busy.into_inner().unwrap());
        assert!(busy * 8 < all, "{busy:?} of {all:?}");
        // And then there is room again.
        assert_eq!(search(&signers, &alive, Some(3)).await.0, Ok(Some(SandboxId::from_bits(3))));
    }

    #[tokio::test]
    async fn more_than_can_be_tried_is_refused() {
        let alive = all(SIGNERS_MAX as u128 + 1);
        assert_eq!(search(&Signers::default(), &alive, Some(1)).await, (Err(Code::Unsupported), 0));
        assert!(search(&Signers::default(), &alive[1..], Some(1)).await.0.is_ok());
    }
}
