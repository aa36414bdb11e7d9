//! [`Intake`]: an image's archive, taken apart as it comes: an OCI layout, or what `docker save` writes. Nothing of it is kept
//! but layers, in the store, and the few texts that say which they are.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::thread::JoinHandle;

use cfc_oci::{Algorithm, Descriptor, Digest, Hasher};
use cfc_store::{ArchiveFile, Encoding, ForeignLayer, ReadLayer, Store, StoreError, StoreErrorKind, read_archive};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};

/// No honest text of an image is larger, in bytes.
const MAX_TEXT_BYTES: u64 = 4 << 20;
/// All of them together.
const MAX_TEXTS_BYTES: usize = 64 << 20;
/// How many layers are on their way to the disk while the next one is read: each holds memory.
const FINISHING: usize = 4;

/// A layer of the finished image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// Digest of the uncompressed bytes, as the daemon has them.
    pub(crate) diff_id_there: Digest,
    /// The same, as we have them.
    pub(crate) diff_id: Digest,
    /// The blob.
    pub(crate) blob: Descriptor,
    /// Whether the build made it, and not a base image brought it.
    pub(crate) is_ours: bool,
}

/// What an archive brought.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// The layers of its image, lowest first.
    pub(crate) layers: Vec<Layer>,
    /// The build cache in its config.
    pub(crate) cache: Option<String>,
}

/// How layers are taken in.
#[derive(Clone)]
pub(crate) struct Intake {
    pub(crate) store: Store,
    /// The layers of base images, as they are in the store.
    pub(crate) bases: Vec<Layer>,
    pub(crate) newest_mtime: i64,
    pub(crate) encoding: Encoding,
    /// From whom: names that say nothing of the content count for one daemon only.
    pub(crate) address: String,
    /// Whether nothing is known of earlier builds.
    pub(crate) no_cache: bool,
}

/// What an archive consists of, by name.
#[derive(Default)]
pub(crate) struct Parts {
    texts: HashMap<PathBuf, Vec<u8>>,
    layers: HashMap<PathBuf, Layer>,
    links: HashMap<PathBuf, PathBuf>,
    n_bytes: usize,
    /// Layers that were read and are not on the disk yet.
    finishing: VecDeque<Finishing>,
}

/// A layer, by its name, that another thread compresses and waits for the disk for.
type Finishing = (PathBuf, JoinHandle<std::result::Result<Layer, StoreError>>);

/// `index.json`, or an index below it, or a manifest.
#[derive(Deserialize)]
struct ManifestText {
    #[serde(default)]
    manifests: Vec<Reference>,
    #[serde(default)]
    layers: Vec<Reference>,
    config: Option<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    digest: Digest,
}

/// Docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedText {
    config: PathBuf,
    layers: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct ConfigText {
    #[serde(default)]
    rootfs: RootFsText,
    #[serde(rename = "moby.buildkit.cache.v0")]
    cache: Option<String>,
}

#[derive(Default, Deserialize)]
struct RootFsText {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

impl Intake {
    /// The layers of the image that `input` is an archive of.
    pub(crate) fn take(&self, input: impl Read) -> Result<Taken> {
        let parts = RefCell::new(Parts::default());
        // Of a layer that could not be taken in, it is told why rather than where.
        let mut failure: Option<StoreError> = None;
        let read = read_archive(input, |file| {
            self.file(file, &mut parts.borrow_mut()).map_err(|error| match error {
                Broken::Archive(error) => error,
                Broken::Store(error) => {
                    failure = Some(error);
                    io::Error::other("a layer cannot be taken in")
                }
            })
        });
        if let Some(failure) = failure {
            return Err(failure.into());
        }
        read.map_err(|error| Failure::because("cannot read the image that the daemon sent", error))?;
        parts.into_inner().image()
    }

    /// Takes in one file of an image that does not come as an archive.
    pub(crate) fn take_file(&self, file: ArchiveFile<'_>, parts: &mut Parts) -> Result<()> {
        self.file(file, parts).map_err(|error| match error {
            Broken::Archive(error) => Failure::because("cannot read the image that the daemon sent", error),
            Broken::Store(error) => error.into(),
        })
    }

    fn file(&self, file: ArchiveFile<'_>, parts: &mut Parts) -> std::result::Result<(), Broken> {
        let name = clean(&file.path);
        if let Some(target) = file.link {
            let below = name.parent().unwrap_or(Path::new(""));
            parts.links.insert(name.clone(), clean(&below.join(target)));
            return Ok(());
        }
        if let Some(known) = self.known(&name) {
            parts.layers.insert(name, known);
            return Ok(());
        }
        let mut begin = Vec::new();
        file.content.take(1).read_to_end(&mut begin)?;
        let mut content: Box<dyn Read + '_> = Box::new(io::Cursor::new(begin.clone()).chain(file.content));
        let may_be_text = file.size <= MAX_TEXT_BYTES && !name.ends_with("layer.tar");
        if may_be_text && !matches!(begin.first(), None | Some(0x1f | 0x28)) {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes)?;
            if serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok() {
                return parts.add_text(name, bytes);
            }
            content = Box::new(io::Cursor::new(bytes));
        }
        let is_layer = name.starts_with("blobs") || name.ends_with("layer.tar");
        if is_layer && !begin.is_empty() {
            let is_compressed = matches!(begin.first(), Some(0x1f | 0x28));
            let layer = self.read_layer(&name, content, is_compressed)?;
            let (intake, layer_name) = (self.clone(), name.clone());
            let finishing = std::thread::spawn(move || intake.finish_layer(&layer_name, layer));
            parts.finish_later((name, finishing))?;
        }
        Ok(())
    }

    /// A layer that we have: a base image's, or one that an earlier build took in.
    pub(crate) fn known(&self, name: &Path) -> Option<Layer> {
        let hex = name.file_name()?.to_str()?;
        let is_it = |layer: &&Layer| layer.blob.digest.hex() == hex || layer.diff_id_there.hex() == hex;
        if let Some(base) = self.bases.iter().find(is_it) {
            return Some(base.clone());
        }
        if self.no_cache {
            return None;
        }
        // A cache that cannot be read is none.
        let record = self.store.cache().get_to_use(&self.key(name)).ok()??;
        let layer: Layer = serde_json::from_slice(&record).ok()?;
        self.store.blobs().contains(&layer.blob.digest).then_some(layer)
    }

    /// The layers of which the engine has these `diff_ids`, where all are here already.
    pub(crate) fn known_layers(&self, diff_ids: &[Digest]) -> Option<Vec<Layer>> {
        diff_ids.iter().map(|diff_id| self.known(&blob(diff_id))).collect()
    }

    /// Reads a layer. A blob must have the digest that it is called by: a connection may break off where an archive could end.
    fn read_layer(
        &self,
        name: &Path,
        content: impl Read,
        is_compressed: bool,
    ) -> std::result::Result<ReadLayer, StoreError> {
        let promised = promised(name);
        let is_hashed_anyway = |digest: &&Digest| digest.algorithm() == Algorithm::Sha256 && !is_compressed;
        let hasher = promised.as_ref().filter(|digest| !is_hashed_anyway(digest));
        let hasher = hasher.map(|digest| Hasher::new(digest.algorithm()));
        let mut content = Hashed { content, hasher };
        let layer = self.store.read_layer(&mut content, self.newest_mtime, self.encoding)?;
        let actual = content.hasher.map_or_else(|| layer.diff_id_there().clone(), Hasher::finish);
        match promised {
            Some(expected) if expected != actual => {
                Err(StoreError::new("cannot take in a layer", StoreErrorKind::DigestMismatch { expected, actual }))
            }
            _ => Ok(layer),
        }
    }

    /// Publishes a layer, and remembers it.
    fn finish_layer(&self, name: &Path, layer: ReadLayer) -> std::result::Result<Layer, StoreError> {
        let ForeignLayer { diff_id_there, blob: made } = layer.finish()?;
        let base = self.bases.iter().find(|base| base.diff_id_there == diff_id_there);
        let layer = base.cloned().unwrap_or_else(|| Layer {
            diff_id_there: diff_id_there.clone(),
            diff_id: made.diff_id,
            blob: made.descriptor,
            is_ours: true,
        });
        let record = serde_json::to_vec(&layer).expect("a layer has only string keys");
        let by_content = blob(&diff_id_there);
        self.store.cache().put(&self.key(&by_content), &record)?;
        // A compressed blob is known by its content only.
        if name != by_content && !name.starts_with("blobs") {
            self.store.cache().put(&self.key(name), &record)?;
        }
        Ok(layer)
    }

    /// Older engines call a layer by an id of their own.
    fn key(&self, name: &Path) -> String {
        let (mtime, encoding) = (self.newest_mtime, self.encoding);
        let whose = if name.starts_with("blobs") { "" } else { self.address.as_str() };
        format!("buildkit-layer {whose} {} {mtime} {encoding}", name.display())
    }
}

/// Hashes what is read, where that is asked for.
struct Hashed<R> {
    content: R,
    hasher: Option<Hasher>,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.content.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..length]);
        }
        Ok(length)
    }
}

/// What can go wrong with a file of an archive.
enum Broken {
    Archive(io::Error),
    Store(StoreError),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Broken {
        Broken::Archive(error)
    }
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Broken {
        Broken::Store(error)
    }
}

impl Parts {
    fn add_text(&mut self, name: PathBuf, bytes: Vec<u8>) -> std::result::Result<(), Broken> {
        self.n_bytes += bytes.len();
        if self.n_bytes > MAX_TEXTS_BYTES {
            return Err(io::Error::other("the archive has too many texts").into());
        }
        self.texts.insert(name, bytes);
        Ok(())
    }

    pub(crate) fn add_layer(&mut self, name: PathBuf, layer: Layer) {
        self.layers.insert(name, layer);
    }

    pub(crate) fn merge(&mut self, other: Parts) -> Result<()> {
        self.texts.extend(other.texts);
        self.layers.extend(other.layers);
        Ok(other.finishing.into_iter().try_for_each(|finishing| self.finish_later(finishing))?)
    }

    /// Goes on while a layer is finished, unless there are many of them.
    fn finish_later(&mut self, finishing: Finishing) -> std::result::Result<(), StoreError> {
        self.finishing.push_back(finishing);
        if self.finishing.len() > FINISHING { self.finish_one() } else { Ok(()) }
    }

    fn finish_one(&mut self) -> std::result::Result<(), StoreError> {
        let Some((name, finishing)) = self.finishing.pop_front() else { return Ok(()) };
        let panicked = |_| Err(StoreError::new("cannot take in a layer", StoreErrorKind::Malformed("a panic".into())));
        let layer = finishing.join().unwrap_or_else(panicked)?;
        self.layers.insert(name, layer);
        Ok(())
    }

    /// The image whose manifest or index is `top`.
    pub(crate) fn image_of(mut self, top: &Digest) -> Result<Taken> {
        let index = format!(r#"{{"manifests": [{{"digest": "{top}"}}]}}"#);
        self.texts.insert(PathBuf::from("index.json"), index.into_bytes());
        self.image()
    }

    fn image(mut self) -> Result<Taken> {
        while !self.finishing.is_empty() {
            self.finish_one()?;
        }
        let (layers, config) = match self.texts.contains_key(Path::new("manifest.json")) {
            true => self.saved()?,
            false => self.layout()?,
        };
        let config: ConfigText = self.text(&config)?;
        let mut found = Vec::new();
        for (name, diff_id) in layers.iter().zip(&config.rootfs.diff_ids) {
            let name = self.links.get(name).unwrap_or(name);
            let layer = self.layers.get(name).ok_or_else(|| broken(format!("it has no layer `{}`", name.display())))?;
            if layer.diff_id_there != *diff_id {
                return Err(broken(format!("the layer {diff_id} is {}", layer.diff_id_there)));
            }
            found.push(layer.clone());
        }
        let (n_layers, n_diff_ids) = (layers.len(), config.rootfs.diff_ids.len());
        if n_layers != n_diff_ids {
            return Err(broken(format!("its manifest has {n_layers} layers, its config has {n_diff_ids}")));
        }
        Ok(Taken { layers: found, cache: config.cache })
    }

    fn saved(&self) -> Result<(Vec<PathBuf>, PathBuf)> {
        let images: Vec<SavedText> = self.text(Path::new("manifest.json"))?;
        let [image] = images.as_slice() else {
            return Err(broken(format!("it has {} images", images.len())));
        };
        Ok((image.layers.iter().map(|name| clean(name)).collect(), clean(&image.config)))
    }

    fn layout(&self) -> Result<(Vec<PathBuf>, PathBuf)> {
        let mut name = PathBuf::from("index.json");
        // An index may be in an index.
        for _ in 0..4 {
            let manifest: ManifestText = self.text(&name)?;
            if let Some(config) = &manifest.config {
                return Ok((manifest.layers.iter().map(|layer| blob(&layer.digest)).collect(), blob(&config.digest)));
            }
            name =
                manifest.manifests.first().map(|first| blob(&first.digest)).ok_or_else(|| broken("it has no image"))?;
        }
        Err(broken("its indexes never end"))
    }

    fn text<T: serde::de::DeserializeOwned>(&self, name: &Path) -> Result<T> {
        let bytes = self.texts.get(name).ok_or_else(|| broken(format!("it has no `{}`", name.display())))?;
        serde_json::from_slice(bytes).map_err(|error| broken(format!("`{}`: {error}", name.display())))
    }
}

fn broken(what: impl std::fmt::Display) -> Failure {
    Failure::new(format!("the image that the daemon sent is broken: {what}"))
}

pub(crate) fn blob(digest: &Digest) -> PathBuf {
    ["blobs", digest.algorithm().as_str(), digest.hex()].iter().collect()
}

/// The digest that a blob is called by.
fn promised(name: &Path) -> Option<Digest> {
    let mut parts = name.strip_prefix("blobs").ok()?.iter().map(|part| part.to_str());
    format!("{}:{}", parts.next()??, parts.next()??).parse().ok()
}

/// A name in an archive, relative, `..` resolved.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

/// The layers of the images that `manifests` describe, lowest first, as they are in the store.
pub(crate) fn base_layers<'m>(store: &Store, manifests: impl Iterator<Item = &'m Descriptor>) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    for manifest in manifests {
        let image = store.images().load(manifest)?;
        for (diff_id, blob) in image.config.rootfs.diff_ids.into_iter().zip(image.manifest.layers) {
            let blob = blob.in_oci_terms();
            layers.push(Layer { diff_id_there: diff_id.clone(), diff_id, blob, is_ours: false });
        }
    }
    Ok(layers)
}
