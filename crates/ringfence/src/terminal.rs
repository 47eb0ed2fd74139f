//! The terminal that somebody sits at: raw while a place's terminal is shown on it, and as it was afterwards.

use std::{
    io::{self, IsTerminal as _},
    os::fd::AsFd as _,
};

use rf_types::Pty;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Whether somebody sits at both standard input and standard output.
pub(crate) fn present() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The terminal's size, in cells; 24 by 80 where it says nothing.
pub(crate) fn size() -> Pty {
    match tcgetwinsize(io::stdout().as_fd()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => Pty { rows: size.ws_row, cols: size.ws_col },
        _ => Pty { rows: 24, cols: 80 },
    }
}

/// A terminal in raw mode; dropped, it is as it was.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Sets standard input's terminal to raw: every key goes to the place, which echoes and interprets.
    ///
    /// # Errors
    /// Standard input is no terminal.
    pub(crate) fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Drain, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that went away needs no restoring.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Drain, &self.before);
    }
}
