//! [`Compression`]: the encodings of a layer, and [`LayerBlobWriter`], which makes a layer's blob from its tar.

use std::io::{self, Write};

use cfc_oci::{Algorithm, Descriptor, Digest, Hasher, media_type};

use crate::blob::{BlobStore, BlobWriter};
use crate::error::Context;
use crate::parallel::{Codec, ParallelEncoder};
use crate::{Result, Store};

/// The encoding of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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
    /// A layer to be written in `compression`, on all processors.
    pub fn layer_writer(&self, compression: Compression) -> Result<LayerBlobWriter> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let blob = self.writer()?;
        let encoder = match compression {
            Compression::None => Encoder::Plain(blob),
            Compression::Gzip => Encoder::Blocks(ParallelEncoder::new(blob, Codec::Gzip, threads)),
            Compression::Zstd => Encoder::Blocks(ParallelEncoder::new(blob, Codec::Zstd, threads)),
        };
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
    pub fn layer_writer(&self, compression: Compression) -> Result<LayerBlobWriter> {
        self.blobs().layer_writer(compression)
    }
}
