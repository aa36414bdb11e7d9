//! [`Arrivals`]: the blobs of the finished image, which newer daemons write one by one: those that an earlier build brought
//! are not sent again. Older ones send an archive with all of them.

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use cfc_oci::Digest;
use cfc_store::ArchiveFile;

use crate::archive::{Intake, Parts, Taken, blob};
use crate::failure::{Failure, Result};
use crate::pieces::{PieceSender, pieces};

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
    pieces: PieceSender,
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
        if let Err(failure) = taken.and_then(|parts| come.parts.merge(parts)) {
            come.failure.get_or_insert(failure);
            return false;
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
        bytes.is_empty() || self.pieces.blocking_send(Ok(bytes.into())).is_ok()
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

#[cfg(test)]
mod tests {
    use cfc_oci::{Descriptor, ImageConfig, Manifest, RootFs};
    use cfc_store::{Compression, Encoding, LayerWriter, Metadata, Store};
    use std::io::Write;

    use super::*;

    fn arrivals(store: &Store) -> Arrivals {
        Arrivals::new(Intake {
            store: store.clone(),
            bases: Vec::new(),
            newest_mtime: 0,
            encoding: Encoding::default(),
            address: "unix:///x".to_string(),
            no_cache: false,
        })
    }

    fn layer() -> Vec<u8> {
        let mut writer = LayerWriter::new(Vec::new());
        for name in ["a", "b"] {
            writer.file(name.as_ref(), &Metadata::root(0o644, 0), 512, &mut &[7; 512][..]).expect("writes");
        }
        writer.finish().expect("writes")
    }

    fn arrive(arrivals: &Arrivals, digest: &Digest, bytes: &[u8]) -> bool {
        let arriving = arrivals.begin(digest, bytes.len() as u64);
        arriving.append(bytes.to_vec());
        arrivals.end(digest, arriving)
    }

    fn n_blobs(store: &Store) -> usize {
        std::fs::read_dir(store.root().join("blobs/sha256")).map_or(0, Iterator::count)
    }

    #[test]
    fn a_blob_that_breaks_off_where_an_archive_may_end_is_not_taken() {
        let home = tempfile::tempdir().expect("a directory");
        let store = Store::open(home.path()).expect("a store");
        let (whole, arrivals) = (layer(), arrivals(&store));
        // Behind the first file: a header and its content.
        assert!(!arrive(&arrivals, &Digest::of(&whole), &whole[..1024]));
        let failure = arrivals.failure().expect("there is a reason");
        assert_eq!(failure.message, "cannot take in a layer");
        assert_eq!(n_blobs(&store), 0, "no half layer is in the store");
    }

    #[test]
    fn blobs_in_any_compression_make_an_image() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let home = tempfile::tempdir().expect("a directory");
            let there = Store::open(&home.path().join("there")).expect("a store");
            let mut writer = there.layer_writer(compression).expect("a writer");
            writer.write_all(&layer()).expect("writes");
            let made = writer.finish().expect("writes");
            let bytes = there.blobs().read(&made.descriptor.digest).expect("reads");
            let store = Store::open(&home.path().join("here")).expect("a store");
            let arrivals = arrivals(&store);
            let rootfs = RootFs { diff_ids: vec![made.diff_id], ..RootFs::default() };
            let config = ImageConfig { rootfs, ..ImageConfig::default() }.to_bytes();
            let described = Descriptor::new("config", Digest::of(&config), config.len() as u64);
            let manifest = Manifest::new(described, vec![made.descriptor.clone()]).to_bytes();
            for (digest, bytes) in
                [(made.descriptor.digest, &bytes), (Digest::of(&config), &config), (Digest::of(&manifest), &manifest)]
            {
                assert!(arrive(&arrivals, &digest, bytes), "{compression:?}: {:?}", arrivals.failure());
            }
            let image = arrivals.image().expect("one came").expect("it is whole");
            assert_eq!((image.layers.len(), n_blobs(&store)), (1, 1), "{compression:?}");
        }
    }
}
