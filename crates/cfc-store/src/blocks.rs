//! [`BlockIndex`]: what the blocks of a layer's blob were made from, so that the next layer need not make them again.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use cfc_oci::{Algorithm, Descriptor, Digest, Hasher};
use serde::{Deserialize, Serialize};

use crate::compression::Encoding;
use crate::{Result, Store};

/// Changes when the same content would make other blocks.
const VERSION: u32 = 1;

/// The blocks of a blob, in order. It is kept as a record of the cache, `blocks-<hex>`, which names its layer as all records
/// of layers do, so that it goes when that is pruned.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BlockIndex {
    diff_id: Digest,
    blob: Descriptor,
    version: u32,
    encoding: String,
    blocks: Vec<Block>,
}

/// A compressed block, and what it was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Block {
    /// Digest of what decides the content: see [`KeyHasher`].
    pub(crate) key: Digest,
    /// CRC-32 of the content.
    pub(crate) crc: u32,
    /// Compressed bytes.
    pub(crate) size: u64,
}

impl BlockIndex {
    /// The blocks of the layer `diff_id`, which are those of `blob`.
    pub(crate) fn new(diff_id: &Digest, blob: &Descriptor, encoding: Encoding, blocks: Vec<Block>) -> BlockIndex {
        let (diff_id, blob) = (diff_id.clone(), blob.clone());
        BlockIndex { diff_id, blob, version: VERSION, encoding: encoding.to_string(), blocks }
    }

    pub(crate) fn save(&self, store: &Store) -> Result<()> {
        let bytes = serde_json::to_vec(self).expect("an index has only string keys");
        store.cache().put(&record(&self.blob.digest), &bytes)
    }
}

fn record(blob: &Digest) -> String {
    format!("blocks-{}", blob.hex())
}

/// An earlier layer's blob, whose blocks may be used again.
pub(crate) struct EarlierBlocks {
    blob: File,
    places: HashMap<Digest, Place>,
}

/// Where a compressed block is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    offset: u64,
    size: u64,
    crc: u32,
}

impl EarlierBlocks {
    /// The blocks of `blob`; none when they are not known, in another encoding, or do not make up the blob.
    pub(crate) fn open(store: &Store, blob: &Digest, encoding: Encoding) -> Result<Option<EarlierBlocks>> {
        let bytes = store.cache().get(&record(blob))?;
        let index: Option<BlockIndex> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let is_ours = |index: &BlockIndex| index.version == VERSION && index.encoding == encoding.to_string();
        let Some(index) = index.filter(is_ours) else { return Ok(None) };
        let Ok(blob) = store.blobs().open(blob) else { return Ok(None) };
        let mut places = HashMap::with_capacity(index.blocks.len());
        let mut offset = 0;
        for Block { key, crc, size } in index.blocks {
            places.insert(key, Place { offset, size, crc });
            offset += size;
        }
        let is_whole = blob.metadata().is_ok_and(|metadata| metadata.len() == offset);
        Ok(is_whole.then_some(EarlierBlocks { blob, places }))
    }

    pub(crate) fn find(&self, key: &Digest) -> Option<Place> {
        self.places.get(key).copied()
    }

    /// The compressed bytes of `content`, when `place` has them. A key names what was in files when they were hashed; the
    /// checksum is of what was read from them now.
    pub(crate) fn read(&self, place: Place, crc: u32) -> io::Result<Option<Vec<u8>>> {
        if crc != place.crc {
            return Ok(None);
        }
        let mut bytes = vec![0; place.size as usize];
        self.blob.read_exact_at(&mut bytes, place.offset)?;
        Ok(Some(bytes))
    }
}

/// Makes the key of a block: of its bytes, except that files whose digest is known count by that.
pub(crate) struct KeyHasher {
    literal: Hasher,
    /// Pieces of files: where in the block, which file, from where, how much.
    pieces: Hasher,
    size: u64,
}

impl KeyHasher {
    pub(crate) fn new() -> KeyHasher {
        KeyHasher { literal: Hasher::new(Algorithm::Sha256), pieces: Hasher::new(Algorithm::Sha256), size: 0 }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.literal.update(bytes);
        self.size += bytes.len() as u64;
    }

    /// `size` bytes of the file with the SHA-256 `digest`, from `offset` on.
    pub(crate) fn piece(&mut self, digest: &[u8; 32], offset: u64, size: u64) {
        for number in [self.size, offset, size] {
            self.pieces.update(&number.to_le_bytes());
        }
        self.pieces.update(digest);
        self.size += size;
    }

    pub(crate) fn finish(self) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(&self.size.to_le_bytes());
        hasher.update(self.literal.finish().hex().as_bytes());
        hasher.update(self.pieces.finish().hex().as_bytes());
        hasher.finish()
    }
}
