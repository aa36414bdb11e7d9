//! [`Position`]: where a reader of logs or events is, so that it goes on there when `cfc upgrade` has cut it off.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cfc_control::{ClientError, ClientErrorKind, LogRequest};
use futures::{Stream, StreamExt};

use crate::failure::Failure;
use crate::output;
use crate::server::client::control_failure;
use crate::settings::{Addresses, Settings};

/// How long the server's next program may take until it serves.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(50);

/// How far a reader has come.
pub struct Position<'a> {
    settings: &'a Settings,
    server: Option<Program>,
    last: Option<Instant>,
}

/// A server's process, and how often it has changed its program.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Program {
    pid: u32,
    generation: u32,
}

impl Position<'_> {
    /// Nothing has been read yet, of the server that runs now.
    pub fn start(settings: &Settings) -> Position<'_> {
        Position { settings, server: program(settings), last: None }
    }

    /// Something has been read that had just happened.
    pub fn advance(&mut self) {
        self.last = Some(Instant::now());
    }

    /// From how long ago on the rest is to be read: from what was read last, else as it was `asked`.
    pub fn since(&self, asked: Option<Duration>) -> Option<Duration> {
        self.last.map(|last| last.elapsed()).or(asked)
    }

    /// Whether anything has been read.
    pub fn has_begun(&self) -> bool {
        self.last.is_some()
    }

    /// Returns when the server, whose answer broke off with `error`, goes on with another program, which can be asked for the
    /// rest.
    ///
    /// # Errors
    /// When the answer broke off for another reason.
    pub async fn outlast_upgrade(&mut self, error: ClientError) -> Result<(), Failure> {
        let cut_off = Instant::now();
        while matches!(error.kind, ClientErrorKind::Ended(_)) && cut_off.elapsed() < PATIENCE {
            let now = program(self.settings);
            if now.map(|now| now.pid) != self.server.map(|before| before.pid) || now.is_none() {
                break;
            }
            if now != self.server {
                output::tell("the server was upgraded: going on with its new program");
                self.server = now;
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(control_failure(error))
    }
}

/// Prints the log that `ask` gets as it was `asked` for, to its end.
pub async fn print_log<Lines>(
    settings: &Settings,
    asked: LogRequest,
    ask: impl AsyncFn(LogRequest) -> Result<Lines, ClientError>,
) -> Result<(), Failure>
where
    Lines: Stream<Item = Result<Bytes, ClientError>> + Unpin,
{
    let mut position = Position::start(settings);
    loop {
        // What was told already is not told again.
        let tail_lines = asked.tail_lines.filter(|_| !position.has_begun());
        let request = LogRequest { since: position.since(asked.since), tail_lines, ..asked.clone() };
        let mut lines = ask(request).await.map_err(control_failure)?;
        let cut_off = loop {
            match lines.next().await {
                None => return Ok(()),
                Some(Ok(bytes)) => {
                    output::bytes(&bytes);
                    position.advance();
                }
                Some(Err(error)) if asked.follow => break error,
                Some(Err(error)) => return Err(control_failure(error)),
            }
        };
        position.outlast_upgrade(cut_off).await?;
    }
}

fn program(settings: &Settings) -> Option<Program> {
    settings.addresses().ok().map(|Addresses { pid, generation, .. }| Program { pid, generation })
}
