//! An image as one root filesystem, a line a file: what two builders must agree on.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use cfc_oci::{Digest, ImageConfig};
use cfc_store::Store;

/// An image, unpacked below a store of its own.
pub struct Flattened {
    /// A line for each path, by path.
    pub files: BTreeMap<PathBuf, String>,
    pub config: ImageConfig,
}

/// The only image of the OCI layout `directory`.
pub fn flatten(directory: &Path) -> Flattened {
    let home = tempfile::tempdir().expect("a directory");
    flatten_in(&Store::open(home.path()).expect("a store"), directory)
}

/// The same, unpacked in `store`: there, images on one base unpack it once.
pub fn flatten_in(store: &Store, directory: &Path) -> Flattened {
    let descriptor = store.import_oci_layout(directory, None).expect("imports");
    let image = store.images().load(&descriptor).expect("loads");
    let layers = store.unpack_image(&image).expect("unpacks");
    let mut view = BTreeMap::new();
    for layer in layers.iter().rev() {
        lay_over(&mut view, layer, Path::new(""));
    }
    let mut first_names: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let files = view.iter().map(|(path, real)| (path.clone(), describe(path, real, &mut first_names)));
    Flattened { files: files.collect(), config: image.config }
}

/// Lays `directory` of `layer` over what is known so far: overlayfs's rules.
fn lay_over(view: &mut BTreeMap<PathBuf, PathBuf>, layer: &Path, directory: &Path) {
    for entry in fs::read_dir(layer.join(directory)).expect("lists") {
        let name = entry.expect("an entry").file_name();
        let (path, real) = (directory.join(&name), layer.join(directory).join(&name));
        let metadata = real.symlink_metadata().expect("is there");
        let is_whiteout = metadata.file_type().is_char_device() && metadata.rdev() == 0;
        let is_opaque = xattrs(&real, true).iter().any(|(name, value)| name == "user.overlay.opaque" && value == b"y");
        if is_whiteout || !metadata.is_dir() || is_opaque {
            let below: Vec<PathBuf> = view.keys().filter(|other| other.starts_with(&path)).cloned().collect();
            below.iter().for_each(|path| drop(view.remove(path)));
        }
        if is_whiteout {
            continue;
        }
        view.insert(path.clone(), real);
        if metadata.is_dir() {
            lay_over(view, layer, &path);
        }
    }
}

fn describe(path: &Path, real: &Path, first_names: &mut HashMap<(u64, u64), PathBuf>) -> String {
    let metadata = real.symlink_metadata().expect("is there");
    let what = what(path, real, &metadata, first_names);
    let attributes = xattrs(real, false).into_iter().map(|(name, value)| {
        format!(" {}={}", name.to_string_lossy(), value.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    });
    let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
    format!("{} {mode:04o} {uid}:{gid} /{}{what}{}", kind(&metadata), path.display(), attributes.collect::<String>())
}

fn kind(metadata: &Metadata) -> char {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => 'd',
        () if kind.is_file() => 'f',
        () if kind.is_symlink() => 'l',
        () if kind.is_char_device() => 'c',
        () if kind.is_block_device() => 'b',
        () if kind.is_fifo() => 'p',
        () => 's',
    }
}

fn what(path: &Path, real: &Path, metadata: &Metadata, first_names: &mut HashMap<(u64, u64), PathBuf>) -> String {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        return format!(" -> {}", real.read_link().expect("a link").display());
    }
    if kind.is_char_device() || kind.is_block_device() {
        return format!(" {}:{}", rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    }
    if !kind.is_file() {
        return String::new();
    }
    let first = first_names.entry((metadata.dev(), metadata.ino())).or_insert_with(|| path.to_path_buf());
    if first != path {
        return format!(" = /{}", first.display());
    }
    let content = fs::read(real).expect("reads");
    format!(" {} {}", content.len(), shown(&content))
}

/// A short text as it is; the digest of anything else.
fn shown(content: &[u8]) -> String {
    match std::str::from_utf8(content) {
        Ok(text) if text.len() <= 200 => format!("{text:?}"),
        _ => Digest::of(content).to_string(),
    }
}

fn xattrs(path: &Path, wants_overlays: bool) -> Vec<(OsString, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names) else { return Vec::new() };
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut found = Vec::new();
    for name in names {
        let is_overlays = name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.overlay.");
        if is_overlays != wants_overlays {
            continue;
        }
        let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(name);
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, name, &mut value).expect("reads");
        value.truncate(length);
        found.push((name.to_os_string(), value));
    }
    found.sort();
    found
}
