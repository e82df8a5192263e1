//! The user's terminal, while something elsewhere has it.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use skerry_exec::TerminalSize;
use tokio::sync::mpsc;

/// Pieces of input that wait to be sent.
const PIECES: usize = 4;
/// Bytes of a piece.
const PIECE: usize = 16 << 10;

/// The terminal in raw mode: every key goes to whoever has it. It is as it was when this is dropped.
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// That of standard input; none if it is no terminal.
    pub fn enter() -> Option<Raw> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok()?;
        let terminal = stdin.as_fd().try_clone_to_owned().ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw).ok()?;
        Some(Raw { terminal, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // If it has gone, nothing is to be mended.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

/// How large the user's terminal is: that of the first standard stream that is one.
pub fn size() -> Option<TerminalSize> {
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let all: [BorrowedFd<'_>; 3] = [output.as_fd(), input.as_fd(), error.as_fd()];
    let terminal = all.into_iter().find(|fd| isatty(fd))?;
    let size = tcgetwinsize(terminal).ok()?;
    Some(TerminalSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// What is typed, or comes through a pipe, in pieces; it ends where that ends. The thread that waits for it ends
/// with the process.
pub fn input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, pieces) = mpsc::channel(PIECES);
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE];
        loop {
            match std::io::stdin().read(&mut buffer) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
                Ok(n) => {
                    if sender.blocking_send(buffer[..n].to_vec()).is_err() {
                        return;
                    }
                }
            }
        }
    });
    pieces
}
