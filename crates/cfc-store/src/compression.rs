//! [`Encoding`]: how layers are compressed, and [`LayerBlobWriter`], which makes a layer's blob from its tar.

use std::fmt;
use std::io::{self, Write};

use cfc_oci::{Algorithm, Descriptor, Digest, media_type};

use serde::{Deserialize, Serialize};

use crate::blob::{BlobWriter, SealedBlob};
use crate::blocks::{Block, BlockIndex, EarlierBlocks};
use crate::decompress::LayerReader;
use crate::error::Context;
use crate::parallel::{Codec, Encoded, ParallelEncoder};
use crate::stargz::{self, Stargz};
use crate::unpack::TarReader;
use crate::{Result, Store, StoreError, StoreErrorKind, UnpackLimits};

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
    /// gzip in pieces that can be fetched one by one, with a table of contents.
    Estargz,
}

impl Compression {
    /// The media type of a layer in this encoding.
    pub fn media_type(self) -> &'static str {
        match self {
            Compression::None => media_type::LAYER,
            Compression::Gzip | Compression::Estargz => media_type::LAYER_GZIP,
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
    /// `compression` at `level`: 0 to 9 for gzip and estargz (2 unless given), 1 to 22 for zstd (3 unless given). The text says what is
    /// wrong with the level.
    pub fn new(compression: Compression, level: Option<i32>) -> std::result::Result<Encoding, String> {
        let (levels, name) = match compression {
            Compression::None if level.is_some() => return Err("what is not compressed has no level".to_string()),
            Compression::None => (0..=0, "none"),
            Compression::Gzip => (0..=9, "gzip"),
            Compression::Zstd => (1..=22, "zstd"),
            Compression::Estargz => (0..=9, "estargz"),
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

    /// How hard they are compressed; none for the compression's usual level.
    pub fn level(self) -> Option<i32> {
        self.level
    }

    /// What layers are written in that are to have this encoding in an image. An eStargz has more in it than the layer, and so
    /// another `diff_id`: building upon it would make other layers than with other encodings.
    pub fn while_building(self) -> Encoding {
        match self.compression {
            Compression::Estargz => Encoding::default(),
            _ => self,
        }
    }

    fn codec(self) -> Option<Codec> {
        match self.compression {
            Compression::None => None,
            Compression::Gzip | Compression::Estargz => Some(self.level.map_or(Codec::GZIP, Codec::Gzip)),
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
            Compression::Estargz => "estargz",
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
    /// How much of the blob was copied from an earlier one, in bytes.
    pub reused_size: u64,
}

/// Takes the uncompressed bytes of a layer, and hashes, compresses and stores them in one pass. Dropping it forgets
/// them.
pub struct LayerBlobWriter {
    store: Store,
    uncompressed_size: u64,
    encoding: Encoding,
    encoder: Encoder,
}

#[allow(clippy::large_enum_variant, reason = "there is one of these for a layer that is being written")]
enum Encoder {
    Plain(BlobWriter),
    Blocks(ParallelEncoder<BlobWriter>),
}

impl Store {
    /// The diff id of the layer that the blob `digest` holds: the digest of its bytes, uncompressed. An error above 32 GiB.
    pub fn diff_id_of(&self, digest: &Digest) -> Result<Digest> {
        let failed = || format!("cannot read the layer `{digest}`");
        let file = self.blobs().open(digest)?;
        let mut reader = LayerReader::new(file, Algorithm::Sha256, UnpackLimits::default().bytes).context(failed)?;
        reader.drain().context(failed)?;
        Ok(reader.digest())
    }

    /// A layer to be written in an encoding, on all processors. An eStargz is made of a finished layer instead, with
    /// [`Store::encode_layer`].
    pub fn layer_writer(&self, encoding: impl Into<Encoding>) -> Result<LayerBlobWriter> {
        let encoding = encoding.into();
        if encoding.compression == Compression::Estargz {
            let kind = StoreErrorKind::Unsupported("an eStargz is made of a finished layer".to_string());
            return Err(StoreError::new("cannot write a layer", kind));
        }
        let blob = self.blobs().writer()?;
        let encoder = match encoding.codec() {
            None => Encoder::Plain(blob),
            Some(codec) => Encoder::Blocks(ParallelEncoder::new(blob, codec, threads())),
        };
        Ok(LayerBlobWriter { store: self.clone(), uncompressed_size: 0, encoding, encoder })
    }

    /// The same, for a layer that probably has much in common with `earlier`, a blob that was written so too: what is the
    /// same is not compressed again. The bytes come out as if it were.
    pub fn layer_writer_after(&self, earlier: Option<&Digest>, encoding: Encoding) -> Result<LayerBlobWriter> {
        let writer = self.layer_writer(encoding)?;
        let Encoder::Blocks(encoder) = writer.encoder else { return Ok(writer) };
        let earlier = earlier.map(|blob| EarlierBlocks::open(self, blob, encoding)).transpose()?.flatten();
        Ok(LayerBlobWriter { encoder: Encoder::Blocks(encoder.with_blocks(earlier)), ..writer })
    }
}

impl LayerBlobWriter {
    /// Says that what is written next are the `size` bytes of the file with the SHA-256 `digest`.
    pub(crate) fn expect_file(&mut self, digest: [u8; 32], size: u64) {
        if let Encoder::Blocks(encoder) = &mut self.encoder {
            encoder.expect_file(digest, size);
        }
    }

    /// Publishes the blob.
    pub fn finish(self) -> Result<LayerBlob> {
        self.seal()?.publish()
    }

    /// Ends the layer, which is known from then on, and is not in the store yet.
    pub fn seal(self) -> Result<SealedLayer> {
        let (blob, encoded) = match self.encoder {
            Encoder::Plain(blob) => (blob, None),
            Encoder::Blocks(encoder) => {
                let Encoded { output, content, blocks, reused_size, .. } =
                    encoder.finish_blocks().context(|| "cannot compress a layer".to_string())?;
                (output, Some((content.finish(), blocks, reused_size)))
            }
        };
        let blob = blob.seal(None)?;
        let digest = blob.digest().clone();
        // What is not compressed has one digest.
        let (diff_id, blocks, reused_size) = encoded.unwrap_or_else(|| (digest.clone(), None, 0));
        let descriptor = Descriptor::new(self.encoding.compression.media_type(), digest, blob.size());
        let layer = LayerBlob { diff_id, descriptor, uncompressed_size: self.uncompressed_size, reused_size };
        Ok(SealedLayer { store: self.store, encoding: self.encoding, blob, layer, blocks })
    }
}

/// A layer that has all its bytes and is not in the store yet. Dropping it forgets them.
pub struct SealedLayer {
    store: Store,
    encoding: Encoding,
    blob: SealedBlob,
    layer: LayerBlob,
    blocks: Option<Vec<Block>>,
}

impl SealedLayer {
    /// What it will be in the store.
    pub fn layer(&self) -> &LayerBlob {
        &self.layer
    }

    /// Waits until it is on the disk, and publishes the blob.
    pub fn publish(self) -> Result<LayerBlob> {
        let SealedLayer { store, encoding, blob, layer, blocks } = self;
        blob.publish()?;
        if let Some(blocks) = blocks {
            BlockIndex::new(&layer.diff_id, &layer.descriptor, encoding, blocks).save(&store)?;
        }
        Ok(layer)
    }
}

impl Write for LayerBlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.encoder {
            Encoder::Plain(blob) => blob.write(bytes)?,
            Encoder::Blocks(encoder) => encoder.write(bytes)?,
        };
        self.uncompressed_size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Store {
    /// Writes the layer `diff_id`, which `blob` holds, in another encoding. Its content stays what it was, and so does its
    /// `diff_id`, except that an eStargz has a table of contents in addition. A blob that does not hold the layer is refused.
    pub fn encode_layer(&self, diff_id: &Digest, blob: &Descriptor, encoding: Encoding) -> Result<LayerBlob> {
        let failed = || format!("cannot encode the layer `{}` again", blob.digest);
        let file = self.blobs().open(&blob.digest)?;
        let mut reader = LayerReader::new(file, Algorithm::Sha256, u64::MAX).context(failed)?;
        let verify = |reader: LayerReader<'_>| match reader.digest() {
            actual if actual == *diff_id => Ok(()),
            actual => {
                let kind = StoreErrorKind::DigestMismatch { expected: diff_id.clone(), actual };
                Err(StoreError::new(failed(), kind))
            }
        };
        if encoding.compression != Compression::Estargz {
            let mut writer = self.layer_writer(encoding)?;
            io::copy(&mut reader, &mut writer).context(failed)?;
            verify(reader)?;
            return writer.finish();
        }
        let codec = encoding.codec().unwrap_or(Codec::GZIP);
        let mut archive = TarReader::new(reader);
        let made = stargz::write(&mut archive, self.blobs().writer()?, codec, threads()).context(failed)?;
        let mut reader = archive.into_inner();
        reader.drain().context(failed)?;
        verify(reader)?;
        let annotations = made.annotations();
        let Stargz { output, diff_id, uncompressed_size, .. } = made;
        let (digest, size) = output.commit(None)?;
        let plain = Descriptor::new(encoding.compression.media_type(), digest, size);
        let descriptor = Descriptor { annotations, ..plain };
        Ok(LayerBlob { diff_id, descriptor, uncompressed_size, reused_size: 0 })
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
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
