//! Groups of version 1 made before somebody waits for them.
//!
//! Making a sandbox's groups and setting their limits takes a tenth of its launch, most of it the kernel's tables of the
//! memory controller. While one launch is under way the warden has nothing to do, so it makes those of the next one
//! then: empty, limited as most sandboxes are, and under a name of their own. A launch renames them; no process was ever
//! in one. Groups of version 2 cannot be renamed (cgroup-v2 document), so these are made when they are needed.

use std::{fs, os::fd::OwnedFd};

use rf_types::Limits;

use super::{CgroupError, Controller, Group, Hierarchies};

/// Groups of version 1 in which no process has been. Dropped, they are removed.
#[derive(Debug)]
pub struct Ahead {
    group: Group,
    given: Given,
    taken: bool,
}

/// What groups that were made ahead have already.
#[derive(Debug)]
pub(super) struct Given {
    limits: Limits,
    entrances: Vec<OwnedFd>,
}

impl Hierarchies {
    /// Makes what the next sandbox needs, limited as most are; nothing on a host where a limit is not of version 1.
    ///
    /// # Errors
    /// The path that could not be made or written; what was made is removed again.
    pub fn ahead(&self) -> Result<Option<Ahead>, CgroupError> {
        /// Not the name of a sandbox, and one at a time. What a killed warden left is swept by the next.
        const NAME: &str = "next";
        let limited = [&self.memory, &self.pids, &self.cpu];
        if !limited.iter().all(|controller| matches!(controller, Some(Controller::V1(_)))) {
            return Ok(None);
        }
        let hierarchies = Self { v2: None, io: None, ..self.clone() };
        let group = Group { name: NAME.to_owned(), hierarchies, v2_fd: None, given: None };
        let given = Given { limits: Limits::STANDARD, entrances: Vec::new() };
        // From here on whatever fails is removed.
        let mut ahead = Ahead { group, given, taken: false };
        ahead.group.make(None, None)?;
        ahead.group.limit(&ahead.given.limits, None)?;
        ahead.given.entrances = ahead.group.entrances()?;
        Ok(Some(ahead))
    }
}

impl Ahead {
    /// Gives them the name of `group`, whose they are then.
    pub(super) fn become_those_of(mut self, group: &Group) -> Result<Given, CgroupError> {
        for root in self.group.hierarchies.roots() {
            let from = root.join(&self.group.name);
            fs::rename(&from, root.join(&group.name)).map_err(CgroupError::at(&from))?;
        }
        self.taken = true;
        let entrances = std::mem::take(&mut self.given.entrances);
        Ok(Given { limits: self.given.limits, entrances })
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if !self.taken {
            // What has its other name by now is not found. What cannot be removed is swept at the next start.
            let _ = self.group.remove();
        }
    }
}

impl Group {
    /// Sets the limits that its sandbox begins with, and gives the ways into it; see [`Self::limit`] and
    /// [`Self::entrances`].
    ///
    /// # Errors
    /// As those.
    pub fn begin(&mut self, limits: &Limits, device: Option<&str>) -> Result<Vec<OwnedFd>, CgroupError> {
        let of_groups = |limits: &Limits| (limits.memory_bytes_max, limits.tasks_max, limits.cpu_milli_max);
        match self.given.take() {
            Some(given) if device.is_none() && of_groups(&given.limits) == of_groups(limits) => Ok(given.entrances),
            Some(given) => self.limit(limits, device).map(|()| given.entrances),
            None => self.limit(limits, device).and_then(|()| self.entrances()),
        }
    }
}
