//! [`Inventory`]: what is in a store, how large it is and when it was used last.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cfc_oci::{Descriptor, Digest};
use serde::Deserialize;

use super::PrunableKind;
use super::live::{Live, Parts};
use crate::image::ImageStore;
use crate::{Result, changing};

/// What may go as one.
pub(super) struct Entity {
    pub(super) id: String,
    pub(super) kind: PrunableKind,
    pub(super) last_used: SystemTime,
    pub(super) what: What,
}

pub(super) enum What {
    /// The name of a pulled image.
    Name {
        path: PathBuf,
        manifest: Descriptor,
    },
    Layer(LayerParts),
    Record {
        path: PathBuf,
        size: u64,
    },
    Mount {
        path: PathBuf,
        size: u64,
    },
}

/// Everything there is of a layer, or a blob of which no more is known.
#[derive(Default)]
pub(super) struct LayerParts {
    diff_id: Option<Digest>,
    blobs: Vec<(Digest, PathBuf, u64)>,
    directory: Option<(PathBuf, u64)>,
    records: Vec<(PathBuf, u64)>,
}

/// Parts of a layer that go.
#[derive(Default)]
pub(super) struct Needless<'l> {
    pub(super) blobs: Vec<(&'l Path, u64)>,
    pub(super) directory: Option<(&'l Path, u64)>,
    pub(super) records: Vec<(&'l Path, u64)>,
}

impl Needless<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.blobs.is_empty() && self.directory.is_none() && self.records.is_empty()
    }

    pub(super) fn size(&self) -> u64 {
        self.blobs.iter().chain(&self.directory).chain(&self.records).map(|(_, size)| size).sum()
    }
}

impl LayerParts {
    fn is_in(&self, parts: &Parts) -> bool {
        self.diff_id.as_ref().is_some_and(|diff_id| parts.layers.contains(diff_id))
            || self.blobs.iter().any(|(digest, ..)| parts.blobs.contains(digest))
    }

    /// What of it nobody needs. A layer of a named image is whole unless `all` may go; then it loses what can be made
    /// again, and what is remembered of it only where no bound is to be met (`prunes_all`).
    pub(super) fn needless(&self, live: &Live, all: bool, prunes_all: bool) -> Needless<'_> {
        let is_used = self.diff_id.as_ref().is_some_and(|diff_id| live.used_layers.contains(diff_id))
            || self.blobs.iter().any(|(digest, ..)| live.used_blobs.contains(digest));
        let is_named = self.is_in(&live.named);
        if is_used || (is_named && !all) {
            return Needless::default();
        }
        let blobs = self.blobs.iter().filter(|(digest, ..)| !live.named.blobs.contains(digest));
        Needless {
            blobs: blobs.map(|(_, path, size)| (path.as_path(), *size)).collect(),
            directory: self.directory.as_ref().map(|(path, size)| (path.as_path(), *size)),
            records: match is_named && !prunes_all {
                true => Vec::new(),
                false => self.records.iter().map(|(path, size)| (path.as_path(), *size)).collect(),
            },
        }
    }
}

impl Entity {
    /// Its size without what stays even when nobody uses it.
    pub(super) fn removable_size(&self, live: &Live) -> u64 {
        match &self.what {
            What::Name { .. } => 0,
            What::Record { size, .. } | What::Mount { size, .. } => *size,
            What::Layer(layer) if layer.diff_id.as_ref().is_some_and(|diff_id| live.kept_layers.contains(diff_id)) => 0,
            What::Layer(layer) => {
                let blobs = layer.blobs.iter().filter(|(digest, ..)| !live.pinned.blobs.contains(digest));
                let others = layer.directory.iter().chain(&layer.records).map(|(_, size)| size);
                blobs.map(|(_, _, size)| size).chain(others).sum()
            }
        }
    }
}

/// A record of the build cache that names a layer.
#[derive(Deserialize)]
struct LayerRecord {
    diff_id: Digest,
    blob: Descriptor,
}

/// What is in a store.
pub(super) struct Inventory {
    pub(super) entities: Vec<Entity>,
}

impl Inventory {
    /// Looks at everything once. What comes and goes meanwhile may be missing.
    pub(super) fn take(root: &Path) -> Result<Inventory> {
        let mut taker = Taker { root, layers: BTreeMap::new(), of_blob: HashMap::new(), entities: Vec::new() };
        taker.names()?;
        taker.records()?;
        taker.directories()?;
        taker.blobs()?;
        taker.mounts()?;
        let layers = std::mem::take(&mut taker.layers).into_iter();
        taker.entities.extend(layers.map(|(diff_id, (layer, last_used))| Entity {
            id: diff_id.hex().to_string(),
            kind: PrunableKind::Layer,
            last_used,
            what: What::Layer(LayerParts { diff_id: Some(diff_id), ..layer }),
        }));
        Ok(Inventory { entities: taker.entities })
    }
}

struct Taker<'a> {
    root: &'a Path,
    layers: BTreeMap<Digest, (LayerParts, SystemTime)>,
    /// The layer that a blob holds, and for others when they were used last.
    of_blob: HashMap<Digest, (Option<Digest>, SystemTime)>,
    entities: Vec<Entity>,
}

impl Taker<'_> {
    fn names(&mut self) -> Result<()> {
        for name in ImageStore::names(self.root)? {
            let mut parts = Parts::default();
            parts.add(self.root, &name.manifest.digest, 4)?;
            let Ok(metadata) = name.path.metadata() else { continue };
            let last_used = modified(&metadata);
            self.pairs(&name.manifest.digest, last_used)?;
            parts.layers.into_iter().for_each(|diff_id| self.used(&diff_id, last_used));
            for digest in parts.blobs {
                self.of_blob.entry(digest).or_insert((None, last_used));
            }
            if name.pulled {
                self.entities.push(Entity {
                    id: name.reference.to_string(),
                    kind: PrunableKind::Image,
                    last_used,
                    what: What::Name { path: name.path, manifest: name.manifest },
                });
            }
        }
        Ok(())
    }

    /// Which blob of an image is which layer.
    fn pairs(&mut self, manifest: &Digest, last_used: SystemTime) -> Result<()> {
        let manifest: Option<cfc_oci::Manifest> = super::live::read(self.root, manifest)?;
        let Some(manifest) = manifest else { return Ok(()) };
        let config: Option<cfc_oci::ImageConfig> = super::live::read(self.root, &manifest.config.digest)?;
        let diff_ids = config.map(|config| config.rootfs.diff_ids).unwrap_or_default();
        for (diff_id, blob) in diff_ids.into_iter().zip(manifest.layers) {
            self.of_blob.insert(blob.digest, (Some(diff_id), last_used));
        }
        Ok(())
    }

    fn layer(&mut self, diff_id: &Digest) -> &mut (LayerParts, SystemTime) {
        self.layers.entry(diff_id.clone()).or_insert_with(|| (LayerParts::default(), UNIX_EPOCH))
    }

    fn used(&mut self, diff_id: &Digest, at: SystemTime) {
        let layer = self.layer(diff_id);
        layer.1 = layer.1.max(at);
    }

    fn records(&mut self) -> Result<()> {
        for (path, metadata) in list(&self.root.join("cache"))? {
            let (size, last_used) = (disk_usage(&metadata), modified(&metadata));
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("size-") {
                continue;
            }
            let indexed = name.strip_prefix("layer-index-").and_then(|hex| hex.strip_suffix(".json"));
            let indexed = indexed.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
            // Contexts have large records, which need not be read.
            let is_layers = indexed.is_none() && !name.starts_with("stat-");
            let bytes = if is_layers { fs::read(&path).unwrap_or_default() } else { Vec::new() };
            let record: Option<LayerRecord> = serde_json::from_slice(&bytes).ok();
            match record.as_ref().map(|record| record.diff_id.clone()).or(indexed) {
                Some(diff_id) => {
                    let layer = self.layer(&diff_id);
                    layer.0.records.push((path, size));
                    layer.1 = layer.1.max(last_used);
                    if let Some(record) = record {
                        self.of_blob.insert(record.blob.digest, (Some(diff_id), last_used));
                    }
                }
                None => self.entities.push(Entity {
                    id: name.trim_end_matches(".json").to_string(),
                    kind: PrunableKind::Context,
                    last_used,
                    what: What::Record { path, size },
                }),
            }
        }
        Ok(())
    }

    fn directories(&mut self) -> Result<()> {
        for (path, metadata) in list(&self.root.join("layers"))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Ok(diff_id) = name.replacen('-', ":", 1).parse::<Digest>() else { continue };
            let size = self.remembered_size(&name, UNIX_EPOCH, || directory_usage(&path));
            // Its times are the image's; that of its change is when it came here.
            let since = changed(&metadata);
            let layer = self.layer(&diff_id);
            if layer.1 == UNIX_EPOCH {
                layer.1 = since;
            }
            layer.0.directory = Some((path, size));
        }
        Ok(())
    }

    fn blobs(&mut self) -> Result<()> {
        for algorithm in ["sha256", "sha512"] {
            for (path, metadata) in list(&self.root.join("blobs").join(algorithm))? {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let Ok(digest) = format!("{algorithm}:{name}").parse::<Digest>() else { continue };
                let size = disk_usage(&metadata);
                let known = self.of_blob.get(&digest).cloned();
                let blob = (digest, path, size);
                if let Some((Some(diff_id), last_used)) = known {
                    let layer = self.layer(&diff_id);
                    layer.0.blobs.push(blob);
                    layer.1 = layer.1.max(last_used);
                    continue;
                }
                let last_used = known.map_or_else(|| changed(&metadata), |(_, last_used)| last_used);
                let layer = LayerParts { blobs: vec![blob], ..LayerParts::default() };
                self.entities.push(Entity { id: name, kind: PrunableKind::Layer, last_used, what: What::Layer(layer) });
            }
        }
        Ok(())
    }

    fn mounts(&mut self) -> Result<()> {
        for (path, metadata) in list(&self.root.join("mounts"))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let locks = list(&path)?.into_iter().filter(|(path, _)| path.to_string_lossy().contains("/lock-"));
            let last_used = locks.map(|(_, metadata)| modified(&metadata)).max();
            let last_used = last_used.unwrap_or_else(|| modified(&metadata));
            let size = self.remembered_size(&format!("mount-{name}"), last_used, || directory_usage(&path));
            let id = fs::read_to_string(path.join("id")).unwrap_or(name);
            self.entities.push(Entity {
                id,
                kind: PrunableKind::CacheMount,
                last_used,
                what: What::Mount { path, size },
            });
        }
        Ok(())
    }

    /// What was measured of `name` since `changed`, or is measured now and remembered if there is room.
    fn remembered_size(&self, name: &str, changed: SystemTime, measure: impl FnOnce() -> u64) -> u64 {
        let path = size_record(self.root, name);
        let is_fresh = path.metadata().is_ok_and(|metadata| modified(&metadata) > changed);
        let known = is_fresh.then(|| fs::read_to_string(&path).ok()?.parse().ok()).flatten();
        known.unwrap_or_else(|| {
            let size = measure();
            // A record that is cut off by a crash does not parse, or is a smaller number: it is only for choosing.
            let _ = fs::write(&path, size.to_string());
            size
        })
    }
}

/// Where the size of a layer's directory or of a cache mount is remembered.
pub(super) fn size_record(root: &Path, name: &str) -> PathBuf {
    root.join("cache").join(format!("size-{name}"))
}

fn list(directory: &Path) -> Result<Vec<(PathBuf, Metadata)>> {
    let paths = changing::entries(directory)?.into_iter();
    // One that is gone meanwhile was removed by somebody.
    Ok(paths.filter_map(|path| path.symlink_metadata().ok().map(|metadata| (path, metadata))).collect())
}

fn modified(metadata: &Metadata) -> SystemTime {
    metadata.modified().unwrap_or(UNIX_EPOCH)
}

/// When the file was changed or linked last.
fn changed(metadata: &Metadata) -> SystemTime {
    UNIX_EPOCH + Duration::new(metadata.ctime().max(0) as u64, metadata.ctime_nsec() as u32)
}

/// What is freed by removing this name.
fn disk_usage(metadata: &Metadata) -> u64 {
    if metadata.nlink() > 1 { 0 } else { metadata.blocks() * 512 }
}

/// What a directory takes with everything in it. What cannot be read counts nothing.
fn directory_usage(directory: &Path) -> u64 {
    let mut seen = HashSet::new();
    let mut pending = vec![directory.to_path_buf()];
    let mut total = 0;
    while let Some(path) = pending.pop() {
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            pending.extend(entries.map(|entry| entry.path()));
        } else if metadata.nlink() > 1 && !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        total += metadata.blocks() * 512;
    }
    total
}
