//! [`LayerReader`]: the uncompressed bytes of a layer, counted and hashed.

use std::io::{self, BufReader, Read};

use cfc_oci::{Algorithm, Digest, Hasher};

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// 128 MiB, what zstd itself takes without being asked: a frame could claim gigabytes.
const MAX_WINDOW_LOG: u32 = 27;

/// Uncompressed bytes. Which encoding they were in shows in their first bytes; media types are known to lie.
pub(crate) struct LayerReader<'a> {
    decoder: Box<dyn Read + 'a>,
    hasher: Hasher,
    left: u64,
    exceeded: bool,
}

impl<'a> LayerReader<'a> {
    /// Reads `compressed`, and refuses to give more than `max_bytes` uncompressed.
    pub fn new(compressed: impl Read + 'a, algorithm: Algorithm, max_bytes: u64) -> io::Result<LayerReader<'a>> {
        let mut input = BufReader::with_capacity(256 << 10, compressed);
        let mut magic = Vec::with_capacity(4);
        (&mut input).take(4).read_to_end(&mut magic)?;
        let is_gzip = magic.starts_with(GZIP_MAGIC);
        let is_zstd = magic.starts_with(ZSTD_MAGIC);
        let whole = io::Cursor::new(magic).chain(input);
        let decoder: Box<dyn Read + 'a> = if is_gzip {
            Box::new(flate2::read::MultiGzDecoder::new(whole))
        } else if is_zstd {
            let mut decoder = zstd::stream::read::Decoder::new(whole)?;
            decoder.window_log_max(MAX_WINDOW_LOG)?;
            Box::new(decoder)
        } else {
            Box::new(whole)
        };
        let decoder = Box::new(BufReader::with_capacity(128 << 10, decoder));
        Ok(LayerReader { decoder, hasher: Hasher::new(algorithm), left: max_bytes, exceeded: false })
    }

    /// Whether there were more bytes than allowed.
    pub fn is_exceeded(&self) -> bool {
        self.exceeded
    }

    /// Reads the rest.
    pub fn drain(&mut self) -> io::Result<()> {
        io::copy(self, &mut io::sink()).map(drop)
    }

    /// The digest of what was read.
    pub fn digest(self) -> Digest {
        self.hasher.finish()
    }
}

impl Read for LayerReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => self.left = left,
            None => {
                self.exceeded = true;
                return Err(io::Error::other("too many bytes"));
            }
        }
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
