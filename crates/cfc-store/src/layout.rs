//! OCI image layouts: images as directories that other tools read and write (image-spec, "Image Layout").
//!
//! ```text
//! <directory>/oci-layout          {"imageLayoutVersion":"1.0.0"}
//! <directory>/index.json          an index; each image's name is an annotation of its descriptor
//! <directory>/blobs/<algorithm>/<hex>
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use cfc_oci::{Descriptor, Digest, Index, ManifestOrIndex, Reference, Tag, media_type};
use rustix::fs::{Mode, OFlags};
use tempfile::NamedTempFile;

use crate::error::Context;
use crate::image::describe;
use crate::{Result, Store, StoreError, StoreErrorKind};

/// The annotation that names an image of a layout.
pub(crate) const NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";
pub(crate) const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Indexes in indexes, below the layout's own.
const MAX_INDEX_DEPTH: usize = 4;
/// Far above any honest index, far below what hurts.
const MAX_JSON_BYTES: u64 = 16 << 20;

impl Store {
    /// Writes `image`, with everything it consists of, to the OCI layout `directory`, making it or adding to it. There
    /// it is called by the tag of `reference`; an image that had this name loses it.
    pub fn export_oci_layout(&self, image: &Descriptor, reference: Option<&Reference>, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).on("make the directory", directory)?;
        for blob in self.blobs_of(image)? {
            self.export_blob(&blob, directory)?;
        }
        name_in_oci_layout(image, reference, directory)
    }

    /// Takes in the image that the OCI layout `directory` calls `name` (its only one, for `None`), verifying every
    /// digest and size, and returns its descriptor.
    pub fn import_oci_layout(&self, directory: &Path, name: Option<&str>) -> Result<Descriptor> {
        let index = read_index(&directory.join("index.json"))?;
        let subject = || format!("cannot import from the OCI layout `{}`", directory.display());
        let is_named = |image: &&Descriptor| name.is_none_or(|name| image_name(image) == Some(name));
        let candidates: Vec<&Descriptor> = index.manifests.iter().filter(is_named).collect();
        let image = match candidates.as_slice() {
            [image] => without_name(image),
            _ => {
                let names: Vec<&str> = index.manifests.iter().filter_map(image_name).collect();
                let wanted = name.map_or("exactly one image".to_string(), |name| format!("one image named `{name}`"));
                let text = format!("expected {wanted}, found {} (named: {})", candidates.len(), names.join(", "));
                return Err(StoreError::new(subject(), StoreErrorKind::Malformed(text)));
            }
        };
        self.import_tree(&image, directory, MAX_INDEX_DEPTH, &mut BTreeSet::new())?;
        Ok(image)
    }

    /// Takes in `image` of the OCI layout `directory`, as [`find_in_oci_layout`] describes it, verifying every digest and
    /// size.
    pub fn import_from_oci_layout(&self, directory: &Path, image: &Descriptor) -> Result<()> {
        self.import_tree(image, directory, MAX_INDEX_DEPTH, &mut BTreeSet::new())
    }

    /// Every blob that belongs to `image`, itself last. Layers that clients must fetch from elsewhere may be missing.
    pub fn blobs_of(&self, image: &Descriptor) -> Result<Vec<Descriptor>> {
        let mut blobs = Vec::new();
        self.collect(image, MAX_INDEX_DEPTH, &mut blobs)?;
        Ok(blobs)
    }

    fn collect(&self, descriptor: &Descriptor, depth: usize, blobs: &mut Vec<Descriptor>) -> Result<()> {
        let is_known = blobs.iter().any(|present| present.digest == descriptor.digest);
        if is_known {
            return Ok(());
        }
        for child in self.children(descriptor, depth)? {
            match is_manifest_or_index(&child) {
                // An index may name images that were never pulled, for other platforms.
                true if !self.blobs().contains(&child.digest) => continue,
                true => self.collect(&child, depth - 1, blobs)?,
                false => push_once(blobs, child),
            }
        }
        push_once(blobs, descriptor.clone());
        Ok(())
    }

    fn children(&self, descriptor: &Descriptor, depth: usize) -> Result<Vec<Descriptor>> {
        let subject = || format!("cannot read image `{}`", descriptor.digest);
        if depth == 0 {
            let kind = StoreErrorKind::Limit(format!("indexes are nested deeper than {MAX_INDEX_DEPTH} levels"));
            return Err(StoreError::new(subject(), kind));
        }
        let bytes = self.blobs().read(&descriptor.digest)?;
        Ok(match ManifestOrIndex::parse(&descriptor.media_type, &bytes).context(subject)? {
            ManifestOrIndex::Manifest(manifest) => [vec![manifest.config], manifest.layers].concat(),
            ManifestOrIndex::Index(index) => index.manifests,
        })
    }

    fn export_blob(&self, blob: &Descriptor, directory: &Path) -> Result<()> {
        let target = layout_path(directory, &blob.digest);
        if target.metadata().is_ok_and(|metadata| metadata.len() == blob.size) {
            return Ok(());
        }
        let parent = target.parent().unwrap_or(directory);
        fs::create_dir_all(parent).on("make the directory", parent)?;
        let mut source = self.blobs().open(&blob.digest)?;
        // A copy and not a link: whoever edits the layout must not edit the store.
        let mut file = NamedTempFile::new_in(parent).on("write", &target)?;
        io::copy(&mut source, file.as_file_mut()).on("write", &target)?;
        persist_readable(file, &target)
    }

    /// `seen` has what was taken in already: an index can name another a thousand times, and that one the next.
    fn import_tree(
        &self,
        descriptor: &Descriptor,
        directory: &Path,
        depth: usize,
        seen: &mut BTreeSet<Digest>,
    ) -> Result<()> {
        if !seen.insert(descriptor.digest.clone()) {
            return Ok(());
        }
        self.import_blob(descriptor, directory)?;
        for child in self.children(descriptor, depth)? {
            let is_there = layout_path(directory, &child.digest).exists();
            match is_manifest_or_index(&child) {
                true if is_there => self.import_tree(&child, directory, depth - 1, seen)?,
                true => {}
                false => self.import_blob(&child, directory)?,
            }
        }
        Ok(())
    }

    /// Takes in a blob of the OCI layout `directory`, verified by digest and size.
    pub fn import_layout_blob(&self, blob: &Descriptor, directory: &Path) -> Result<()> {
        self.import_blob(blob, directory)
    }

    fn import_blob(&self, blob: &Descriptor, directory: &Path) -> Result<()> {
        if self.blobs().contains(&blob.digest) {
            return Ok(());
        }
        let path = layout_path(directory, &blob.digest);
        // One byte more tells a file that is longer, however long it is.
        let mut file = open_file(&path)?.take(blob.size.saturating_add(1));
        let mut writer = self.blobs().writer_with(blob.digest.algorithm())?;
        let copied = io::copy(&mut file, &mut writer).on("read", &path)?;
        if copied != blob.size {
            let kind = StoreErrorKind::SizeMismatch { expected: blob.size, actual: copied };
            return Err(StoreError::new(format!("cannot take in `{}`", path.display()), kind));
        }
        writer.commit(Some(&blob.digest)).map(drop)
    }
}

/// The image of the OCI layout `directory` that is called `tag`; where none is called so, its only one (as buildx has it).
/// With a digest, the image of that digest, whatever it is called.
pub fn find_in_oci_layout(directory: &Path, tag: &str, digest: Option<&Digest>) -> Result<Descriptor> {
    let index = read_index(&directory.join("index.json"))?;
    let subject = || format!("cannot find the image in the OCI layout `{}`", directory.display());
    if let Some(digest) = digest {
        let known = index.manifests.iter().find(|image| image.digest == *digest).map(without_name);
        return known.map_or_else(|| describe_layout_blob(directory, digest), Ok);
    }
    let is_called = |image: &&Descriptor| image_name(image) == Some(tag);
    match (index.manifests.iter().find(is_called), index.manifests.as_slice()) {
        (Some(image), _) | (None, [image]) => Ok(without_name(image)),
        (None, images) => {
            let names: Vec<&str> = images.iter().filter_map(image_name).collect();
            let text = format!("none of its {} images is named `{tag}` (named: {})", images.len(), names.join(", "));
            Err(StoreError::new(subject(), StoreErrorKind::Malformed(text)))
        }
    }
}

/// Has the OCI layout `directory`, which has all blobs of `image` already, call it by the tag of `reference`; an image that
/// had this name loses it.
pub fn name_in_oci_layout(image: &Descriptor, reference: Option<&Reference>, directory: &Path) -> Result<()> {
    publish(&directory.join("oci-layout"), MARKER)?;
    let path = directory.join("index.json");
    let mut index = match path.exists() {
        true => read_index(&path)?,
        false => Index::new(Vec::new()),
    };
    let descriptor = named(image, reference);
    index.manifests.retain(|present| match image_name(&descriptor) {
        Some(name) => image_name(present) != Some(name),
        None => present.digest != image.digest,
    });
    index.manifests.push(descriptor);
    publish(&path, &index.to_bytes())
}

/// The blob `digest` of the OCI layout `directory`, to read, and its size in bytes. What it holds is not verified.
pub fn open_layout_blob(directory: &Path, digest: &Digest) -> Result<(File, u64)> {
    let path = layout_path(directory, digest);
    let file = open_file(&path)?;
    let size = file.metadata().on("look at", &path)?.len();
    Ok((file, size))
}

/// The manifest or index `digest` of the OCI layout `directory`, whose own index need not name it.
pub fn describe_layout_blob(directory: &Path, digest: &Digest) -> Result<Descriptor> {
    let path = layout_path(directory, digest);
    let file = open_file(&path)?;
    let mut bytes = Vec::new();
    file.take(MAX_JSON_BYTES).read_to_end(&mut bytes).on("read", &path)?;
    describe(digest, &bytes).on("read", &path)
}

/// `image` as a layout calls it that has it as `reference`.
pub(crate) fn named(image: &Descriptor, reference: Option<&Reference>) -> Descriptor {
    let mut descriptor = image.clone();
    descriptor.annotations.remove(NAME_ANNOTATION);
    let name = reference.map(|reference| reference.tag.clone().unwrap_or_else(Tag::latest).to_string());
    descriptor.annotations.extend(name.map(|name| (NAME_ANNOTATION.to_string(), name)));
    descriptor
}

fn push_once(blobs: &mut Vec<Descriptor>, blob: Descriptor) {
    if !blobs.iter().any(|present| present.digest == blob.digest) {
        blobs.push(blob);
    }
}

fn is_manifest_or_index(descriptor: &Descriptor) -> bool {
    media_type::is_manifest(&descriptor.media_type) || media_type::is_index(&descriptor.media_type)
}

pub(crate) fn layout_path(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
}

fn image_name(image: &Descriptor) -> Option<&str> {
    image.annotations.get(NAME_ANNOTATION).map(String::as_str)
}

fn without_name(image: &Descriptor) -> Descriptor {
    let mut image = image.clone();
    image.annotations.remove(NAME_ANNOTATION);
    image
}

fn read_index(path: &Path) -> Result<Index> {
    let file = open_file(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_JSON_BYTES).read_to_end(&mut bytes).on("read", path)?;
    let malformed = |error| StoreErrorKind::Malformed(format!("malformed index: {error}"));
    serde_json::from_slice(&bytes).map_err(malformed).on("read", path)
}

/// A file to read: opening a pipe would wait for whoever writes to it, and a device never ends.
fn open_file(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from).on("open", path)?);
    match file.metadata().on("look at", path)?.is_file() {
        true => Ok(file),
        false => Err(StoreErrorKind::Malformed("it is no file".to_string())).on("read", path),
    }
}

/// Writes a whole file or nothing.
fn publish(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(parent).on("write", path)?;
    file.write_all(bytes).on("write", path)?;
    persist_readable(file, path)
}

/// Layouts are for other programs, perhaps other users: temporary files are only ours.
pub(crate) fn persist_readable(file: NamedTempFile, path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).on("write", path)?;
    file.persist(path).map_err(|error| error.error).on("write", path)?;
    Ok(())
}
