//! [`export_root`]: an image's root filesystem as one tar.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use cfc_oci::Descriptor;
use cfc_store::{DeviceKind, LayerWriter, Metadata, Store};

use crate::failure::{Failure, OnPath, Result};
use crate::native::image_layers;
use crate::tree::{FileInfo, Kind, Tree, relative};
use crate::view::View;

/// Writes what the layers of `image` show, one above the other, to `output` as a tar: with times, owners, links and extended
/// attributes; without sockets, which a tar cannot hold.
///
/// # Errors
/// When the image is damaged, or `output` takes no more.
pub fn export_root(store: &Store, image: &Descriptor, output: impl Write) -> std::result::Result<(), ExportError> {
    export(store, image, None, output).map_err(|failure| failed(image, failure))
}

/// As [`export_root`], with everything owned by `owner`, user and group.
///
/// # Errors
/// As [`export_root`].
pub fn export_root_for(
    store: &Store,
    image: &Descriptor,
    owner: (u32, u32),
    output: impl Write,
) -> std::result::Result<(), ExportError> {
    export(store, image, Some(owner), output).map_err(|failure| failed(image, failure))
}

fn failed(image: &Descriptor, failure: Failure) -> ExportError {
    ExportError {
        message: format!("cannot export the image `{}`: {}", image.digest, failure.message),
        hint: failure.hint,
        source: failure.source,
    }
}

/// Why an image's files were not written.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ExportError {
    /// What went wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

fn export(store: &Store, image: &Descriptor, owner: Option<(u32, u32)>, output: impl Write) -> Result<()> {
    let view = View::for_reading(store, &image_layers(store, image)?)?;
    let mut exporter = Exporter { view: &view, owner, archive: LayerWriter::new(output), written: HashMap::new() };
    exporter.directory(Path::new("/"))?;
    exporter.archive.finish().and_then(|mut output| output.flush()).on("finish the archive of", store.root())
}

struct Exporter<'a, W: Write> {
    view: &'a View,
    /// Whose everything is, if not whose it is in the image.
    owner: Option<(u32, u32)>,
    archive: LayerWriter<W>,
    /// The first name of each file that has several.
    written: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Exporter<'_, W> {
    fn directory(&mut self, directory: &Path) -> Result<()> {
        for (name, info) in self.view.list(directory)? {
            let path = directory.join(name);
            self.entry(&path, &info)?;
            if info.is_directory() {
                self.directory(&path)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, info: &FileInfo) -> Result<()> {
        let name = relative(path);
        let (uid, gid) = self.owner.unwrap_or((info.uid, info.gid));
        let metadata = Metadata {
            mode: info.mode,
            uid,
            gid,
            mtime: info.identity.modified.div_euclid(1_000_000_000),
            xattrs: self.view.attributes(path)?,
        };
        let group = (info.identity.device, info.identity.inode);
        if !info.is_directory() && info.links > 1 {
            if let Some(first) = self.written.get(&group) {
                return self.archive.hard_link(name, relative(first), &metadata).on("write", path);
            }
            self.written.insert(group, path.to_path_buf());
        }
        match &info.kind {
            Kind::Directory => self.archive.directory(name, &metadata),
            Kind::File => {
                let mut content = self.view.open(path)?;
                self.archive.file(name, &metadata, info.size, &mut content)
            }
            Kind::Symlink(target) => self.archive.symlink(name, target, &metadata),
            Kind::Character { major, minor } => {
                self.archive.device(name, &metadata, DeviceKind::Character, *major, *minor)
            }
            Kind::Block { major, minor } => self.archive.device(name, &metadata, DeviceKind::Block, *major, *minor),
            Kind::Fifo => self.archive.fifo(name, &metadata),
            Kind::Socket => Ok(()),
        }
        .on("write", path)
    }
}
