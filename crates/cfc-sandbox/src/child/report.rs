//! What the launcher tells the new process, and the process the launcher, before it becomes the application.
//!
//! Both go over one socket, in the form of [`protocol`].

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::stubs::Stubs;
use crate::error::ErrorKind;
use crate::launcher::blueprint::{Blueprint, Descriptors};
use crate::protocol::{self, Receiver};
use crate::step::Step;

/// What the launcher tells the new process, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The launcher has written the id maps: make the shell.
    Go,
    /// The descriptors that come along are the next ones of the blueprint.
    Take,
    /// These are the last ones. The first of all is the file that holds the blueprint.
    Become,
}

/// What the new process tells the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The sockets come along to which outbound traffic is redirected, or this is why there are none.
    Outbound(Result<(), ErrorKind>),
    /// `execve` is next. When the socket ends after this, it succeeded.
    Ready(Stubs),
    /// It ends here.
    Failed(ErrorKind),
}

/// The process's end of the socket.
pub(crate) struct Channel {
    socket: OwnedFd,
    receiver: Receiver,
    /// The descriptors that have come so far. Several orders may be read at once, and the first then has the descriptors of
    /// all.
    descriptors: Vec<OwnedFd>,
}

impl Channel {
    pub(crate) fn new(socket: OwnedFd) -> Channel {
        Channel { socket, receiver: Receiver::default(), descriptors: Vec::new() }
    }

    /// The next order. `None` when the launcher gave up or died: nobody reads a report.
    fn order(&mut self) -> Result<Option<Order>, ErrorKind> {
        loop {
            if let Some((order, descriptors)) = self.receiver.next().step(|| "understand the launcher".into())? {
                self.descriptors.extend(descriptors);
                return Ok(Some(order));
            }
            if !self.receiver.receive(&self.socket).step(|| "wait for the launcher".into())? {
                return Ok(None);
            }
        }
    }

    /// Waits for [`Order::Go`]. False when it never comes.
    pub(crate) fn wait_for_go(&mut self) -> Result<bool, ErrorKind> {
        Ok(matches!(self.order()?, Some(Order::Go)))
    }

    /// Waits for what the process is to become. `None` when it is to become nothing.
    pub(crate) fn wait_for_blueprint(&mut self) -> Result<Option<Blueprint>, ErrorKind> {
        loop {
            match self.order()? {
                Some(Order::Become) => break,
                Some(Order::Take | Order::Go) => {}
                None => return Ok(None),
            }
        }
        let mut descriptors = std::mem::take(&mut self.descriptors);
        let step = || "read the blueprint".to_owned();
        if descriptors.is_empty() {
            return Err(rustix::io::Errno::BADF).step(step);
        }
        let file = File::from(descriptors.remove(0));
        let length = file.metadata().step(step)?.len();
        let mut text = vec![0; length as usize];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut text, 0).step(step)?;
        let blueprint: Blueprint = serde_json::from_slice(&text).map_err(std::io::Error::from).step(step)?;
        Ok(Some(Blueprint { descriptors: Descriptors(descriptors), ..blueprint }))
    }

    /// Sends one report. Failing to is not reported: nobody listens.
    pub(crate) fn report(&self, report: &Report, descriptors: &[OwnedFd]) {
        let Ok(bytes) = protocol::encode(report) else { return };
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut sent = match protocol::send(&self.socket, &bytes, &descriptors) {
            Ok(sent) => sent,
            Err(_) => return,
        };
        while sent < bytes.len() {
            match protocol::send(&self.socket, &bytes[sent..], &[]) {
                Ok(more) => sent += more,
                Err(_) => return,
            }
        }
    }
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
