//! The end of what comes to a program by a terminal. A terminal's input has no end of its own, for there could always be
//! another key; who sits at one types its end-of-file character, and that is done here for who has nothing more to type.
//!
//! It is one end for one read (termios(3), VEOF). What has ended stays ended, so it is typed again for as long as the
//! program runs: for the next that reads, and for a shell that set the terminal to its own way meanwhile, by which what was
//! typed before has become something else.

use std::time::Duration;

use rf_types::ExecState;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    sync::watch,
};

use crate::place::ByteWriter;

/// The character that ends a terminal's input unless a program has set another one (termios(3): `^D`).
const END: u8 = 4;
/// What the key at the end of a line sends.
const ENTER: u8 = b'\r';
/// How long until it is typed again, milliseconds; from the last one on always so long. Chosen: a shell needs some 10 ms to
/// be there, on a busy machine ten times as many, and each that nobody takes lies in a queue of 4,096 bytes.
const AGAIN_MS: [u64; 5] = [0, 100, 200, 400, 1_000];
/// Before which of these a line that has no end gets one. Until then what reads whole lines has been given it as it is, and
/// its end after that; a shell that edits the line waits for the key.
const ENTER_AT: usize = 4;

/// Types the end of a terminal's input until nobody takes it; `cut` says that the last line has no end. To be dropped when
/// the program has ended.
pub async fn type_end(writer: &mut (impl AsyncWrite + Unpin), cut: bool) {
    for turn in 0.. {
        let pause = AGAIN_MS[turn.min(AGAIN_MS.len() - 1)];
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let keys: &[u8] = if cut && turn == ENTER_AT { &[ENTER, END] } else { &[END] };
        if writer.write_all(keys).await.is_err() {
            return;
        }
    }
}

/// Ends the standard input of an exec in the background, on a terminal for as long as the exec runs.
pub(crate) async fn end_stdin(mut writer: ByteWriter, pty: bool, mut state: watch::Receiver<ExecState>) {
    if pty {
        tokio::spawn(async move {
            tokio::select! {
                // What came last was another request's, which sent it as it meant it.
                () = type_end(&mut writer, false) => {}
                // Also when nobody is there any more who would say it.
                _ = state.wait_for(|state| *state != ExecState::Running) => {}
            }
        });
    } else {
        // It is gone either way.
        let _ = writer.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn typed(cut: bool, within_ms: u64) -> Vec<u8> {
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        let over = tokio::time::timeout(Duration::from_millis(within_ms), type_end(&mut ours, cut)).await;
        assert!(over.is_err(), "it goes on for as long as somebody takes it");
        drop(ours);
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.unwrap();
        all
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_stays_one() {
        assert_eq!(typed(false, 50).await, [END]);
        assert_eq!(typed(false, 3_750).await, [END; 7]);
        assert_eq!(typed(true, 1_750).await, [END, END, END, END, ENTER, END]);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_over_when_nobody_takes_it() {
        let (mut ours, theirs) = tokio::io::duplex(64);
        drop(theirs);
        type_end(&mut ours, true).await;
    }
}
