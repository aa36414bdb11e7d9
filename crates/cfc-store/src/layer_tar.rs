//! [`LayerWriter`]: layers as tar archives, byte for byte the same for the same entries.
//!
//! The format is POSIX ustar, with a pax header in front of an entry that ustar cannot express. The writer keeps the
//! order of its caller, who sorts; it invents no time, owner or name.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use crate::LayerBlobWriter;
use crate::unpack::{EntryKind, TarEntry};

/// In front of the name of a removed file.
pub const WHITEOUT_PREFIX: &str = ".wh.";
/// In a directory that hides what lower layers have in it.
pub const OPAQUE_WHITEOUT: &str = ".wh..wh..opq";
/// In front of what pax calls an extended attribute, as GNU tar, Go and libarchive agreed.
pub(crate) const XATTR_PREFIX: &str = "SCHILY.xattr.";

const BLOCK: usize = 512;
/// How much of a file is copied at once.
const COPY_BYTES: usize = 64 << 10;
/// The largest numbers that the octal fields hold.
const MAX_OCTAL_7: u64 = 0o7777777;
const MAX_OCTAL_11: u64 = 0o77777777777;

/// What a layer keeps of a file besides its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permissions with the set-id and sticky bits, `0o7777` at most.
    pub mode: u32,
    /// Owner, as the container sees it.
    pub uid: u32,
    /// Group, as the container sees it.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Extended attributes by full name (`security.capability`).
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
}

impl Metadata {
    /// Owned by root, modified at `mtime`, without extended attributes.
    pub fn root(mode: u32, mtime: i64) -> Metadata {
        Metadata { mode, mtime, ..Metadata::default() }
    }
}

/// Which device a device node stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A character device.
    Character,
    /// A block device.
    Block,
}

/// Writes a layer's entries. Paths are relative to the image's root; one that is absolute or has a `..` is an error.
pub struct LayerWriter<W: Write> {
    output: W,
    /// For copying; made with the first file.
    buffer: Vec<u8>,
}

impl<W: Write> LayerWriter<W> {
    /// A layer with no entry yet.
    pub fn new(output: W) -> LayerWriter<W> {
        LayerWriter { output, buffer: Vec::new() }
    }

    /// A directory.
    pub fn directory(&mut self, path: &Path, metadata: &Metadata) -> io::Result<()> {
        let mut name = checked(path)?;
        name.push(b'/');
        self.entry(Entry::new(b'5', name, metadata))
    }

    /// A regular file of exactly `size` bytes, read from `content`. When `content` ends early or goes on, the archive is
    /// spoilt and an error says so.
    pub fn file(&mut self, path: &Path, metadata: &Metadata, size: u64, content: &mut dyn Read) -> io::Result<()> {
        self.entry(Entry { size, ..Entry::new(b'0', checked(path)?, metadata) })?;
        self.content(path, size, content)
    }

    /// Copies exactly `size` bytes.
    fn content(&mut self, path: &Path, size: u64, content: &mut dyn Read) -> io::Result<()> {
        self.buffer.resize(COPY_BYTES, 0);
        let mut left = size;
        // One byte more is asked for: a file that goes on has changed.
        loop {
            let wanted = left.saturating_add(1).min(COPY_BYTES as u64) as usize;
            let count = match content.read(&mut self.buffer[..wanted]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if (count == 0 && left > 0) || count as u64 > left {
                let text = format!("`{}` changed while it was read: it had {size} bytes", path.display());
                return Err(io::Error::other(text));
            }
            if count == 0 {
                return self.pad(size);
            }
            self.output.write_all(&self.buffer[..count])?;
            left -= count as u64;
        }
    }

    /// A symbolic link to `target`, which may be any text.
    pub fn symlink(&mut self, path: &Path, target: &Path, metadata: &Metadata) -> io::Result<()> {
        let link = target.as_os_str().as_bytes().to_vec();
        self.entry(Entry { link, ..Entry::new(b'2', checked(path)?, metadata) })
    }

    /// A further name of the file `target`, which was written before. `metadata` is the file's.
    pub fn hard_link(&mut self, path: &Path, target: &Path, metadata: &Metadata) -> io::Result<()> {
        let plain = Metadata { xattrs: BTreeMap::new(), ..metadata.clone() };
        let link = checked(target)?;
        self.entry(Entry { link, ..Entry::new(b'1', checked(path)?, &plain) })
    }

    /// A device node.
    pub fn device(
        &mut self,
        path: &Path,
        metadata: &Metadata,
        kind: DeviceKind,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        let kind = match kind {
            DeviceKind::Character => b'3',
            DeviceKind::Block => b'4',
        };
        self.entry(Entry { device: Some((major, minor)), ..Entry::new(kind, checked(path)?, metadata) })
    }

    /// A named pipe.
    pub fn fifo(&mut self, path: &Path, metadata: &Metadata) -> io::Result<()> {
        self.entry(Entry::new(b'6', checked(path)?, metadata))
    }

    /// Removes `path` of the lower layers.
    pub fn whiteout(&mut self, path: &Path, mtime: i64) -> io::Result<()> {
        checked(path)?;
        let mut name = OsString::from(WHITEOUT_PREFIX);
        name.push(path.file_name().unwrap_or_default());
        self.marker(&path.with_file_name(name), mtime)
    }

    /// Hides what the lower layers have in `directory`.
    pub fn opaque(&mut self, directory: &Path, mtime: i64) -> io::Result<()> {
        self.marker(&directory.join(OPAQUE_WHITEOUT), mtime)
    }

    /// Ends the archive and returns the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        Ok(self.output)
    }

    fn marker(&mut self, path: &Path, mtime: i64) -> io::Result<()> {
        self.entry(Entry::new(b'0', checked(path)?, &Metadata::root(0, mtime)))
    }

    fn entry(&mut self, entry: Entry) -> io::Result<()> {
        let records = entry.pax_records();
        if !records.is_empty() {
            let header = Entry { size: records.len() as u64, ..Entry::pax(&entry.name) };
            self.output.write_all(&header.to_block())?;
            self.output.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.output.write_all(&entry.to_block())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = (size % BLOCK as u64) as usize;
        match rest {
            0 => Ok(()),
            _ => self.output.write_all(&[0; BLOCK][rest..]),
        }
    }
}

impl<W: Write> LayerWriter<W> {
    /// The header of an entry of another archive, under `name`; its content and the padding are the caller's to write.
    pub(crate) fn header_of(&mut self, entry: &TarEntry, name: &[u8]) -> io::Result<()> {
        let kind = match entry.kind {
            EntryKind::File => b'0',
            EntryKind::HardLink => b'1',
            EntryKind::Symlink => b'2',
            EntryKind::Character => b'3',
            EntryKind::Block => b'4',
            EntryKind::Directory => b'5',
            EntryKind::Fifo => b'6',
        };
        let is_device = matches!(entry.kind, EntryKind::Character | EntryKind::Block);
        let number =
            |number: u64| u32::try_from(number).map_err(|_| io::Error::other("an owner or device is no 32-bit number"));
        let metadata = Metadata {
            mode: entry.mode,
            uid: number(entry.uid)?,
            gid: number(entry.gid)?,
            mtime: entry.mtime.0,
            xattrs: entry.xattrs.iter().cloned().collect(),
        };
        let device = (number(entry.device.0)?, number(entry.device.1)?);
        let plain = Entry::new(kind, name.to_vec(), &metadata);
        self.entry(Entry { link: entry.link.clone(), size: entry.size, device: is_device.then_some(device), ..plain })
    }

    /// Zeros up to a whole block, behind `size` bytes of content.
    pub(crate) fn pad_behind(&mut self, size: u64) -> io::Result<()> {
        self.pad(size)
    }

    pub(crate) fn output(&mut self) -> &mut W {
        &mut self.output
    }

    /// The output, without ending the archive.
    pub(crate) fn into_output(self) -> W {
        self.output
    }
}

impl LayerWriter<LayerBlobWriter> {
    /// As [`LayerWriter::file`], of content with the SHA-256 `digest`: a layer that has the file already is known by it.
    pub fn known_file(
        &mut self,
        path: &Path,
        metadata: &Metadata,
        size: u64,
        digest: [u8; 32],
        content: &mut dyn Read,
    ) -> io::Result<()> {
        self.entry(Entry { size, ..Entry::new(b'0', checked(path)?, metadata) })?;
        self.output.expect_file(digest, size);
        self.content(path, size, content)
    }
}

/// The name of an entry: no leading `/`, no `.`, no `..`, not empty.
fn checked(path: &Path) -> io::Result<Vec<u8>> {
    let mut name = Vec::with_capacity(path.as_os_str().len());
    for component in path.components() {
        let Component::Normal(part) = component else {
            return Err(io::Error::other(format!("`{}` is not a path inside a layer", path.display())));
        };
        if !name.is_empty() {
            name.push(b'/');
        }
        name.extend_from_slice(part.as_bytes());
    }
    match name.is_empty() {
        true => Err(io::Error::other("a layer's entry has no name")),
        false => Ok(name),
    }
}

/// One header.
struct Entry {
    kind: u8,
    name: Vec<u8>,
    link: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: i64,
    size: u64,
    device: Option<(u32, u32)>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

impl Entry {
    fn new(kind: u8, name: Vec<u8>, metadata: &Metadata) -> Entry {
        Entry {
            kind,
            name,
            link: Vec::new(),
            mode: metadata.mode & 0o7777,
            uid: metadata.uid,
            gid: metadata.gid,
            mtime: metadata.mtime,
            size: 0,
            device: None,
            xattrs: metadata.xattrs.clone(),
        }
    }

    /// The header in front of pax records for `name`. Readers ignore its own name; people who list the archive with an
    /// old tar see it.
    fn pax(name: &[u8]) -> Entry {
        let trimmed = name.strip_suffix(b"/").unwrap_or(name);
        let last = trimmed.rsplit(|byte| *byte == b'/').next().unwrap_or(trimmed);
        let mut shown = b"PaxHeaders.0/".to_vec();
        shown.extend(last.iter().filter(|byte| byte.is_ascii()).take(80));
        Entry::new(b'x', shown, &Metadata::root(0o644, 0))
    }

    /// What ustar has no room for, sorted by key.
    fn pax_records(&self) -> Vec<u8> {
        let mut records: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut number = |key: &str, value: String| records.insert(key.as_bytes().to_vec(), value.into_bytes());
        if self.mtime < 0 || self.mtime as u64 > MAX_OCTAL_11 {
            number("mtime", self.mtime.to_string());
        }
        if self.size > MAX_OCTAL_11 {
            number("size", self.size.to_string());
        }
        if u64::from(self.uid) > MAX_OCTAL_7 {
            number("uid", self.uid.to_string());
        }
        if u64::from(self.gid) > MAX_OCTAL_7 {
            number("gid", self.gid.to_string());
        }
        if needs_pax(&self.name) {
            records.insert(b"path".to_vec(), self.name.clone());
        }
        if needs_pax(&self.link) {
            records.insert(b"linkpath".to_vec(), self.link.clone());
        }
        for (name, value) in &self.xattrs {
            let key = [XATTR_PREFIX.as_bytes(), name.as_bytes()].concat();
            records.insert(key, value.clone());
        }
        records.iter().flat_map(|(key, value)| pax_record(key, value)).collect()
    }

    /// The ustar header.
    ///
    /// ```text
    /// name 100 · mode 8 · uid 8 · gid 8 · size 12 · mtime 12 · checksum 8 · type 1 · link 100
    /// · "ustar\0" "00" · user name 32 · group name 32 · major 8 · minor 8 · prefix 155 · 12 unused
    /// ```
    fn to_block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        put_text(&mut block[0..100], &self.name);
        put_octal(&mut block[100..108], u64::from(self.mode));
        put_octal(&mut block[108..116], fit(u64::from(self.uid), MAX_OCTAL_7));
        put_octal(&mut block[116..124], fit(u64::from(self.gid), MAX_OCTAL_7));
        put_octal(&mut block[124..136], fit(self.size, MAX_OCTAL_11));
        put_octal(&mut block[136..148], fit(self.mtime.max(0) as u64, MAX_OCTAL_11));
        block[156] = self.kind;
        put_text(&mut block[157..257], &self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        let (major, minor) = self.device.unwrap_or((0, 0));
        put_octal(&mut block[329..337], u64::from(major));
        put_octal(&mut block[337..345], u64::from(minor));
        // The checksum counts its own field as spaces.
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        put_octal(&mut block[148..155], sum);
        block
    }
}

/// Whether a name goes into a pax record: too long for its field, or text that is not ASCII, which ustar leaves
/// undefined. Bytes that are not UTF-8 stay in the field as long as they fit, as pax records are UTF-8.
fn needs_pax(name: &[u8]) -> bool {
    name.len() > 100 || (!name.is_ascii() && std::str::from_utf8(name).is_ok())
}

/// `length key=value\n`, where the length counts itself.
fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut record = format!("{length} ").into_bytes();
    record.extend_from_slice(key);
    record.push(b'=');
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

fn put_text(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// Octal digits and a NUL, filling the field.
fn put_octal(field: &mut [u8], value: u64) {
    let digits = format!("{value:0width$o}", width = field.len() - 1);
    put_text(field, digits.as_bytes());
}

/// The value, or 0 where a pax record carries it.
fn fit(value: u64, max: u64) -> u64 {
    if value > max { 0 } else { value }
}
