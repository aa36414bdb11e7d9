//! [`Encoding`]: how layers are compressed, and [`LayerBlobWriter`], which makes a layer's blob from its tar.

use std::fmt;
use std::io::{self, Write};

use cfc_oci::{Algorithm, Descriptor, Digest, Hasher, media_type};

use serde::{Deserialize, Serialize};

use crate::blob::{BlobStore, BlobWriter};
use crate::decompress::LayerReader;
use crate::error::Context;
use crate::parallel::{Codec, ParallelEncoder};
use crate::{Result, Store};

/// What layers are compressed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip, which every client reads.
    #[default]
    Gzip,
    /// zstd.
    Zstd,
}

impl Compression {
    /// The media type of a layer in this encoding.
    pub fn media_type(self) -> &'static str {
        match self {
            Compression::None => media_type::LAYER,
            Compression::Gzip => media_type::LAYER_GZIP,
            Compression::Zstd => media_type::LAYER_ZSTD,
        }
    }
}

/// The encoding of a layer: the same bytes become the same blob, whatever machine encodes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Encoding {
    compression: Compression,
    /// None for the compression's usual one.
    level: Option<i32>,
}

impl Encoding {
    /// `compression` at `level`: 0 to 9 for gzip (2 unless given), 1 to 22 for zstd (3 unless given). The text says what is
    /// wrong with the level.
    pub fn new(compression: Compression, level: Option<i32>) -> std::result::Result<Encoding, String> {
        let (levels, name) = match compression {
            Compression::None if level.is_some() => return Err("what is not compressed has no level".to_string()),
            Compression::None => (0..=0, "none"),
            Compression::Gzip => (0..=9, "gzip"),
            Compression::Zstd => (1..=22, "zstd"),
        };
        match level {
            Some(level) if !levels.contains(&level) => {
                Err(format!("{name} has the levels {} to {}, not {level}", levels.start(), levels.end()))
            }
            // One encoding has one name.
            _ => Ok(Encoding { compression, level: level.filter(|level| Some(*level) != usual_level(compression)) }),
        }
    }

    /// What layers are compressed with.
    pub fn compression(self) -> Compression {
        self.compression
    }

    fn codec(self) -> Option<Codec> {
        match self.compression {
            Compression::None => None,
            Compression::Gzip => Some(self.level.map_or(Codec::GZIP, Codec::Gzip)),
            Compression::Zstd => Some(self.level.map_or(Codec::ZSTD, Codec::Zstd)),
        }
    }
}

fn usual_level(compression: Compression) -> Option<i32> {
    match Encoding::from(compression).codec()? {
        Codec::Gzip(level) | Codec::Zstd(level) => Some(level),
    }
}

impl From<Compression> for Encoding {
    fn from(compression: Compression) -> Encoding {
        Encoding { compression, level: None }
    }
}

impl Default for Encoding {
    fn default() -> Encoding {
        Compression::default().into()
    }
}

/// `gzip`, or `zstd-19`.
impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.compression {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        })?;
        self.level.map_or(Ok(()), |level| write!(f, "-{level}"))
    }
}

/// A layer in the blob store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// Digest of the uncompressed bytes, as the image config lists it.
    pub diff_id: Digest,
    /// The blob, as the manifest lists it.
    pub descriptor: Descriptor,
    /// Size of the uncompressed bytes.
    pub uncompressed_size: u64,
}

/// Takes the uncompressed bytes of a layer, and hashes, compresses and stores them in one pass. Dropping it forgets
/// them.
pub struct LayerBlobWriter {
    hasher: Hasher,
    uncompressed_size: u64,
    compression: Compression,
    encoder: Encoder,
}

enum Encoder {
    Plain(BlobWriter),
    Blocks(ParallelEncoder<BlobWriter>),
}

impl BlobStore {
    /// A layer to be written in an encoding, on all processors.
    pub fn layer_writer(&self, encoding: impl Into<Encoding>) -> Result<LayerBlobWriter> {
        let encoding = encoding.into();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let blob = self.writer()?;
        let encoder = match encoding.codec() {
            None => Encoder::Plain(blob),
            Some(codec) => Encoder::Blocks(ParallelEncoder::new(blob, codec, threads)),
        };
        let compression = encoding.compression;
        Ok(LayerBlobWriter { hasher: Hasher::new(Algorithm::Sha256), uncompressed_size: 0, compression, encoder })
    }
}

impl LayerBlobWriter {
    /// Publishes the blob.
    pub fn finish(self) -> Result<LayerBlob> {
        let blob = match self.encoder {
            Encoder::Plain(blob) => blob,
            Encoder::Blocks(encoder) => encoder.finish().context(|| "cannot compress a layer".to_string())?,
        };
        let (digest, size) = blob.commit(None)?;
        let descriptor = Descriptor::new(self.compression.media_type(), digest, size);
        Ok(LayerBlob { diff_id: self.hasher.finish(), descriptor, uncompressed_size: self.uncompressed_size })
    }
}

impl Write for LayerBlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.encoder {
            Encoder::Plain(blob) => blob.write(bytes)?,
            Encoder::Blocks(encoder) => encoder.write(bytes)?,
        };
        self.hasher.update(&bytes[..written]);
        self.uncompressed_size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Store {
    /// [`BlobStore::layer_writer`], for short.
    pub fn layer_writer(&self, encoding: impl Into<Encoding>) -> Result<LayerBlobWriter> {
        self.blobs().layer_writer(encoding)
    }

    /// Writes the layer that `blob` holds in another encoding. Its content stays what it was, and so does its `diff_id`.
    pub fn encode_layer(&self, blob: &Descriptor, encoding: Encoding) -> Result<LayerBlob> {
        let failed = || format!("cannot encode the layer `{}` again", blob.digest);
        let file = self.blobs().open(&blob.digest)?;
        let mut reader = LayerReader::new(file, Algorithm::Sha256, u64::MAX).context(failed)?;
        let mut writer = self.layer_writer(encoding)?;
        io::copy(&mut reader, &mut writer).context(failed)?;
        writer.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_encoding_has_one_name() {
        let name = |compression, level| Encoding::new(compression, level).map(|encoding| encoding.to_string());
        assert_eq!(name(Compression::Gzip, Some(2)), Ok("gzip".to_string()));
        assert_eq!(name(Compression::Gzip, Some(9)), Ok("gzip-9".to_string()));
        assert_eq!(name(Compression::Zstd, None), Ok("zstd".to_string()));
        assert_eq!(name(Compression::None, None), Ok("none".to_string()));
        assert_eq!(name(Compression::Zstd, Some(0)), Err("zstd has the levels 1 to 22, not 0".to_string()));
        assert!(name(Compression::Gzip, Some(10)).is_err() && name(Compression::None, Some(1)).is_err());
    }
}
