//! Children of the warden are held at their system calls by ptrace(2) (`steps.py` of the escape tests).

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use rustix::process::Pid;

use super::Warden;

const STEPS: &str = include_str!("../../../rf-escape/probes/steps.py");
/// It became another program and has not run yet.
pub const EXEC: u32 = u32::MAX;

/// Who holds children of the warden at their steps.
pub struct Holder {
    child: Child,
    said: BufReader<ChildStdout>,
    told: ChildStdin,
    held: Option<Pid>,
}

impl Holder {
    pub fn start(warden: &Warden, mode: &str) -> Self {
        let path = warden.state().join("../steps.py");
        fs::write(&path, STEPS).unwrap();
        let mut command = Command::new("python3");
        command.arg(path).arg(mode).arg(warden.pid().to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (said, told) = (BufReader::new(child.stdout.take().unwrap()), child.stdin.take().unwrap());
        let mut holder = Self { child, said, told, held: None };
        assert_eq!(holder.line(), "READY");
        holder
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The number of the call at which it is held next, or [`EXEC`]; `None` at its end.
    pub fn next(&mut self) -> Option<u32> {
        let line = self.line();
        let words: Vec<&str> = line.split(' ').collect();
        let (at, pid) = match words[..] {
            ["CALL", number, pid] => (Some(number.parse().unwrap()), pid),
            ["EXEC", pid] => (Some(EXEC), pid),
            ["END", pid] => (None, pid),
            _ => panic!("{line:?}"),
        };
        self.held = Pid::from_raw(pid.parse().unwrap());
        at
    }

    /// Who was held last.
    pub fn held(&self) -> Option<Pid> {
        self.held
    }

    pub fn tell(&mut self, word: &str) {
        self.told.write_all(format!("{word}\n").as_bytes()).unwrap();
    }

    /// Lets it go to its call of this place, and kills it there; which call that is. `None` when it has ended before: one
    /// asks the kernel for memory a time more often than another.
    pub fn kill_at(mut self, place: usize) -> Option<u32> {
        for _ in 0..place {
            self.next()?;
            self.tell("go");
        }
        let call = self.next()?;
        self.tell("kill");
        assert_eq!(self.next(), None);
        Some(call)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Whoever was held goes on.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
