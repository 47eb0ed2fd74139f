//! Archives made byte by byte, and a place where nothing outside may change.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "shared by two test programs, each of which uses a part")]

use std::{
    fs,
    io::{Cursor, Read as _, Write as _},
    os::fd::AsFd as _,
    path::PathBuf,
};

use rf_template::unpack::{Caps, UnpackError, Unpacked, unpack};

/// An archive in the making.
#[derive(Clone, Default)]
pub struct Layer(pub Vec<u8>);

impl Layer {
    pub fn raw(mut self, kind: u8, name: &[u8], link: &[u8], mode: u32, size: u64, body: &[u8]) -> Self {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name);
        block[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
        block[108..115].copy_from_slice(b"0000000");
        block[116..123].copy_from_slice(b"0000000");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[136..147].copy_from_slice(b"00000001750");
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        Self::seal(&mut block);
        self.0.extend_from_slice(&block);
        self.0.extend_from_slice(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn seal(block: &mut [u8; 512]) {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    /// Changes the header of the last entry, which must have no body.
    pub fn patch(mut self, at: usize, bytes: &[u8]) -> Self {
        let start = self.0.len() - 512;
        let mut block: [u8; 512] = self.0[start..].try_into().unwrap();
        block[at..at + bytes.len()].copy_from_slice(bytes);
        Self::seal(&mut block);
        self.0[start..].copy_from_slice(&block);
        self
    }

    pub fn file(self, name: &str, body: &str) -> Self {
        self.raw(b'0', name.as_bytes(), b"", 0o644, body.len() as u64, body.as_bytes())
    }

    pub fn dir(self, name: &str) -> Self {
        self.raw(b'5', name.as_bytes(), b"", 0o755, 0, b"")
    }

    pub fn symlink(self, name: &str, to: &str) -> Self {
        self.raw(b'2', name.as_bytes(), to.as_bytes(), 0o777, 0, b"")
    }

    pub fn hard_link(self, name: &str, to: &str) -> Self {
        self.raw(b'1', name.as_bytes(), to.as_bytes(), 0o644, 0, b"")
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length.to_string().len() + rest != length {
                length += 1;
            }
            write!(body, "{length} {key}=").unwrap();
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        let size = body.len() as u64;
        self.raw(b'x', b"pax", b"", 0o644, size, &body)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A directory with `target`, where layers go, and `outside`, where nothing may change.
pub struct Field {
    pub base: tempfile::TempDir,
}

impl Field {
    pub fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("target")).unwrap();
        fs::create_dir(base.path().join("outside")).unwrap();
        fs::write(base.path().join("outside/kept"), "kept").unwrap();
        Self { base }
    }

    pub fn target(&self) -> PathBuf {
        self.base.path().join("target")
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.target().join(path)
    }

    pub fn outside(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.base.path().join("outside")).unwrap() {
            let entry = entry.unwrap();
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            found.push((entry.file_name().into_string().unwrap(), text));
        }
        found.sort();
        found
    }

    pub fn unpack(&self, bytes: &[u8]) -> Result<Unpacked, UnpackError> {
        self.unpack_within(bytes, &caps())
    }

    pub fn unpack_within(&self, bytes: &[u8], caps: &Caps) -> Result<Unpacked, UnpackError> {
        let target = fs::File::open(self.target()).unwrap();
        unpack(Cursor::new(bytes), target.as_fd(), caps, None)
    }

    /// Unpacks as a careless program would: paths are joined as text, and links followed.
    pub fn careless(&self, bytes: &[u8]) {
        let mut archive = tar::Archive::new(Cursor::new(bytes));
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let at = self.target().join(entry.path().unwrap());
            let link = entry.link_name().unwrap().map(|name| name.into_owned());
            match entry.header().entry_type() {
                tar::EntryType::Directory => drop(fs::create_dir(at)),
                tar::EntryType::Symlink => std::os::unix::fs::symlink(link.unwrap(), at).unwrap(),
                tar::EntryType::Link => {
                    // As link(2) of a path joined as text would.
                    let to = self.target().join(link.unwrap());
                    fs::hard_link(to, at).unwrap();
                }
                _ => {
                    let mut body = Vec::new();
                    entry.read_to_end(&mut body).unwrap();
                    fs::write(at, body).unwrap();
                }
            }
        }
    }
}

pub fn caps() -> Caps {
    Caps { owners_kept: rustix::process::geteuid().is_root(), ..Caps::STANDARD }
}

pub fn untouched() -> Vec<(String, String)> {
    vec![("kept".to_owned(), "kept".to_owned())]
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
