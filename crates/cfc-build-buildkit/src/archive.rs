//! [`Intake`]: an image's archive, taken apart as it comes: an OCI layout, or what `docker save` writes. Nothing of it is kept
//! but layers, in the store, and the few texts that say which they are.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use cfc_oci::{Descriptor, Digest};
use cfc_store::{ArchiveFile, Encoding, Store, StoreError, read_archive};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};

/// No honest text of an image is larger, in bytes.
const MAX_TEXT_BYTES: u64 = 4 << 20;
/// All of them together.
const MAX_TEXTS_BYTES: usize = 64 << 20;

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
}

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
            let layer = self.layer(&name, content)?;
            parts.layers.insert(name, layer);
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

    fn layer(&self, name: &Path, content: impl Read) -> std::result::Result<Layer, Broken> {
        let taken = self.store.take_in_layer(content, self.newest_mtime, self.encoding)?;
        let base = self.bases.iter().find(|base| base.diff_id_there == taken.diff_id_there);
        let layer = base.cloned().unwrap_or_else(|| Layer {
            diff_id_there: taken.diff_id_there.clone(),
            diff_id: taken.blob.diff_id,
            blob: taken.blob.descriptor,
            is_ours: true,
        });
        // What is called by a digest must have it to be known by it.
        let is_blob = name.starts_with("blobs");
        if !is_blob || name.file_name().is_some_and(|file| file == taken.diff_id_there.hex()) {
            let record = serde_json::to_vec(&layer).expect("a layer has only string keys");
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

    pub(crate) fn merge(&mut self, other: Parts) {
        self.texts.extend(other.texts);
        self.layers.extend(other.layers);
    }

    /// The image whose manifest or index is `top`.
    pub(crate) fn image_of(mut self, top: &Digest) -> Result<Taken> {
        let index = format!(r#"{{"manifests": [{{"digest": "{top}"}}]}}"#);
        self.texts.insert(PathBuf::from("index.json"), index.into_bytes());
        self.image()
    }

    fn image(&self) -> Result<Taken> {
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
