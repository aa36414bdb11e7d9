//! Layers and archives that another program wrote: what a build daemon sends back.
//!
//! Nobody vouches for them: names, sizes and numbers are checked as those of any archive, and memory stays bounded.

use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use cfc_oci::{Algorithm, Digest};

use crate::decompress::LayerReader;
use crate::error::Context;
use crate::layer_tar::{OPAQUE_WHITEOUT, WHITEOUT_PREFIX};
use crate::unpack::{EntryKind, TarEntry, TarReader};
use crate::{DeviceKind, Encoding, LayerBlob, LayerBlobWriter, LayerWriter, Metadata, Result, Store, UnpackLimits};

/// A file of an archive that is read in order.
pub struct ArchiveFile<'a> {
    /// Its name, as the archive has it.
    pub path: PathBuf,
    /// What it points to, when it is a link.
    pub link: Option<PathBuf>,
    /// Its size in bytes.
    pub size: u64,
    /// Its content, which may be left unread.
    pub content: &'a mut dyn Read,
}

/// Gives the files and links of the tar archive `input` to `each`, in order. Directories are left out.
///
/// # Errors
/// When the archive is damaged, or `each` fails.
pub fn read_archive(input: impl Read, mut each: impl FnMut(ArchiveFile<'_>) -> io::Result<()>) -> io::Result<()> {
    let mut archive = TarReader::new(input);
    while let Some(entry) = archive.next_entry()? {
        let is_link = matches!(entry.kind, EntryKind::Symlink | EntryKind::HardLink);
        if is_link || entry.kind == EntryKind::File {
            let link = is_link.then(|| path_of(&entry.link));
            each(ArchiveFile { path: path_of(&entry.path), link, size: entry.size, content: &mut archive })?;
        }
    }
    // A pipe's writer wants to get rid of the padding, too.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop)
}

/// A layer that was taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignLayer {
    /// The digest of the uncompressed bytes as they came.
    pub diff_id_there: Digest,
    /// The layer as we write it.
    pub blob: LayerBlob,
}

/// A layer that was read to its end. It is not in the store yet, and nothing is left of it when it is dropped.
pub struct ReadLayer {
    diff_id_there: Digest,
    writer: LayerBlobWriter,
}

impl ReadLayer {
    /// The digest of the uncompressed bytes as they came.
    pub fn diff_id_there(&self) -> &Digest {
        &self.diff_id_there
    }

    /// Waits until it is compressed and on the disk, and publishes it: this is what takes long, and needs no more input.
    pub fn finish(self) -> Result<ForeignLayer> {
        Ok(ForeignLayer { diff_id_there: self.diff_id_there, blob: self.writer.finish()? })
    }
}

impl Store {
    /// Reads the layer that `input` holds, in any compression, into our own form of archive: no time is later than
    /// `newest_mtime`, in seconds since 1970, so that the same files become the same bytes. An eStargz is made of what
    /// comes out, with [`Store::encode_layer`].
    ///
    /// An archive may end behind any of its entries: whether all came, the digest says.
    ///
    /// # Errors
    /// When the archive is damaged or too large, or the disk is full. Nothing of the layer is left then.
    pub fn read_layer(&self, input: impl Read, newest_mtime: i64, encoding: Encoding) -> Result<ReadLayer> {
        let failed = || "cannot take in a layer".to_string();
        let reader = LayerReader::new(input, Algorithm::Sha256, UnpackLimits::default().bytes).context(failed)?;
        let mut archive = TarReader::new(reader);
        let mut writer = LayerWriter::new(self.layer_writer(encoding)?);
        while let Some(entry) = archive.next_entry().context(failed)? {
            write(&mut writer, &entry, &mut archive, newest_mtime)
                .map_err(|error| named(&entry, error))
                .context(failed)?;
        }
        let mut reader = archive.into_inner();
        reader.drain().context(failed)?;
        let writer = writer.finish().context(failed)?;
        Ok(ReadLayer { diff_id_there: reader.digest(), writer })
    }
}

fn write<W: io::Write>(
    writer: &mut LayerWriter<W>,
    entry: &TarEntry,
    content: &mut dyn Read,
    newest_mtime: i64,
) -> io::Result<()> {
    let path = relative(&entry.path);
    // The root itself, as some write it.
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    let metadata = metadata(entry, newest_mtime)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if entry.kind == EntryKind::File && name.starts_with(WHITEOUT_PREFIX) {
        return match name.strip_prefix(WHITEOUT_PREFIX) {
            _ if name == OPAQUE_WHITEOUT => writer.opaque(path.parent().unwrap_or(Path::new("")), metadata.mtime),
            // Leftovers of AUFS.
            Some(removed) if removed.starts_with(WHITEOUT_PREFIX) => Ok(()),
            Some(removed) => writer.whiteout(&path.with_file_name(removed), metadata.mtime),
            None => Ok(()),
        };
    }
    match entry.kind {
        EntryKind::Directory => writer.directory(&path, &metadata),
        EntryKind::File => writer.file(&path, &metadata, entry.size, content),
        EntryKind::Symlink => writer.symlink(&path, &path_of(&entry.link), &metadata),
        EntryKind::HardLink => writer.hard_link(&path, &relative(&entry.link), &metadata),
        EntryKind::Fifo => writer.fifo(&path, &metadata),
        EntryKind::Character | EntryKind::Block => {
            let is_block = entry.kind == EntryKind::Block;
            let kind = if is_block { DeviceKind::Block } else { DeviceKind::Character };
            let (major, minor) = device(entry)?;
            writer.device(&path, &metadata, kind, major, minor)
        }
    }
}

fn metadata(entry: &TarEntry, newest_mtime: i64) -> io::Result<Metadata> {
    let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::other(format!("{id} is no user or group")));
    Ok(Metadata {
        mode: entry.mode & 0o7777,
        uid: id(entry.uid)?,
        gid: id(entry.gid)?,
        mtime: entry.mtime.0.min(newest_mtime),
        xattrs: entry.xattrs.iter().cloned().collect(),
    })
}

fn device(entry: &TarEntry) -> io::Result<(u32, u32)> {
    let number =
        |number: u64| u32::try_from(number).map_err(|_| io::Error::other("a device number that no device has"));
    Ok((number(entry.device.0)?, number(entry.device.1)?))
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec()))
}

/// Without what names in archives begin and end with: `./`, `/`. A `..` stays, and is refused by the writer.
fn relative(bytes: &[u8]) -> PathBuf {
    let path = path_of(bytes);
    path.components()
        .filter(|part| matches!(part, std::path::Component::Normal(_) | std::path::Component::ParentDir))
        .collect()
}

fn named(entry: &TarEntry, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("entry `{}`: {error}", String::from_utf8_lossy(&entry.path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(mtime: i64) -> Vec<u8> {
        let mut writer = LayerWriter::new(Vec::new());
        let metadata = Metadata::root(0o755, mtime);
        writer.directory("d".as_ref(), &metadata).expect("writes");
        writer.file("d/f".as_ref(), &metadata, 2, &mut &b"hi"[..]).expect("writes");
        writer.hard_link("d/g".as_ref(), "d/f".as_ref(), &metadata).expect("writes");
        writer.whiteout("gone".as_ref(), mtime).expect("writes");
        writer.opaque("d".as_ref(), mtime).expect("writes");
        writer.finish().expect("writes")
    }

    #[test]
    fn the_time_of_making_is_not_seen_in_what_is_taken_in() {
        let home = tempfile::tempdir().expect("a directory");
        let store = Store::open(home.path()).expect("a store");
        let [early, late] = [7_000_000_000, 7_000_000_009].map(|mtime| {
            let bytes = layer(mtime);
            let taken = store
                .read_layer(&*bytes, 315532800, Encoding::default())
                .expect("reads")
                .finish()
                .expect("takes it in");
            assert_eq!(taken.diff_id_there, Digest::of(&bytes));
            taken.blob
        });
        assert_eq!(early, late);
        assert_eq!(early.diff_id, Digest::of(&layer(315532800)), "nothing but the times has changed");
    }

    #[test]
    fn what_leads_out_of_a_layer_is_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let store = Store::open(home.path()).expect("a store");
        let mut bytes = layer(0);
        // `d/f` becomes `../`, whose checksum is then right again.
        bytes[512..515].copy_from_slice(b"../");
        let sum: u32 = (0..512).map(|at| if (148..156).contains(&at) { 32 } else { u32::from(bytes[512 + at]) }).sum();
        bytes[512 + 148..512 + 155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let error = store.read_layer(&*bytes, 0, Encoding::default()).err().expect("a name that leads out");
        assert!(error.kind.to_string().contains("entry `../`"), "{error:?}");
    }

    #[test]
    fn archives_are_read_in_order_and_content_may_be_left() {
        let bytes = layer(0);
        let mut seen = Vec::new();
        read_archive(&*bytes, |file| {
            seen.push((file.path, file.link, file.size));
            Ok(())
        })
        .expect("reads");
        let names: Vec<_> = seen.iter().map(|(path, _, size)| (path.to_str().expect("text"), *size)).collect();
        assert_eq!(names, [("d/f", 2), ("d/g", 0), (".wh.gone", 0), ("d/.wh..wh..opq", 0)]);
        assert_eq!(seen[1].1.as_deref(), Some(Path::new("d/f")));
    }
}
