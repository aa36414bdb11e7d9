//! eStargz: a gzip layer whose files can be fetched one by one (containerd/stargz-snapshotter, `docs/estargz.md`).
//!
//! ```text
//! member   headers of entries, up to the first file with content
//! member   a file's content, or 4 MiB of it, its padding, and the headers that follow
//! …
//! member   stargz.index.json, the table of contents, as the last entry of the tar
//! footer   an empty member of 51 bytes that says where the table begins
//! ```
//!
//! Whoever does not know all this reads an ordinary layer with two files more.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::Path;

use cfc_oci::{Algorithm, Digest, Hasher};
use serde::Serialize;

use crate::layer_tar::{LayerWriter, Metadata};
use crate::parallel::{BlockCompressor, Codec, Encoded, ParallelEncoder};
use crate::unpack::{EntryKind, TarEntry, TarReader};

/// The table of contents.
const TOC_NAME: &str = "stargz.index.json";
/// Says that no files are to be fetched in advance; first in the archive.
const LANDMARK: &str = ".no.prefetch.landmark";
const LANDMARK_CONTENT: &[u8] = &[0xf];
/// The other landmark, which an archive that was an eStargz before may have.
const PREFETCH_LANDMARK: &str = ".prefetch.landmark";
/// What clients check the table by.
const TOC_DIGEST_ANNOTATION: &str = "containerd.io/snapshot/stargz/toc.digest";
/// What containers/storage takes the layer's size from.
const SIZE_ANNOTATION: &str = "io.containers.estargz.uncompressed-size";
/// What the reference implementation cuts large files into.
const CHUNK_BYTES: u64 = 4 << 20;
/// Headers that follow each other without a file's content are cut here, so that memory is bounded.
const MAX_HEADERS_BYTES: usize = 8 << 20;
const COPY_BYTES: usize = 64 << 10;

/// A written eStargz.
pub(crate) struct Stargz<W> {
    pub(crate) output: W,
    /// Digest of the uncompressed bytes, the table of contents among them.
    pub(crate) diff_id: Digest,
    pub(crate) uncompressed_size: u64,
    /// Digest of the table of contents.
    toc_digest: Digest,
}

impl<W> Stargz<W> {
    /// What the layer's descriptor must say.
    pub(crate) fn annotations(&self) -> BTreeMap<String, String> {
        let annotations = [
            (TOC_DIGEST_ANNOTATION, self.toc_digest.to_string()),
            (SIZE_ANNOTATION, self.uncompressed_size.to_string()),
        ];
        annotations.map(|(name, value)| (name.to_string(), value)).into()
    }
}

#[derive(Serialize)]
struct Toc {
    version: u32,
    entries: Vec<TocEntry>,
}

/// An entry of the archive, or a further chunk of a file. The names are the format's.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct TocEntry {
    name: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(rename = "modtime", skip_serializing_if = "String::is_empty")]
    modified: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    link_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    /// 0 for one that goes to the end of its file.
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    chunk_digest: String,
    /// The member that begins with the content; becomes the offset.
    #[serde(skip)]
    member: Option<u64>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Writes the entries of `archive` to `output` as an eStargz, its members compressed with `codec`, a gzip.
pub(crate) fn write<R: Read, W: Write>(
    archive: &mut TarReader<R>,
    output: W,
    codec: Codec,
    threads: usize,
) -> io::Result<Stargz<W>> {
    let encoder = ParallelEncoder::new(output, codec, threads).with_cuts();
    let mut writer = Writer { layer: LayerWriter::new(encoder), entries: Vec::new() };
    writer.landmark()?;
    while let Some(entry) = archive.next_entry()? {
        let name = name_of(&entry)?;
        let is_ours = [TOC_NAME, LANDMARK, PREFETCH_LANDMARK].contains(&name.as_str());
        if !is_ours {
            writer.entry(&entry, name, archive)?;
        }
    }
    writer.finish(codec)
}

struct Writer<W: Write> {
    layer: LayerWriter<ParallelEncoder<W>>,
    entries: Vec<TocEntry>,
}

impl<W: Write> Writer<W> {
    fn landmark(&mut self) -> io::Result<()> {
        let entry = TarEntry {
            kind: EntryKind::File,
            path: LANDMARK.into(),
            link: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: LANDMARK_CONTENT.len() as u64,
            device: (0, 0),
            xattrs: Vec::new(),
        };
        self.entry(&entry, LANDMARK.to_string(), &mut &*LANDMARK_CONTENT)
    }

    fn entry(&mut self, entry: &TarEntry, name: String, content: &mut dyn Read) -> io::Result<()> {
        if self.layer.output().block_size() > MAX_HEADERS_BYTES {
            self.layer.output().cut()?;
        }
        self.layer.header_of(entry, name.as_bytes())?;
        let toc_entry = toc_entry(entry, name)?;
        if entry.kind != EntryKind::File || entry.size == 0 {
            let digest = (entry.kind == EntryKind::File).then(|| Digest::of(b"").to_string());
            self.entries.push(TocEntry { digest: digest.unwrap_or_default(), ..toc_entry });
            return Ok(());
        }
        self.content(toc_entry, content)?;
        self.layer.pad_behind(entry.size)
    }

    /// Writes a file's content in chunks, each at the beginning of a member.
    fn content(&mut self, file: TocEntry, content: &mut dyn Read) -> io::Result<()> {
        let (first, name, size) = (self.entries.len(), file.name.clone(), file.size);
        let mut whole = Hasher::new(Algorithm::Sha256);
        let mut offset = 0;
        let mut next = Some(file);
        while offset < size {
            let length = CHUNK_BYTES.min(size - offset);
            let is_last = offset + length == size;
            let member = self.layer.output().cut()?;
            let chunk_digest = self.chunk(&name, length, content, &mut whole)?.to_string();
            let entry =
                next.take().unwrap_or_else(|| TocEntry { name: name.clone(), r#type: "chunk", ..TocEntry::default() });
            let chunk_size = if is_last { 0 } else { length };
            self.entries.push(TocEntry {
                member: Some(member),
                chunk_offset: offset,
                chunk_size,
                chunk_digest,
                ..entry
            });
            offset += length;
        }
        self.entries[first].digest = whole.finish().to_string();
        Ok(())
    }

    fn chunk(&mut self, name: &str, length: u64, content: &mut dyn Read, whole: &mut Hasher) -> io::Result<Digest> {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut buffer = vec![0; COPY_BYTES.min(length as usize)];
        let mut left = length;
        while left > 0 {
            let wanted = left.min(buffer.len() as u64) as usize;
            let count = content.read(&mut buffer[..wanted])?;
            if count == 0 {
                return Err(io::Error::other(format!("the archive ends within `{name}`")));
            }
            hasher.update(&buffer[..count]);
            whole.update(&buffer[..count]);
            self.layer.output().write_all(&buffer[..count])?;
            left -= count as u64;
        }
        Ok(hasher.finish())
    }

    fn finish(self, codec: Codec) -> io::Result<Stargz<W>> {
        let Writer { layer, mut entries } = self;
        let encoder = layer.into_output();
        let archive_size = encoder.content_size();
        let Encoded { mut output, mut content, sizes, .. } = encoder.finish_blocks()?;
        let offsets: Vec<u64> = sizes.iter().scan(0, |end, size| Some(std::mem::replace(end, *end + size))).collect();
        for entry in &mut entries {
            entry.offset = entry.member.map_or(0, |member| offsets[member as usize]);
        }
        let toc = serde_json::to_vec(&Toc { version: 1, entries })?;
        let mut end = LayerWriter::new(Vec::new());
        end.file(Path::new(TOC_NAME), &Metadata::root(0o644, 0), toc.len() as u64, &mut &*toc)?;
        let end = end.finish()?;
        content.update(&end);
        output.write_all(&BlockCompressor::new(codec)?.compress(&end)?)?;
        output.write_all(&footer(sizes.iter().sum()))?;
        let uncompressed_size = archive_size + end.len() as u64;
        Ok(Stargz { output, diff_id: content.finish(), uncompressed_size, toc_digest: Digest::of(&toc) })
    }
}

/// The name as it stands in the archive: a directory's ends with a slash.
fn name_of(entry: &TarEntry) -> io::Result<String> {
    let name = text(&entry.path)?;
    let name = name.trim_start_matches("./").trim_start_matches('/').trim_end_matches('/');
    Ok(match entry.kind {
        EntryKind::Directory if name.is_empty() || name == "." => "./".to_string(),
        EntryKind::Directory => format!("{name}/"),
        _ => name.to_string(),
    })
}

fn toc_entry(entry: &TarEntry, name: String) -> io::Result<TocEntry> {
    let is_device = matches!(entry.kind, EntryKind::Character | EntryKind::Block);
    let (dev_major, dev_minor) = if is_device { entry.device } else { (0, 0) };
    // Of several values for one attribute the last counts, as with any pax record.
    let xattrs =
        entry.xattrs.iter().map(|(key, value)| Ok((text(key.as_encoded_bytes())?, cfc_oci::base64::encode(value))));
    Ok(TocEntry {
        name,
        r#type: match entry.kind {
            EntryKind::File => "reg",
            EntryKind::HardLink => "hardlink",
            EntryKind::Symlink => "symlink",
            EntryKind::Character => "char",
            EntryKind::Block => "block",
            EntryKind::Directory => "dir",
            EntryKind::Fifo => "fifo",
        },
        size: entry.size,
        modified: if entry.mtime.0 == 0 { String::new() } else { cfc_oci::rfc3339(entry.mtime.0) },
        link_name: text(&entry.link)?,
        mode: u64::from(entry.mode),
        uid: entry.uid,
        gid: entry.gid,
        dev_major,
        dev_minor,
        xattrs: xattrs.collect::<io::Result<_>>()?,
        ..TocEntry::default()
    })
}

/// The table of contents is JSON, which has no other names.
fn text(bytes: &[u8]) -> io::Result<String> {
    let text = String::from_utf8(bytes.to_vec());
    text.map_err(|error| {
        let name = String::from_utf8_lossy(error.as_bytes()).into_owned();
        io::Error::other(format!("`{name}` is not UTF-8, which an eStargz needs"))
    })
}

/// The empty member that says where the table of contents begins.
fn footer(toc_offset: u64) -> Vec<u8> {
    let place = format!("{toc_offset:016x}STARGZ");
    // RFC 1952: magic, deflate, a field of extra data, no time, no flags, unknown system.
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
    footer.extend_from_slice(&(place.len() as u16 + 4).to_le_bytes());
    footer.extend_from_slice(b"SG");
    footer.extend_from_slice(&(place.len() as u16).to_le_bytes());
    footer.extend_from_slice(place.as_bytes());
    // One last stored block without content, and the checksum and the size of nothing.
    footer.extend_from_slice(&[1, 0, 0, 0xff, 0xff]);
    footer.extend_from_slice(&[0; 8]);
    footer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_footer_has_its_place_and_size() {
        let footer = footer(0x1234);
        assert_eq!(footer.len(), 51);
        assert!(footer.windows(22).any(|window| window == b"0000000000001234STARGZ"));
        let mut content = Vec::new();
        flate2::read::GzDecoder::new(&*footer).read_to_end(&mut content).expect("it is a gzip");
        assert!(content.is_empty());
    }
}
