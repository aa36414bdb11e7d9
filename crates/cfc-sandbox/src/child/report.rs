//! What the new process tells the launcher before it becomes the application.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::stubs::Stubs;
use crate::error::ErrorKind;

/// One line of JSON on the report pipe.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// `execve` is next. When the pipe ends after this, it succeeded.
    Ready(Stubs),
    /// It ends here.
    Failed(ErrorKind),
}

/// The reports in `bytes`, in order.
pub(crate) fn parse_all<R: DeserializeOwned>(bytes: &[u8]) -> Vec<R> {
    bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// Sends one report. Failing to is not reported: nobody listens.
pub(crate) fn send(pipe: &OwnedFd, report: &impl Serialize) {
    let Ok(mut bytes) = serde_json::to_vec(report) else { return };
    bytes.push(b'\n');
    let mut rest = bytes.as_slice();
    while let Ok(count) = rustix::io::retry_on_intr(|| rustix::io::write(pipe, rest)) {
        rest = &rest[count..];
        if rest.is_empty() {
            break;
        }
    }
}
