//! [`TarReader`]: the entries of a tar archive nobody vouches for.
//!
//! Reads ustar, pax and GNU long names, the way Go's `archive/tar` does, since that is what the other clients of an
//! image read it with. Memory stays bounded whatever the headers claim. Sparse files are refused.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;

use crate::layer_tar::XATTR_PREFIX;

pub(crate) const BLOCK: usize = 512;
/// Go's bound for the same thing. The longest path has 4096 bytes and an attribute has at most 64 KiB.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
}

/// An entry, with everything that extension headers said about it.
#[derive(Clone, Debug)]
pub(crate) struct TarEntry {
    pub kind: EntryKind,
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    pub size: u64,
    pub device: (u64, u64),
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

/// Reads entry after entry. The content of one is read with [`Read`] before the next is asked for; what was not read is
/// skipped.
pub(crate) struct TarReader<R> {
    input: R,
    /// Content of the current entry that was not read yet, and the padding behind it.
    content: u64,
    padding: u64,
}

impl<R: Read> TarReader<R> {
    pub fn new(input: R) -> TarReader<R> {
        TarReader { input, content: 0, padding: 0 }
    }

    /// The next entry; `None` at the end of the archive.
    pub fn next_entry(&mut self) -> io::Result<Option<TarEntry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.read_header()? else {
                return match extensions.is_empty() {
                    true => Ok(None),
                    false => Err(malformed("the archive ends after an extension header")),
                };
            };
            let size = header.size()?;
            match header.0[156] {
                b'x' => extensions.add_pax(&self.read_extension(size)?)?,
                b'L' => extensions.path = Some(until_nul(&self.read_extension(size)?).to_vec()),
                b'K' => extensions.link = Some(until_nul(&self.read_extension(size)?).to_vec()),
                // Defaults for all entries: git writes its commit there. The other clients ignore them too.
                b'g' => drop(self.read_extension(size)?),
                _ => return self.finish_entry(header, extensions).map(Some),
            }
        }
    }

    /// The input, whose position is behind what was read so far.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn finish_entry(&mut self, header: Header, extensions: Extensions) -> io::Result<TarEntry> {
        let mut entry = header.entry(extensions)?;
        // Only files have content, whatever the size field of another entry says.
        if entry.kind != EntryKind::File {
            entry.size = 0;
        }
        self.start_content(entry.size);
        Ok(entry)
    }

    fn start_content(&mut self, size: u64) {
        self.content = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn read_header(&mut self) -> io::Result<Option<Header>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(malformed("the archive ends in the middle of a header")),
                count => filled += count,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header(block);
        header.check()?;
        Ok(Some(header))
    }

    fn read_extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION_BYTES {
            return Err(malformed(&format!("an extension header claims {size} bytes")));
        }
        self.start_content(size);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        io::copy(self, &mut io::sink())?;
        let wanted = std::mem::take(&mut self.padding);
        let skipped = io::copy(&mut (&mut self.input).take(wanted), &mut io::sink())?;
        // An archive may lack the padding behind its last entry.
        if skipped != 0 && skipped != wanted {
            return Err(malformed("the archive ends in the middle of a block"));
        }
        Ok(())
    }
}

impl<R: Read> Read for TarReader<R> {
    /// The content of the current entry.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.content == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let wanted = usize::try_from(self.content).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.input.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(malformed("the archive ends in the middle of a file"));
        }
        self.content -= count as u64;
        Ok(count)
    }
}

/// What extension headers said about the entry behind them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.path.is_none() && self.link.is_none() && self.size.is_none() && self.xattrs.is_empty()
    }

    /// Records of the form `length key=value\n`.
    fn add_pax(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (record, rest) = split_record(bytes).ok_or_else(|| malformed("malformed pax record"))?;
            bytes = rest;
            let equals =
                record.iter().position(|byte| *byte == b'=').ok_or_else(|| malformed("malformed pax record"))?;
            self.add_record(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn add_record(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let number = || {
            let text = std::str::from_utf8(value).ok();
            let number = text.and_then(|text| text.parse::<u64>().ok());
            number.ok_or_else(|| malformed(&format!("pax record `{}` is not a number", String::from_utf8_lossy(key))))
        };
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => self.mtime = Some(parse_time(value).ok_or_else(|| malformed("malformed pax time"))?),
            _ if key.starts_with(b"GNU.sparse.") => return Err(malformed("sparse files are not supported")),
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX.as_bytes()) {
                    self.xattrs.push((OsString::from_vec(name.to_vec()), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let is_possible = length > space + 1 && length <= bytes.len() && bytes[length - 1] == b'\n';
    is_possible.then(|| (&bytes[space + 1..length - 1], &bytes[length..]))
}

/// `[-]seconds[.fraction]`; a negative time with a fraction counts back from the next second.
fn parse_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: u32 = format!("{fraction:0<9.9}").parse().ok()?;
    let whole: i64 = seconds.parse().ok()?;
    match seconds.starts_with('-') && nanoseconds > 0 {
        true => Some((whole.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        false => Some((whole, nanoseconds)),
    }
}

/// Whether `block` is a header: of a whole block's size, not empty, and with the right checksum.
pub(crate) fn is_header(block: &[u8]) -> bool {
    let Ok(bytes) = <[u8; BLOCK]>::try_from(block) else { return false };
    bytes.iter().any(|byte| *byte != 0) && Header(bytes).check().is_ok()
}

/// A header block; [`crate::LayerWriter`] documents its fields.
struct Header([u8; BLOCK]);

impl Header {
    /// The checksum counts its own field as spaces. Old programs summed signed bytes.
    fn check(&self) -> io::Result<()> {
        let bytes = || self.0.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
        let stored = number(&self.0[148..156])?;
        match stored == unsigned || stored == signed {
            true => Ok(()),
            false => Err(malformed("this is not a tar archive, or its header is damaged")),
        }
    }

    fn size(&self) -> io::Result<u64> {
        u64::try_from(number(&self.0[124..136])?).map_err(|_| malformed("a negative size"))
    }

    fn entry(&self, extensions: Extensions) -> io::Result<TarEntry> {
        let id = |field: &[u8]| u64::try_from(number(field)?).map_err(|_| malformed("a negative owner"));
        let path = extensions.path.unwrap_or_else(|| self.name());
        let kind = self.kind(&path)?;
        Ok(TarEntry {
            kind,
            link: extensions.link.unwrap_or_else(|| until_nul(&self.0[157..257]).to_vec()),
            mode: (number(&self.0[100..108])? & 0o7777) as u32,
            uid: extensions.uid.map_or_else(|| id(&self.0[108..116]), Ok)?,
            gid: extensions.gid.map_or_else(|| id(&self.0[116..124]), Ok)?,
            mtime: extensions.mtime.map_or_else(|| Ok::<_, io::Error>((number(&self.0[136..148])?, 0)), Ok)?,
            size: extensions.size.map_or_else(|| self.size(), Ok)?,
            device: match kind {
                EntryKind::Character | EntryKind::Block => (id(&self.0[329..337])?, id(&self.0[337..345])?),
                _ => (0, 0),
            },
            xattrs: extensions.xattrs,
            path,
        })
    }

    fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        // GNU's variant ("ustar  ") keeps times where the prefix would be.
        let prefix = if &self.0[257..263] == b"ustar\0" { until_nul(&self.0[345..500]) } else { b"" };
        match prefix.is_empty() {
            true => name.to_vec(),
            false => [prefix, b"/", name].concat(),
        }
    }

    fn kind(&self, path: &[u8]) -> io::Result<EntryKind> {
        Ok(match self.0[156] {
            // Before ustar, directories were files whose names end in a slash.
            b'\0' if path.ends_with(b"/") => EntryKind::Directory,
            b'0' | b'\0' | b'7' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::Character,
            b'4' => EntryKind::Block,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            b'S' => return Err(malformed("sparse files are not supported")),
            other => {
                let name = String::from_utf8_lossy(path);
                return Err(malformed(&format!("entry `{name}` has the unknown type `{}`", other.escape_ascii())));
            }
        })
    }
}

/// Octal digits between spaces and NULs, or, with the highest bit set, a big-endian two's complement number.
fn number(field: &[u8]) -> io::Result<i64> {
    let error = || malformed(&format!("malformed number `{}` in a header", field.escape_ascii()));
    if field[0] & 0x80 != 0 {
        // The second highest bit is the sign.
        let first = if field[0] & 0x40 != 0 { field[0] } else { field[0] & 0x7f };
        let start = i128::from(first as i8);
        let value = field[1..].iter().try_fold(start, |value, byte| Some(value.checked_mul(256)? + i128::from(*byte)));
        return value.and_then(|value| i64::try_from(value).ok()).ok_or_else(error);
    }
    let text = std::str::from_utf8(until_nul(field)).map_err(|_| error())?.trim();
    match text.is_empty() {
        true => Ok(0),
        false => i64::from_str_radix(text, 8).map_err(|_| error()),
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or(bytes)
}

fn malformed(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0").ok(), Some(0o644));
        assert_eq!(number(b"  644 \0\0").ok(), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0").ok(), Some(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0").ok(), Some(256));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe").ok(), Some(-2));
        assert!(number(b"9\0\0\0\0\0\0\0").is_err());
        assert!(number(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(parse_time(b"12"), Some((12, 0)));
        assert_eq!(parse_time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(parse_time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(parse_time(b"-0.5"), Some((-1, 500_000_000)));
        assert_eq!(parse_time(b"1.2.3"), None);
        assert_eq!(parse_time(b""), None);
    }

    #[test]
    fn pax_values_may_hold_line_ends() {
        let mut extensions = Extensions::default();
        extensions.add_pax(b"30 SCHILY.xattr.user.a=x\ny=z\n\n").expect("well-formed");
        assert_eq!(extensions.xattrs, [(OsString::from("user.a"), b"x\ny=z\n".to_vec())]);
    }

    #[test]
    fn pax_lengths_that_lie_are_refused() {
        for records in
            [&b"99 path=a\n"[..], b"3 a\n", b"0 a=b\n", b"x a=b\n", b"8 path=a\n", b"18446744073709551615 a=b\n"]
        {
            assert!(Extensions::default().add_pax(records).is_err(), "{}", records.escape_ascii());
        }
    }

    #[test]
    fn an_extension_header_cannot_fill_the_memory() {
        let mut block = [0; BLOCK];
        block[..1].copy_from_slice(b"x");
        block[124..136].copy_from_slice(b"77777777777\0");
        block[156] = b'x';
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let mut reader = TarReader::new((&block[..]).chain(io::repeat(b'a')));
        let error = reader.next_entry().expect_err("8 GiB of pax records");
        assert!(error.to_string().contains("8589934591 bytes"), "{error}");
    }
}
