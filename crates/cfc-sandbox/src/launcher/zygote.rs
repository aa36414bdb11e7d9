//! [`Zygote`]: a process that shells are forked from, so that the launcher need not be forked for each.
//!
//! A fork has every page of its parent copied that either of them writes to next, and a launcher of a thousand sandboxes
//! writes to hundreds between two starts. So it is forked once, for all shells of a kind. What it left behind does nothing
//! but fork, and writes to few pages. The shells are the launcher's children all the same (`CLONE_PARENT`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::AssertUnwindSafe;

use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use super::shell::{self, PATIENCE, ShellKind};
use super::slots::Slots;
use crate::child::{self, Wiring};
use crate::error::ErrorKind;
use crate::protocol::{self, Receiver};
use crate::step::Step;
use crate::sys::{self, Cloned};

/// That a shell is to be made. The control socket comes along, then the entrances, then where it is born.
#[derive(Debug, Serialize, Deserialize)]
struct Birth {
    has_birthplace: bool,
}

/// The number of the shell, whose pidfd comes along, or the error of the kernel.
type Born = Result<i32, i32>;

/// The process. It is gone when this is dropped.
pub(crate) struct Zygote {
    /// Takes [`Birth`]s, brings [`Born`]s. Non-blocking on this side.
    socket: OwnedFd,
    pidfd: OwnedFd,
}

impl Zygote {
    /// Makes one for shells of this kind.
    pub(crate) fn make(kind: &ShellKind, slots: &Slots) -> Result<Zygote, ErrorKind> {
        let (socket, theirs) = shell::socket_pair()?;
        let wiring = Wiring { control: theirs, entrances: Vec::new() };
        let forked = shell::fork(0, None, slots, wiring, |wiring| live(kind, &wiring.control))?;
        // From here on it ends with this, whatever fails.
        let zygote = Zygote { socket, pidfd: forked.pidfd };
        let is_apart = shell::wait_until_apart(&zygote.socket);
        slots.empty(forked.filled)?;
        is_apart.map(|()| zygote)
    }

    /// Whether it has ended, which only an accident does to it.
    pub(crate) fn is_dead(&self) -> bool {
        shell::is_dead(&self.pidfd)
    }

    /// Makes a shell, in the v2 cgroup `birthplace` if one is given: its number and its pidfd. Not to be asked again after a
    /// failure: the answer may come yet, and would be taken for the next one's.
    pub(super) fn bear(&self, wiring: Wiring, birthplace: Option<&OwnedFd>) -> Result<(i32, OwnedFd), ErrorKind> {
        let step = || "have a process made".to_owned();
        let bytes = protocol::encode(&Birth { has_birthplace: birthplace.is_some() }).step(step)?;
        let descriptors: Vec<_> = wiring.descriptors().chain(birthplace.map(AsFd::as_fd)).collect();
        // The message is a few bytes, and the only one.
        protocol::send(&self.socket, &bytes, &descriptors).step(step)?;
        // Its copy of the socket would hide from us that the process has ended.
        drop(wiring);
        let mut receiver = Receiver::default();
        loop {
            if let Some((born, mut descriptors)) = receiver.next::<Born>().step(step)? {
                return match (born, descriptors.pop()) {
                    (Ok(pid), Some(pidfd)) => Ok((pid, pidfd)),
                    (Ok(_), None) => Err(io::Error::from(io::ErrorKind::NotFound)).step(step),
                    (Err(errno), _) => Err(io::Error::from_raw_os_error(errno)).step(shell::make_step),
                };
            }
            let mut awaited = [PollFd::new(&self.socket, PollFlags::IN)];
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut awaited, Some(&PATIENCE))).step(step)?;
            if !receiver.receive(&self.socket).step(step)? {
                return Err(ErrorKind::Unavailable("the process died that makes others (out of memory?)".into()));
            }
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        shell::end(&self.pidfd);
    }
}

/// The process's whole life, until the launcher ends it, dies or is not understood. A panic ends here, so that nothing of
/// the launcher's runs twice.
fn live(kind: &ShellKind, socket: &OwnedFd) {
    let _ = rustix::thread::set_name(c"cfc-zygote");
    let _ = std::panic::catch_unwind(AssertUnwindSafe(|| serve(kind, socket)));
}

fn serve(kind: &ShellKind, socket: &OwnedFd) -> Result<(), ErrorKind> {
    child::die_with_launcher()?;
    let step = || "make processes for the launcher".to_owned();
    let mut receiver = Receiver::default();
    loop {
        while let Some((Birth { has_birthplace }, mut descriptors)) = receiver.next().step(step)? {
            let birthplace = if has_birthplace { descriptors.pop() } else { None };
            let mut descriptors = descriptors.into_iter();
            let control = descriptors.next().ok_or(rustix::io::Errno::BADF).step(step)?;
            let wiring = Wiring { control, entrances: descriptors.collect() };
            let flags = kind.clone_flags | libc::CLONE_PARENT as u64;
            let (born, pidfd) = match sys::clone_process(flags, birthplace.as_ref().map(AsFd::as_fd)) {
                Ok(Cloned::Child) => {
                    sys::close_all_but(
                        &wiring.descriptors().map(|descriptor| descriptor.as_raw_fd()).collect::<Vec<_>>(),
                    );
                    shell::say_apart(&wiring);
                    child::run(kind, wiring)
                }
                Ok(Cloned::Parent { pid, pidfd }) => (Ok(pid), Some(pidfd)),
                Err(error) => (Err(error.raw_os_error().unwrap_or(libc::EIO)), None),
            };
            drop((wiring, birthplace));
            let pidfd: Vec<_> = pidfd.iter().map(AsFd::as_fd).collect();
            let born: Born = born;
            protocol::send(socket, &protocol::encode(&born).step(step)?, &pidfd).step(step)?;
        }
        if !receiver.receive(socket).step(step)? {
            return Ok(());
        }
    }
}
