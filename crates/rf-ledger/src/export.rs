//! Streams records, oldest first, in constant memory.

use std::{
    io,
    path::{Path, PathBuf},
};

use rf_types::{Code, Fault};

use crate::{
    Ledger,
    chain::{Header, segments_in},
    lines::{Lines, Next},
    record::Record,
};

/// One record with the exact bytes that its hash is over.
#[derive(Clone, Debug, PartialEq)]
pub struct Exported {
    /// The record.
    pub record: Record,
    /// Its line, without the line feed.
    pub line: String,
}

/// An iterator over the records of a ledger that may be in use; ends at the last record there is when it gets there.
/// It checks nothing: see [`crate::verify`].
pub struct Records {
    dir: PathBuf,
    from: u64,
    segments: std::vec::IntoIter<u32>,
    lines: Option<Lines>,
}

impl Records {
    /// Records of the ledger in `dir` from number `from` on.
    ///
    /// # Errors
    /// `ledger_unavailable` when it cannot be read.
    pub fn open(dir: &Path, from: u64) -> Result<Self, Fault> {
        let mut segments = segments_in(dir).map_err(unreadable)?;
        // The last segment that begins at or before `from`, found by halving.
        let mut failed = None;
        let begins_later = segments.partition_point(|&segment| match first_seq(dir, segment) {
            Ok(first) => first <= from,
            Err(error) => {
                failed.get_or_insert(error);
                false
            }
        });
        if let Some(error) = failed {
            return Err(unreadable(error));
        }
        segments.drain(..begins_later.saturating_sub(1));
        Ok(Self { dir: dir.to_owned(), from, segments: segments.into_iter(), lines: None })
    }

    fn step(&mut self) -> Result<Option<Exported>, io::Error> {
        loop {
            if self.lines.is_none() {
                let Some(segment) = self.segments.next() else { return Ok(None) };
                let mut lines = Lines::open(&self.dir, segment)?;
                // The header.
                if lines.next()? != Next::Line {
                    return Ok(None);
                }
                self.lines = Some(lines);
            }
            let Some(lines) = self.lines.as_mut() else { return Ok(None) };
            match lines.next()? {
                Next::Line => {}
                Next::End => {
                    self.lines = None;
                    continue;
                }
                // A record that is being written at this moment, or the torn tail of a crash.
                Next::Junk => {
                    self.segments = Vec::new().into_iter();
                    self.lines = None;
                    return Ok(None);
                }
            }
            let bad = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
            let line = std::str::from_utf8(lines.line()).map_err(|error| bad(&error))?;
            let record: Record = serde_json::from_str(line).map_err(|error| bad(&error))?;
            if record.seq >= self.from {
                return Ok(Some(Exported { line: line.to_owned(), record }));
            }
        }
    }
}

impl Iterator for Records {
    type Item = Result<Exported, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            // After an error there is no knowing what comes next.
            self.segments = Vec::new().into_iter();
            self.lines = None;
        }
        step.map_err(unreadable).transpose()
    }
}

impl std::iter::FusedIterator for Records {}

impl Ledger {
    /// Its records from number `from` on, oldest first.
    ///
    /// # Errors
    /// `ledger_unavailable` when the files cannot be read.
    pub fn records(&self, from: u64) -> Result<Records, Fault> {
        Records::open(self.dir(), from)
    }
}

fn first_seq(dir: &Path, segment: u32) -> io::Result<u64> {
    let mut lines = Lines::open(dir, segment)?;
    lines.next()?;
    let header: Header = serde_json::from_slice(lines.line())?;
    Ok(header.first_seq)
}

#[expect(clippy::needless_pass_by_value, reason = "taken by `map_err`")]
fn unreadable(error: io::Error) -> Fault {
    Fault::new(Code::LedgerUnavailable, format!("the ledger cannot be read: {error}"), "run `ringfence audit verify`")
}
