//! [`ImageStore`]: images by reference, and [`Image`]: one of them, read.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use cfc_oci::{Descriptor, Digest, ImageConfig, Manifest, ManifestOrIndex, Platform, Reference, media_type};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::blob::sync_directory_of;
use crate::error::Context;
use crate::{Result, Store, StoreError, StoreErrorKind, changing};

/// An index may name an index. More levels than these serve nobody.
const MAX_INDEX_DEPTH: usize = 4;

/// One image, for one platform.
#[derive(Clone, Debug)]
pub struct Image {
    /// The manifest's descriptor.
    pub descriptor: Descriptor,
    /// The manifest.
    pub manifest: Manifest,
    /// The config it points at.
    pub config: ImageConfig,
}

/// Images by reference.
#[derive(Clone, Debug)]
pub struct ImageStore {
    store: Store,
}

#[derive(Serialize, Deserialize)]
struct Record {
    reference: Reference,
    manifest: Descriptor,
    /// Seconds since 1970.
    updated: u64,
    /// Whether a registry has it too, so that it can be had again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pulled: bool,
}

/// A name of an image, for those who decide what is kept.
pub(crate) struct NamedImage {
    pub(crate) reference: Reference,
    pub(crate) manifest: Descriptor,
    pub(crate) pulled: bool,
    /// Where that is recorded; its time is when it was used last.
    pub(crate) path: PathBuf,
}

impl ImageStore {
    pub(crate) fn new(store: Store) -> ImageStore {
        ImageStore { store }
    }

    /// Makes `reference` name `image`, a manifest or index whose bytes are in the blob store. A reference without a tag
    /// means `latest`; the digest of a reference is not kept.
    pub fn tag(&self, reference: &Reference, image: &Descriptor) -> Result<()> {
        self.record_as(reference, image, false)
    }

    /// As [`ImageStore::tag`], for an image that a registry has too: pruning everything forgets it, and so does the limit
    /// of the build cache when it was not used for longest.
    pub fn tag_pulled(&self, reference: &Reference, image: &Descriptor) -> Result<()> {
        self.record_as(reference, image, true)
    }

    fn record_as(&self, reference: &Reference, image: &Descriptor, pulled: bool) -> Result<()> {
        let subject = || format!("cannot tag `{reference}`");
        if !self.store.blobs().contains(&image.digest) {
            let kind = StoreErrorKind::Malformed(format!("its manifest `{}` is not in the store", image.digest));
            return Err(StoreError::new(subject(), kind));
        }
        let reference = tagged(reference);
        let updated = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        let path = self.path(&reference);
        let record = Record { reference, manifest: image.clone(), updated, pulled };
        let bytes = serde_json::to_vec_pretty(&record).map_err(io::Error::from).context(subject)?;
        let mut file = NamedTempFile::new_in(self.store.session_directory()).context(subject)?;
        file.write_all(&bytes).and_then(|()| file.as_file().sync_all()).context(subject)?;
        // A pruner that decided to take the old name away takes that, not ours.
        let _guard = self.store.uses().guard()?;
        file.persist(&path).map_err(|error| error.error).context(subject)?;
        sync_directory_of(&path)
    }

    /// What `reference` names: by its digest, else by its tag, else by the tag `latest`. The image stays for as long as
    /// this process lives, even if it loses the name.
    pub fn resolve(&self, reference: &Reference) -> Result<Option<Descriptor>> {
        let _guard = self.store.uses().guard()?;
        let found = match &reference.digest {
            Some(digest) => self.describe(digest)?,
            None => {
                let path = self.path(&tagged(reference));
                let record = self.record(&path)?;
                if record.as_ref().is_some_and(|record| record.pulled) {
                    touch(&path);
                }
                record.map(|record| record.manifest)
            }
        };
        if let Some(image) = &found {
            // Noting is all that this is for: what a damaged image lacks is told by those who need it.
            let blobs = self.store.blobs_of(image).unwrap_or_default();
            for blob in blobs {
                let _ = self.store.blobs().contains(&blob.digest);
            }
        }
        Ok(found)
    }

    /// Every reference and what it names, sorted by reference.
    pub fn list(&self) -> Result<Vec<(Reference, Descriptor)>> {
        let directory = self.store.root().join("refs");
        let mut images = Vec::new();
        for entry in fs::read_dir(&directory).on("list", &directory)? {
            let path = entry.on("list", &directory)?.path();
            // One that disappeared in the meantime was removed by somebody.
            if let Some(record) = self.record(&path)? {
                images.push((record.reference, record.manifest));
            }
        }
        images.sort_by(|(left, _), (right, _)| left.cmp(right));
        Ok(images)
    }

    /// Every name, for those who decide what is kept.
    ///
    /// # Errors
    /// Also for a single record that cannot be read: what it names must not count as needless.
    pub(crate) fn names(root: &Path) -> Result<Vec<NamedImage>> {
        let mut names = Vec::new();
        for path in changing::entries(&root.join("refs"))? {
            if let Some(Record { reference, manifest, pulled, .. }) = read_record(&path)? {
                names.push(NamedImage { reference, manifest, pulled, path });
            }
        }
        Ok(names)
    }

    /// Keeps `image`, whatever it is called, also when no process uses it.
    pub fn keep(&self, image: &Descriptor) -> Result<()> {
        let path = kept_path(&self.store.root().join("kept"), &image.digest);
        if path.exists() {
            return Ok(());
        }
        let bytes = serde_json::to_vec(image).map_err(io::Error::from).on("write", &path)?;
        let mut file = NamedTempFile::new_in(self.store.session_directory()).on("write", &path)?;
        file.write_all(&bytes).and_then(|()| file.as_file().sync_all()).on("write", &path)?;
        file.persist(&path).map_err(|error| error.error).on("write", &path)?;
        sync_directory_of(&path)
    }

    /// Keeps `images`, as [`ImageStore::keep`] does, and no others any more.
    pub fn keep_only(&self, images: &[Descriptor]) -> Result<()> {
        images.iter().try_for_each(|image| self.keep(image))?;
        let directory = self.store.root().join("kept");
        let wanted: Vec<PathBuf> = images.iter().map(|image| kept_path(&directory, &image.digest)).collect();
        for entry in fs::read_dir(&directory).on("list", &directory)? {
            let path = entry.on("list", &directory)?.path();
            if !wanted.contains(&path) {
                fs::remove_file(&path).on("remove", &path)?;
            }
        }
        Ok(())
    }

    /// The images that [`ImageStore::keep_only`] keeps.
    pub(crate) fn kept(root: &Path) -> Result<Vec<Descriptor>> {
        let mut kept = Vec::new();
        for path in changing::entries(&root.join("kept"))? {
            // `keep_only` takes away what is kept no more without asking pruners.
            let Some(bytes) = changing::content(&path)? else { continue };
            let malformed = |error| StoreErrorKind::Malformed(format!("malformed descriptor: {error}"));
            kept.push(serde_json::from_slice(&bytes).map_err(malformed).on("read", &path)?);
        }
        Ok(kept)
    }

    /// Forgets the reference; returns whether there was one. The blobs stay.
    pub fn untag(&self, reference: &Reference) -> Result<bool> {
        let path = self.path(&tagged(reference));
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).on("remove", &path),
        }
    }

    /// Reads the manifest and config behind `descriptor`; of an index, the image for this machine.
    pub fn load(&self, descriptor: &Descriptor) -> Result<Image> {
        self.load_for(descriptor, &Platform::host())
    }

    /// As [`ImageStore::load`], for `platform`.
    pub fn load_for(&self, descriptor: &Descriptor, platform: &Platform) -> Result<Image> {
        let (descriptor, manifest) = self.manifest_for(descriptor, platform)?;
        let subject = || format!("cannot read the config of image `{}`", descriptor.digest);
        let bytes = self.store.blobs().read(&manifest.config.digest)?;
        let config = serde_json::from_slice(&bytes)
            .map_err(|error| StoreErrorKind::Malformed(format!("malformed image config: {error}")))
            .context(subject)?;
        Ok(Image { descriptor, manifest, config })
    }

    /// The manifest that `descriptor` leads to on `platform`, with its own descriptor.
    fn manifest_for(&self, descriptor: &Descriptor, platform: &Platform) -> Result<(Descriptor, Manifest)> {
        let subject = || format!("cannot read image `{}`", descriptor.digest);
        let mut descriptor = descriptor.clone();
        for _ in 0..MAX_INDEX_DEPTH {
            let bytes = self.store.blobs().read(&descriptor.digest)?;
            let index = match ManifestOrIndex::parse(&descriptor.media_type, &bytes).context(subject)? {
                ManifestOrIndex::Manifest(manifest) => return Ok((descriptor, manifest)),
                ManifestOrIndex::Index(index) => index,
            };
            descriptor = index.for_platform(platform).cloned().ok_or_else(|| {
                let offered = index.manifests.iter().filter_map(|manifest| manifest.platform.clone()).collect();
                StoreError::new(subject(), StoreErrorKind::Platform { wanted: Box::new(platform.clone()), offered })
            })?;
        }
        let kind = StoreErrorKind::Limit(format!("indexes are nested deeper than {MAX_INDEX_DEPTH} levels"));
        Err(StoreError::new(subject(), kind))
    }

    /// The descriptor of a manifest that is known by its digest alone.
    pub fn describe(&self, digest: &Digest) -> Result<Option<Descriptor>> {
        if !self.store.blobs().contains(digest) {
            return Ok(None);
        }
        let bytes = self.store.blobs().read(digest)?;
        describe(digest, &bytes).context(|| format!("cannot read manifest `{digest}`")).map(Some)
    }

    fn record(&self, path: &Path) -> Result<Option<Record>> {
        read_record(path)
    }

    fn path(&self, reference: &Reference) -> PathBuf {
        self.store.root().join("refs").join(format!("{}.json", escape(&reference.to_string())))
    }
}

/// The descriptor of a manifest or index with these bytes.
pub(crate) fn describe(digest: &Digest, bytes: &[u8]) -> std::result::Result<Descriptor, StoreErrorKind> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Envelope {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let envelope: Envelope = serde_json::from_slice(bytes)
        .map_err(|error| StoreErrorKind::Malformed(format!("it is not a manifest: {error}")))?;
    let guess = if envelope.manifests.is_some() { media_type::INDEX } else { media_type::MANIFEST };
    let media_type = envelope.media_type.as_deref().unwrap_or(guess);
    Ok(Descriptor::new(media_type, digest.clone(), bytes.len() as u64))
}

fn read_record(path: &Path) -> Result<Option<Record>> {
    let Some(bytes) = changing::content(path)? else { return Ok(None) };
    let malformed = |error| StoreErrorKind::Malformed(format!("malformed image record: {error}"));
    serde_json::from_slice(&bytes).map(Some).map_err(malformed).on("read", path)
}

fn kept_path(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join(format!("{}-{}.json", digest.algorithm().as_str(), digest.hex()))
}

/// Says that `path` was used now. It is only a hint, so a failure is none.
pub(crate) fn touch(path: &Path) {
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
    let _ = rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty());
}

/// The reference as it is kept: with a tag, without a digest.
fn tagged(reference: &Reference) -> Reference {
    let tag = reference.tag.clone().unwrap_or_else(cfc_oci::Tag::latest);
    Reference { tag: Some(tag), digest: None, ..reference.clone() }
}

/// A file name for `text`: `/` becomes `%2F`, `:` becomes `%3A`; what gets too long for a file name ends in a digest.
fn escape(text: &str) -> String {
    let escaped = text.replace('%', "%25").replace('/', "%2F").replace(':', "%3A");
    match escaped.len() {
        0..=200 => escaped,
        _ => format!("{}+{}", &escaped[..120], Digest::of(text.as_bytes()).hex()),
    }
}
