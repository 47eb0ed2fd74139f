//! Making a sandbox: the launch itself, and the way of a sandbox for one exec, whose row is written while that runs.

use std::{os::fd::OwnedFd, sync::Arc};

use rf_policy::Action;
use rf_types::{Fault, SandboxId, SandboxState, UserId};

use super::{EndedWhy, Making, Origin, Phase, SandboxClaim, SandboxRow, Sandboxes, now_ms};
use crate::{quota::Hold, sandbox::SandboxPlace, warden::Created};

/// A sandbox that the warden made and that nobody knows of yet.
pub(super) struct Launched {
    pub(super) row: SandboxRow,
    /// To its init.
    pub(super) socket: OwnedFd,
    pub(super) hold: Hold,
}

impl Sandboxes {
    /// Has the warden make a sandbox. Dropped before its end, what is made is destroyed.
    pub(super) async fn launch(&self, claim: SandboxClaim, making: Making) -> Result<Launched, Fault> {
        let SandboxClaim { permit, spec, hold } = claim;
        let Making { name, default, about, from, repeat: _ } = making;
        let made = self.inner.warden.create_from(spec.clone(), from.as_ref().map(Origin::snapshot), None).await?;
        let Created { id, lease_until, pooled, enforcement, socket } = made;
        let now = now_ms();
        let row = SandboxRow {
            id,
            user: permit.user(),
            name,
            default,
            spec,
            state: SandboxState::Running,
            pause_kind: None,
            paused_at: None,
            saved: None,
            from_snapshot: from.as_ref().and_then(Origin::listed),
            about,
            created_at: now,
            started_at: now,
            lease_until,
            pooled,
            enforcement,
        };
        Ok(Launched { row, socket, hold })
    }

    /// Makes a sandbox for one exec of the caller's, whose row is not written yet: until [`Sandboxes::write_down`] only
    /// the caller knows of it, and a server that is gone by then leaves none, for what has no row is destroyed when the
    /// next one takes over. The caller must destroy it. Dropped before its end, what is made is destroyed.
    ///
    /// # Errors
    /// As for [`Sandboxes::create`].
    pub async fn create_for_one(
        &self,
        claim: SandboxClaim,
        making: Making,
    ) -> Result<(Arc<SandboxPlace>, SandboxRow), Fault> {
        claim.permit.require(Action::SandboxCreate)?;
        if let Some(from) = &making.from {
            from.fits(&claim)?;
        }
        self.ready().await?;
        let Launched { row, socket, hold } = self.launch(claim, making).await?;
        let id = row.id;
        match self.enter(row.clone(), socket, false, Phase::Running, hold) {
            Ok(place) => Ok((place, row)),
            Err(fault) => {
                // Should this fail too, the lease ends it.
                let warden = self.inner.warden.clone();
                tokio::spawn(async move { drop(warden.destroy(id).await) });
                Err(fault)
            }
        }
    }

    /// Writes down a sandbox that was made by [`Sandboxes::create_for_one`].
    ///
    /// # Errors
    /// `store_unavailable`: the caller destroys it.
    pub fn write_down(&self, row: &SandboxRow) -> Result<(), Fault> {
        self.inner.rows.made(row, None)?;
        // It may have ended meanwhile, and its end found no row.
        if !self.is_live(row.user, row.id) {
            self.inner.rows.ended(row.user, row.id, EndedWhy::InitDied);
        }
        Ok(())
    }

    fn is_live(&self, user: UserId, id: SandboxId) -> bool {
        self.live().contains_key(&(user, id))
    }
}
