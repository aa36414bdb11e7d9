//! Writes a layer's entries as tar, into the store.

use std::collections::HashMap;
use std::path::Path;

use cfc_store::{Encoding, LayerBlobWriter, LayerWriter, Metadata};

use crate::entry::{Entries, Entry, EntryKind, SourceFile};
use crate::failure::{OnPath, Result};
use crate::hash::{open_unchanged, refuse_changed};
use crate::layer::Layer;
use crate::tree::{Tree, relative};

/// Writes the layer that consists of `entries`, their contents taken from `trees`. No entry's time is later than `mtime`.
/// What `output` holds at the end is a layer in `encoding`.
pub(crate) fn write_layer(
    output: LayerBlobWriter,
    entries: &Entries,
    trees: &[&dyn Tree],
    mtime: i64,
    encoding: Encoding,
) -> Result<Layer> {
    let mut writer = LayerWriter::new(output);
    // The first name of each file that has several.
    let mut written: HashMap<(u64, u64), &Path> = HashMap::new();
    for (path, entry) in entries {
        let earlier = match &entry.kind {
            EntryKind::File(SourceFile { shared: Some(group), .. }) => {
                let first = *written.entry(*group).or_insert(path);
                (first != path).then_some(first)
            }
            _ => None,
        };
        match earlier {
            Some(first) => {
                writer.hard_link(relative(path), relative(first), &metadata(entry, mtime)).on("write", path)?
            }
            None => write_entry(&mut writer, path, entry, trees, mtime)?,
        }
    }
    let blob = writer.finish().on("finish the layer of", Path::new("/"))?.finish()?;
    Ok(Layer::made(blob, encoding))
}

fn write_entry(
    writer: &mut LayerWriter<LayerBlobWriter>,
    path: &Path,
    entry: &Entry,
    trees: &[&dyn Tree],
    mtime: i64,
) -> Result<()> {
    let metadata = metadata(entry, mtime);
    let name = relative(path);
    match &entry.kind {
        EntryKind::Directory => writer.directory(name, &metadata),
        EntryKind::Symlink(target) => writer.symlink(name, target, &metadata),
        EntryKind::Device { kind, major, minor } => writer.device(name, &metadata, *kind, *major, *minor),
        EntryKind::Fifo => writer.fifo(name, &metadata),
        EntryKind::File(file) => {
            let mut content = open_unchanged(trees, file)?;
            writer.known_file(name, &metadata, file.size, file.digest, &mut content).on("copy", &file.path)?;
            return refuse_changed(&content, file);
        }
    }
    .on("write", path)
}

fn metadata(entry: &Entry, mtime: i64) -> Metadata {
    let mtime = entry.mtime.map_or(mtime, |own| own.min(mtime));
    Metadata { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime, xattrs: entry.attributes.clone() }
}
