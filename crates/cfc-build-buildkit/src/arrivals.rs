//! [`Arrivals`]: the blobs of the finished image, which newer daemons write one by one: those that an earlier build brought
//! are not sent again. Older ones send an archive with all of them.

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

use cfc_oci::Digest;
use cfc_store::ArchiveFile;

use crate::archive::{Intake, Parts, Taken, blob};
use crate::failure::{Failure, Result};
use crate::pieces::pieces;

/// How many pieces wait to be read: the daemon waits then, too.
const WAITING: usize = 16;

/// What has come of an image.
#[derive(Clone)]
pub(crate) struct Arrivals(Arc<Shared>);

struct Shared {
    intake: Intake,
    come: Mutex<Come>,
}

#[derive(Default)]
struct Come {
    parts: Parts,
    /// The last one: all that a manifest names is written before it.
    last: Option<Digest>,
    failure: Option<Failure>,
}

/// A blob on its way.
pub(crate) struct Arriving {
    pieces: mpsc::SyncSender<Vec<u8>>,
    taking: JoinHandle<Result<Parts>>,
}

impl Arrivals {
    /// None yet; what comes is taken in by `intake`.
    pub(crate) fn new(intake: Intake) -> Arrivals {
        Arrivals(Arc::new(Shared { intake, come: Mutex::default() }))
    }

    fn come(&self) -> MutexGuard<'_, Come> {
        self.0.come.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the blob `digest` is here already; then it has come.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        let name = blob(digest);
        let Some(layer) = self.0.intake.known(&name) else { return false };
        let mut come = self.come();
        come.parts.add_layer(name, layer);
        come.last = Some(digest.clone());
        true
    }

    /// Begins to take in the blob `digest` of `size` bytes, on a thread of its own.
    pub(crate) fn begin(&self, digest: &Digest, size: u64) -> Arriving {
        let (pieces, mut content) = pieces(WAITING);
        let (intake, name) = (self.0.intake.clone(), blob(digest));
        let taking = std::thread::spawn(move || intake.take_blob(&name, size, &mut content));
        Arriving { pieces, taking }
    }

    /// Ends what was begun. False where it could not be taken in; why, is told by [`Arrivals::failure`].
    pub(crate) fn end(&self, digest: &Digest, arriving: Arriving) -> bool {
        drop(arriving.pieces);
        let taken = arriving.taking.join().unwrap_or_else(|_| Err(Failure::new("cannot take in a blob of the image")));
        let mut come = self.come();
        match taken {
            Ok(parts) => come.parts.merge(parts),
            Err(failure) => {
                come.failure.get_or_insert(failure);
                return false;
            }
        }
        come.last = Some(digest.clone());
        true
    }

    /// Why a blob could not be taken in.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.come().failure.take()
    }

    /// The image that has come; none where the daemon sent none this way.
    pub(crate) fn image(&self) -> Option<Result<Taken>> {
        let mut come = self.come();
        let last = come.last.take()?;
        Some(std::mem::take(&mut come.parts).image_of(&last))
    }
}

impl Arriving {
    /// Hands `bytes` on. False where nobody takes them any more.
    pub(crate) fn append(&self, bytes: Vec<u8>) -> bool {
        bytes.is_empty() || self.pieces.send(bytes).is_ok()
    }
}

impl Intake {
    /// The blob `name`, whatever it is.
    fn take_blob(&self, name: &Path, size: u64, content: &mut dyn Read) -> Result<Parts> {
        let mut parts = Parts::default();
        let file = ArchiveFile { path: name.to_path_buf(), size, link: None, content };
        self.take_file(file, &mut parts)?;
        Ok(parts)
    }
}
