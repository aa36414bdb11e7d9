//! The process that makes disks and takes them down, and [`Maker`]: the launcher's end of it.
//!
//! Over a socket that keeps messages apart. Several threads read it, so that they wait for the kernel side by side; the
//! process ends when the launcher's end is closed, and with it every disk that it was about to make.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::DiskKind;
use super::image::Image;
use super::loop_device::LoopDevices;
use super::mounted::{Disk, take_down};
use crate::error::ErrorKind;
use crate::launcher::{DISKS, LAUNCHER_ARGV0};
use crate::protocol::{self, Receiver};

/// How many disks are made or taken down at a time.
const THREADS: usize = 4;
/// For how many sizes the image is remembered.
const IMAGES_MAX: usize = 32;

/// What the launcher wants.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToMaker {
    /// A disk of this kind.
    Make(DiskKind),
    /// The root of a disk comes along, which nobody uses any more.
    TakeDown,
}

/// What became of a [`ToMaker::Make`]. When it was made, the mount and the root come along.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FromMaker {
    pub(crate) kind: DiskKind,
    pub(crate) result: Result<(), ErrorKind>,
}

/// The process, as the launcher has it.
#[derive(Debug)]
pub(crate) struct Maker {
    pub(crate) socket: OwnedFd,
    process: Child,
}

impl Maker {
    /// Starts the process, from the program that runs.
    pub(crate) fn start() -> io::Result<Maker> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let process = Command::new("/proc/self/exe")
            .arg0(LAUNCHER_ARGV0)
            .arg(DISKS)
            .stdin(theirs)
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Maker { socket: ours, process })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    /// `Ok(false)` when the socket takes nothing more now.
    pub(crate) fn send(&self, message: &ToMaker, descriptors: &[BorrowedFd<'_>]) -> io::Result<bool> {
        let bytes = protocol::encode(message)?;
        match protocol::send(&self.socket, &bytes, descriptors) {
            Err(rustix::io::Errno::AGAIN) => Ok(false),
            result => result.map(|_| true).map_err(Into::into),
        }
    }

    /// The next answer; `Ok(None)` when there is none now. An error means that the process has ended.
    pub(crate) fn receive(&self) -> io::Result<Option<(FromMaker, Vec<OwnedFd>)>> {
        let mut receiver = Receiver::default();
        match receiver.receive(&self.socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Ok(false) => Err(io::ErrorKind::UnexpectedEof.into()),
            result => result.and_then(|_| receiver.next()),
        }
    }

    /// Lets the process take down what it was given, and waits until it has ended.
    pub(crate) fn end(self) {
        let Maker { socket, mut process } = self;
        drop(socket);
        let _ = process.wait();
    }
}

/// The whole life of the process. Its standard input is the socket.
pub(crate) fn serve(socket: OwnedFd) -> io::Result<()> {
    let socket = Arc::new(socket);
    let workshop = Arc::new(Workshop::default());
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (socket, workshop) = (socket.clone(), workshop.clone());
            std::thread::Builder::new().spawn(move || workshop.work(&socket))
        })
        .collect::<io::Result<_>>()?;
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

/// What the threads share.
#[derive(Default)]
struct Workshop {
    devices: Mutex<Option<Arc<LoopDevices>>>,
    images: Mutex<BTreeMap<DiskKind, Arc<Image>>>,
}

impl Workshop {
    fn work(&self, socket: &OwnedFd) {
        loop {
            let mut receiver = Receiver::default();
            if !receiver.receive(socket).unwrap_or(false) {
                return;
            }
            match receiver.next::<ToMaker>() {
                Ok(Some((ToMaker::Make(kind), _))) => self.answer(socket, kind),
                Ok(Some((ToMaker::TakeDown, roots))) => roots.into_iter().for_each(take_down),
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn answer(&self, socket: &OwnedFd, kind: DiskKind) {
        let (result, disk) = match self.make(&kind) {
            Ok(disk) => (Ok(()), Some(disk)),
            Err(failure) => (Err(failure), None),
        };
        let descriptors: Vec<_> = disk.iter().flat_map(|disk| [disk.mount.as_fd(), disk.root.as_fd()]).collect();
        if let Ok(bytes) = protocol::encode(&FromMaker { kind, result }) {
            // When it fails the launcher is gone.
            let _ = protocol::send(socket, &bytes, &descriptors);
        }
    }

    fn make(&self, kind: &DiskKind) -> Result<Disk, ErrorKind> {
        let devices = self.devices()?;
        let image = self.image(kind)?;
        Disk::make(kind, &image, &devices)
    }

    fn devices(&self) -> Result<Arc<LoopDevices>, ErrorKind> {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        match &*devices {
            Some(devices) => Ok(devices.clone()),
            None => Ok(devices.insert(Arc::new(LoopDevices::open()?)).clone()),
        }
    }

    fn image(&self, kind: &DiskKind) -> Result<Arc<Image>, ErrorKind> {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = images.get(kind) {
            return Ok(image.clone());
        }
        if images.len() == IMAGES_MAX {
            images.pop_first();
        }
        let image = Arc::new(Image::make(kind)?);
        images.insert(kind.clone(), image.clone());
        Ok(image)
    }
}
