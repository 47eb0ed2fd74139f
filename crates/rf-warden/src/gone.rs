//! Directories that are to be removed: layers that nobody needs any more, what is left of copies and unpackings that were
//! cut off, and what a former warden did not get to.
//!
//! What is in one is a user's or a stranger's, and may be a million files. So it is renamed, which takes no time and frees
//! its name, to a name of its own that ends in `.gone`; and emptied, one directory at a time, by a process without rights
//! ([`rf_sandbox::keep`]). With the warden's end that process ends; the next warden finds what is left by its name.

use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rf_types::SnapshotId;

/// How often a directory is tried; then it stays until the warden starts again. Chosen.
const TRIES_MAX: u32 = 3;
/// How long after it failed it is tried again. Chosen.
const RETRY: Duration = Duration::from_secs(30);

/// One of them.
#[derive(Debug)]
pub(crate) struct Dir {
    pub(crate) path: PathBuf,
    tried: u32,
}

/// Those that wait.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    ready: VecDeque<Dir>,
    /// Those that failed, and when; the oldest first.
    failed: VecDeque<(Instant, Dir)>,
}

impl Gone {
    /// Adds directories that have their last names.
    pub(crate) fn extend(&mut self, paths: impl IntoIterator<Item = PathBuf>) {
        self.ready.extend(paths.into_iter().map(|path| Dir { path, tried: 0 }));
    }

    /// The next one to be removed.
    pub(crate) fn next(&mut self) -> Option<Dir> {
        if self.failed.front().is_some_and(|(at, _)| at.elapsed() >= RETRY) {
            return self.failed.pop_front().map(|(_, dir)| dir);
        }
        self.ready.pop_front()
    }

    /// It could not be removed.
    pub(crate) fn failed(&mut self, dir: Dir) {
        if dir.tried + 1 < TRIES_MAX {
            self.failed.push_back((Instant::now(), Dir { tried: dir.tried + 1, ..dir }));
        }
    }

    /// Until there is a next one; `None` while there is none.
    pub(crate) fn until_due(&self) -> Option<Duration> {
        let failed = self.failed.front().map(|(at, _)| RETRY.saturating_sub(at.elapsed()));
        if self.ready.is_empty() { failed } else { Some(Duration::ZERO) }
    }
}

/// Gives a directory its last name, beside it: what is to be removed. Nothing where there is none; one that is empty is
/// removed at once.
///
/// # Errors
/// As rename(2); it has its name still.
pub(crate) fn let_go(dir: &Path) -> io::Result<Option<PathBuf>> {
    match fs::remove_dir(dir) {
        Ok(()) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(_) => {}
    }
    // Random as a snapshot's id, and as that of nothing else.
    let gone = dir.with_file_name(format!("{:032x}.gone", SnapshotId::random().bits()));
    fs::rename(dir, &gone).map(|()| Some(gone))
}

/// Whether a directory has its last name.
pub(crate) fn is_gone(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gone")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_loses_its_name_at_once_and_is_tried_a_few_times() {
        let dir = tempfile::tempdir().unwrap();
        let full = dir.path().join("full");
        fs::create_dir_all(full.join("sub")).unwrap();
        let gone = let_go(&full).unwrap().unwrap();
        assert!(!full.exists() && is_gone(&gone) && gone.join("sub").exists());
        // What is empty, or not there, is no work for anybody.
        fs::create_dir(&full).unwrap();
        assert_eq!((let_go(&full).unwrap(), full.exists()), (None, false));
        assert_eq!(let_go(&full).unwrap(), None);

        let mut all = Gone::default();
        assert_eq!(all.until_due(), None);
        all.extend([gone.clone()]);
        assert_eq!(all.until_due(), Some(Duration::ZERO));
        let next = all.next().unwrap();
        assert_eq!((&next.path, all.until_due()), (&gone, None));
        all.failed(next);
        assert!(all.next().is_none() && all.until_due().is_some_and(|left| left > Duration::from_secs(20)));
        let (_, again) = all.failed.pop_front().unwrap();
        all.failed(again);
        let (_, last) = all.failed.pop_front().unwrap();
        all.failed(last);
        assert_eq!(all.until_due(), None, "it stays until the next start");
    }
}
