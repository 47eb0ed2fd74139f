//! Reads a segment line by line in constant memory.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Seek as _},
    path::Path,
};

use crate::chain::{LINE_BYTES_MAX, segment_name};

/// What comes next in a segment.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Next {
    /// A line; its bytes, without the line feed, are in [`Lines::line`].
    Line,
    /// Nothing more: the end of the file, or only zeros up to it.
    End,
    /// Bytes that are no line: cut off at the end of the file, longer than any line, or after the zeros began.
    Junk,
}

/// One segment, from its start on.
pub(crate) struct Lines {
    reader: BufReader<File>,
    /// The last line without its line feed.
    line: Vec<u8>,
    /// Where it begins.
    start: u64,
    /// Where the next one begins.
    offset: u64,
    /// How many lines were given out.
    count: u64,
}

impl Lines {
    pub(crate) fn open(dir: &Path, segment: u32) -> io::Result<Self> {
        Ok(Self::new(File::open(dir.join(segment_name(segment)))?))
    }

    pub(crate) fn new(file: File) -> Self {
        Self { reader: BufReader::with_capacity(64 * 1024, file), line: Vec::new(), start: 0, offset: 0, count: 0 }
    }

    /// Goes on at `offset`, which is the start of a line.
    pub(crate) fn seek(&mut self, offset: u64) -> io::Result<()> {
        self.reader.seek(io::SeekFrom::Start(offset))?;
        self.offset = offset;
        Ok(())
    }

    pub(crate) fn line(&self) -> &[u8] {
        &self.line
    }

    /// Where the last line begins.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Where the next line begins.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The last line's number, from 1.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn next(&mut self) -> io::Result<Next> {
        self.line.clear();
        let read = self.reader.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(Next::End);
        }
        self.start = self.offset;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
            self.offset += read as u64;
            self.count += 1;
            return Ok(Next::Line);
        }
        let zeros = self.line.iter().all(|&b| b == 0) && self.rest_is_zeros()?;
        Ok(if zeros { Next::End } else { Next::Junk })
    }

    fn rest_is_zeros(&mut self) -> io::Result<bool> {
        loop {
            let bytes = self.reader.fill_buf()?;
            if bytes.is_empty() {
                return Ok(true);
            }
            if bytes.iter().any(|&b| b != 0) {
                return Ok(false);
            }
            let len = bytes.len();
            self.reader.consume(len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Vec<(Next, Vec<u8>)> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(segment_name(0)), bytes).unwrap();
        let mut lines = Lines::open(dir.path(), 0).unwrap();
        let mut all = Vec::new();
        loop {
            let next = lines.next().unwrap();
            let done = next != Next::Line;
            all.push((next, if done { Vec::new() } else { lines.line().to_vec() }));
            if done {
                return all;
            }
        }
    }

    #[test]
    fn zeros_after_the_last_line_are_the_end() {
        let mut bytes = b"a\nbc\n".to_vec();
        bytes.extend_from_slice(&vec![0; 3 * LINE_BYTES_MAX]);
        let lines = [(Next::Line, b"a".to_vec()), (Next::Line, b"bc".to_vec()), (Next::End, Vec::new())];
        assert_eq!(read(&bytes), lines);
        *bytes.last_mut().unwrap() = 1;
        assert_eq!(read(&bytes)[2].0, Next::Junk);
    }

    #[test]
    fn half_a_line_and_an_endless_line_are_junk() {
        assert_eq!(read(b"a\nbc")[1].0, Next::Junk);
        assert_eq!(read(&vec![b'x'; 2 * LINE_BYTES_MAX])[0].0, Next::Junk);
        assert_eq!(read(b"")[0].0, Next::End);
    }
}
