//! [`ParallelEncoder`]: compression in blocks by several threads.
//!
//! Each block becomes a gzip member or zstd frame of its own; the formats define the concatenation of these as the
//! concatenation of their contents. The blocks depend neither on the number of threads nor on what was built before, so
//! neither do the bytes: one that an earlier layer has too is copied from there only because compressing it would give
//! the same.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use cfc_oci::{Algorithm, Digest, Hasher};

use crate::blocks::{Block, EarlierBlocks, KeyHasher, Place};
use crate::borders::{BlockSizes, Borders, Fed};

/// Large enough that starting a member costs well under one percent of compression.
const GZIP_BLOCKS: BlockSizes = BlockSizes::around(1 << 20);
/// zstd at level 3 looks back 2 MiB; a smaller block would waste that.
const ZSTD_BLOCKS: BlockSizes = BlockSizes::around(4 << 20);
/// Blocks that wait to be hashed: each holds memory.
const HASH_QUEUE: usize = 3;

/// What a block is compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// gzip members, by libdeflate at this level, 0 to 12.
    Gzip(i32),
    /// zstd frames at this level, 1 to 22.
    Zstd(i32),
}

impl Codec {
    /// About 6 percent larger than zlib's level 6 in a sixth of the time; level 1 is a tenth faster and 2 percent larger.
    pub const GZIP: Codec = Codec::Gzip(2);
    /// zstd as everybody has it.
    pub const ZSTD: Codec = Codec::Zstd(3);

    fn block_sizes(self) -> BlockSizes {
        match self {
            Codec::Gzip(_) => GZIP_BLOCKS,
            Codec::Zstd(_) => ZSTD_BLOCKS,
        }
    }
}

/// Compresses what is written to it into `output`, and hashes it. Holds at most a few blocks a thread in memory. Threads
/// start with the second block, so small streams need none. Without [`ParallelEncoder::finish`] the stream is not whole.
pub struct ParallelEncoder<W: Write> {
    output: W,
    codec: Codec,
    borders: Borders,
    /// What a block is given room for at first, in bytes.
    usual_size: usize,
    block: Vec<u8>,
    threads: usize,
    content: ContentHash,
    keys: Option<Keys>,
    workers: Option<Workers>,
    /// Blocks submitted and blocks written: what lies between is on its way.
    submitted: u64,
    written: u64,
    /// Compressed blocks that wait for an earlier one.
    early: BTreeMap<u64, Compressed>,
    content_size: u64,
    /// Compressed bytes of each block that was written.
    sizes: Vec<u64>,
    /// Compressed bytes that an earlier layer had.
    reused_size: u64,
}

/// What came out of a stream.
pub(crate) struct Encoded<W> {
    pub(crate) output: W,
    /// Has seen the uncompressed bytes.
    pub(crate) content: Hasher,
    /// Compressed bytes of each block.
    pub(crate) sizes: Vec<u64>,
    /// The blocks, where they were asked for.
    pub(crate) blocks: Option<Vec<Block>>,
    /// Compressed bytes that an earlier layer had.
    pub(crate) reused_size: u64,
}

/// Knows blocks again.
struct Keys {
    earlier: Option<Arc<EarlierBlocks>>,
    /// Of the block so far.
    hasher: KeyHasher,
    /// The file whose content is being written.
    file: Option<KnownFile>,
    /// Keys of the blocks that are on their way.
    pending: BTreeMap<u64, Digest>,
    blocks: Vec<Block>,
}

struct KnownFile {
    digest: [u8; 32],
    offset: u64,
    /// How much of it is in the block already, from `offset` on.
    in_block: u64,
    left: u64,
}

/// A block, its position in the stream, and where an earlier layer has it.
struct Job {
    number: u64,
    block: Arc<Vec<u8>>,
    place: Option<Place>,
}

struct Compressed {
    bytes: Vec<u8>,
    /// Of the content.
    crc: u32,
    is_reused: bool,
}

struct Workers {
    jobs: Option<Sender<Job>>,
    results: Receiver<(u64, io::Result<Compressed>)>,
    threads: Vec<JoinHandle<()>>,
}

impl<W: Write> ParallelEncoder<W> {
    /// An encoder that uses up to `threads` threads.
    pub fn new(output: W, codec: Codec, threads: usize) -> ParallelEncoder<W> {
        ParallelEncoder {
            output,
            codec,
            borders: Borders::new(codec.block_sizes()),
            usual_size: codec.block_sizes().max as usize,
            block: Vec::new(),
            threads: threads.max(1),
            content: ContentHash::Here(Hasher::new(Algorithm::Sha256)),
            keys: None,
            workers: None,
            submitted: 0,
            written: 0,
            early: BTreeMap::new(),
            content_size: 0,
            sizes: Vec::new(),
            reused_size: 0,
        }
    }

    /// A gzip encoder.
    pub fn gzip(output: W, threads: usize) -> ParallelEncoder<W> {
        ParallelEncoder::new(output, Codec::GZIP, threads)
    }

    /// The same, which tells its blocks at the end and uses those of an earlier layer again.
    pub(crate) fn with_blocks(mut self, earlier: Option<EarlierBlocks>) -> ParallelEncoder<W> {
        let earlier = earlier.map(Arc::new);
        let (hasher, pending) = (KeyHasher::new(), BTreeMap::new());
        self.keys = Some(Keys { earlier, hasher, file: None, pending, blocks: Vec::new() });
        self
    }

    /// The same, whose blocks end where [`ParallelEncoder::cut`] says and nowhere else.
    pub(crate) fn with_cuts(mut self) -> ParallelEncoder<W> {
        (self.borders, self.usual_size) = (Borders::none(), 0);
        self
    }

    /// Ends the block, unless it is empty, and returns the number of the next one, counted from 0.
    pub(crate) fn cut(&mut self) -> io::Result<u64> {
        if !self.block.is_empty() {
            self.submit()?;
        }
        Ok(self.submitted)
    }

    /// How much is in the block.
    pub(crate) fn block_size(&self) -> usize {
        self.block.len()
    }

    /// Uncompressed bytes so far.
    pub(crate) fn content_size(&self) -> u64 {
        self.content_size
    }

    /// Says that what is written next are the `size` bytes of the file with the SHA-256 `digest`.
    pub(crate) fn expect_file(&mut self, digest: [u8; 32], size: u64) {
        if let Some(keys) = &mut self.keys {
            keys.file = (size > 0).then_some(KnownFile { digest, offset: 0, in_block: 0, left: size });
        }
    }

    /// Compresses what is left and returns the output.
    pub fn finish(self) -> io::Result<W> {
        Ok(self.finish_blocks()?.output)
    }

    pub(crate) fn finish_blocks(mut self) -> io::Result<Encoded<W>> {
        let kept = self.borders.kept().to_vec();
        self.append(&kept);
        let is_empty_stream = self.submitted == 0;
        if !self.block.is_empty() || is_empty_stream {
            match is_empty_stream {
                true => self.compress_here()?,
                false => self.submit()?,
            }
        }
        while self.written < self.submitted {
            self.receive()?;
        }
        let blocks = self.keys.map(|keys| keys.blocks);
        let content = self.content.finish()?;
        Ok(Encoded { output: self.output, content, sizes: self.sizes, blocks, reused_size: self.reused_size })
    }

    /// Adds `bytes` to the block.
    fn append(&mut self, bytes: &[u8]) {
        // Growing step by step would copy a block once more.
        if self.block.is_empty() && self.submitted > 0 {
            self.block.reserve_exact(self.usual_size);
        }
        self.block.extend_from_slice(bytes);
        self.content_size += bytes.len() as u64;
        if let Some(keys) = &mut self.keys {
            keys.add(bytes);
        }
    }

    /// A stream of a single block.
    fn compress_here(&mut self) -> io::Result<()> {
        let block = std::mem::take(&mut self.block);
        self.content.update(&block);
        let (place, earlier) = match &mut self.keys {
            Some(keys) => (keys.end_block(0), keys.earlier.clone()),
            None => (None, None),
        };
        let compressed = BlockCompressor::new(self.codec)?.carry_out(&block, place, earlier.as_deref())?;
        self.put(0, compressed)
    }

    fn submit(&mut self) -> io::Result<()> {
        while self.submitted - self.written >= 2 * self.threads as u64 {
            self.receive()?;
        }
        let number = self.submitted;
        let block = Arc::new(std::mem::take(&mut self.block));
        let place = self.keys.as_mut().and_then(|keys| keys.end_block(number));
        if self.workers.is_none() {
            let earlier = self.keys.as_ref().and_then(|keys| keys.earlier.clone());
            self.workers = Some(Workers::start(self.codec, self.threads, earlier)?);
            self.content = std::mem::replace(&mut self.content, ContentHash::Gone).start()?;
        }
        let jobs = self.workers.as_ref().and_then(|workers| workers.jobs.as_ref()).ok_or_else(gone)?;
        jobs.send(Job { number, block: block.clone(), place }).map_err(|_| gone())?;
        self.content.update_shared(block)?;
        self.submitted += 1;
        Ok(())
    }

    /// Waits for one compressed block, and writes what has its turn.
    fn receive(&mut self) -> io::Result<()> {
        let workers = self.workers.as_ref().ok_or_else(gone)?;
        let (number, compressed) = workers.results.recv().map_err(|_| gone())?;
        self.early.insert(number, compressed?);
        while let Some(compressed) = self.early.remove(&self.written) {
            self.put(self.written, compressed)?;
            self.written += 1;
        }
        Ok(())
    }

    fn put(&mut self, number: u64, compressed: Compressed) -> io::Result<()> {
        if let Some(keys) = &mut self.keys
            && let Some(key) = keys.pending.remove(&number)
        {
            keys.blocks.push(Block { key, crc: compressed.crc, size: compressed.bytes.len() as u64 });
        }
        let size = compressed.bytes.len() as u64;
        self.sizes.push(size);
        self.reused_size += if compressed.is_reused { size } else { 0 };
        self.output.write_all(&compressed.bytes)
    }
}

impl Keys {
    fn add(&mut self, mut bytes: &[u8]) {
        if let Some(file) = &mut self.file {
            let of_file = file.left.min(bytes.len() as u64);
            (file.left, file.in_block) = (file.left - of_file, file.in_block + of_file);
            bytes = &bytes[of_file as usize..];
            if file.left == 0 {
                self.end_piece();
                self.file = None;
            }
        }
        self.hasher.bytes(bytes);
    }

    fn end_piece(&mut self) {
        if let Some(file) = &mut self.file
            && file.in_block > 0
        {
            self.hasher.piece(&file.digest, file.offset, file.in_block);
            (file.offset, file.in_block) = (file.offset + file.in_block, 0);
        }
    }

    /// Takes the key of the block that ends, and returns where it is already.
    fn end_block(&mut self, number: u64) -> Option<Place> {
        self.end_piece();
        let key = std::mem::replace(&mut self.hasher, KeyHasher::new()).finish();
        let place = self.earlier.as_ref().and_then(|earlier| earlier.find(&key));
        self.pending.insert(number, key);
        place
    }
}

impl<W: Write> Write for ParallelEncoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        loop {
            match self.borders.feed(bytes) {
                Fed::Block(taken) => {
                    self.append(&bytes[..taken]);
                    return Ok(taken);
                }
                Fed::Kept(taken) => return Ok(taken),
                Fed::Header(taken) => {
                    let header = self.borders.take_header();
                    self.append(&header);
                    return Ok(taken);
                }
                Fed::Border => self.submit()?,
            }
        }
    }

    /// Does nothing: a flush in the middle would move the blocks' borders.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes the content: on a thread of its own where there is more than a block, since it is as long as compression takes on
/// two processors.
enum ContentHash {
    Here(Hasher),
    Thread { blocks: SyncSender<Arc<Vec<u8>>>, thread: JoinHandle<Hasher> },
    Gone,
}

impl ContentHash {
    fn start(self) -> io::Result<ContentHash> {
        let ContentHash::Here(mut hasher) = self else { return Ok(self) };
        let (blocks, receiver) = sync_channel::<Arc<Vec<u8>>>(HASH_QUEUE);
        let work = move || {
            while let Ok(block) = receiver.recv() {
                hasher.update(&block);
            }
            hasher
        };
        let thread = std::thread::Builder::new().name("hash".to_string()).spawn(work)?;
        Ok(ContentHash::Thread { blocks, thread })
    }

    fn update(&mut self, block: &[u8]) {
        if let ContentHash::Here(hasher) = self {
            hasher.update(block);
        }
    }

    fn update_shared(&mut self, block: Arc<Vec<u8>>) -> io::Result<()> {
        match self {
            ContentHash::Here(hasher) => hasher.update(&block),
            ContentHash::Thread { blocks, .. } => blocks.send(block).map_err(|_| gone())?,
            ContentHash::Gone => return Err(gone()),
        }
        Ok(())
    }

    fn finish(self) -> io::Result<Hasher> {
        match self {
            ContentHash::Here(hasher) => Ok(hasher),
            ContentHash::Thread { blocks, thread } => {
                drop(blocks);
                thread.join().map_err(|_| gone())
            }
            ContentHash::Gone => Err(gone()),
        }
    }
}

impl Workers {
    fn start(codec: Codec, count: usize, earlier: Option<Arc<EarlierBlocks>>) -> io::Result<Workers> {
        let (jobs, job_receiver) = channel::<Job>();
        let (result_sender, results) = channel();
        let job_receiver = Arc::new(Mutex::new(job_receiver));
        let mut threads = Vec::with_capacity(count);
        for _ in 0..count {
            let (jobs, results, earlier) = (job_receiver.clone(), result_sender.clone(), earlier.clone());
            let work = move || {
                let mut compressor = BlockCompressor::new(codec);
                loop {
                    let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(Job { number, block, place }) = job else { return };
                    let compressed = match &mut compressor {
                        Ok(compressor) => compressor.carry_out(&block, place, earlier.as_deref()),
                        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
                    };
                    if results.send((number, compressed)).is_err() {
                        return;
                    }
                }
            };
            threads.push(std::thread::Builder::new().name("compress".to_string()).spawn(work)?);
        }
        Ok(Workers { jobs: Some(jobs), results, threads })
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the compressing threads ended early")
}

/// Compresses one block after the other.
pub(crate) enum BlockCompressor {
    Gzip(libdeflater::Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl BlockCompressor {
    pub(crate) fn new(codec: Codec) -> io::Result<BlockCompressor> {
        match codec {
            Codec::Gzip(level) => {
                let level = libdeflater::CompressionLvl::new(level)
                    .map_err(|_| io::Error::other("libdeflate does not know the compression level"))?;
                Ok(BlockCompressor::Gzip(libdeflater::Compressor::new(level)))
            }
            Codec::Zstd(level) => Ok(BlockCompressor::Zstd(zstd::bulk::Compressor::new(level)?)),
        }
    }

    /// The compressed block: from an earlier layer where that has it, else made.
    fn carry_out(
        &mut self,
        block: &[u8],
        place: Option<Place>,
        earlier: Option<&EarlierBlocks>,
    ) -> io::Result<Compressed> {
        let crc = libdeflater::crc32(block);
        let known = match (place, earlier) {
            (Some(place), Some(earlier)) => earlier.read(place, crc)?,
            _ => None,
        };
        match known {
            Some(bytes) => Ok(Compressed { bytes, crc, is_reused: true }),
            None => Ok(Compressed { bytes: self.compress(block)?, crc, is_reused: false }),
        }
    }

    pub(crate) fn compress(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            BlockCompressor::Gzip(compressor) => {
                let mut bytes = vec![0; compressor.gzip_compress_bound(block.len())];
                let size = compressor.gzip_compress(block, &mut bytes).map_err(io::Error::other)?;
                bytes.truncate(size);
                Ok(bytes)
            }
            BlockCompressor::Zstd(compressor) => compressor.compress(block),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn sample(size: usize) -> Vec<u8> {
        let mut state: u32 = 1;
        let mut step = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 28) as u8
        };
        (0..size).map(|_| step()).collect()
    }

    fn encode(codec: Codec, threads: usize, bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ParallelEncoder::new(Vec::new(), codec, threads);
        encoder.write_all(bytes).expect("memory takes everything");
        encoder.finish().expect("memory takes everything")
    }

    fn decode(codec: Codec, bytes: &[u8]) -> Vec<u8> {
        let mut decoded = Vec::new();
        match codec {
            Codec::Gzip(_) => flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut decoded),
            Codec::Zstd(_) => zstd::stream::read::Decoder::new(bytes).and_then(|mut d| d.read_to_end(&mut decoded)),
        }
        .expect("what was encoded decodes");
        decoded
    }

    #[test]
    fn bytes_do_not_depend_on_the_number_of_threads() {
        for codec in [Codec::GZIP, Codec::ZSTD, Codec::Gzip(9), Codec::Zstd(6)] {
            let bytes = sample(9_000_001);
            let encoded = encode(codec, 1, &bytes);
            assert_eq!(encoded, encode(codec, 2, &bytes));
            assert_eq!(encoded, encode(codec, 7, &bytes));
            assert_eq!(decode(codec, &encoded), bytes);
        }
    }

    #[test]
    fn borders_of_blocks_lose_nothing() {
        for codec in [Codec::GZIP, Codec::ZSTD] {
            let largest = codec.block_sizes().max as usize;
            for size in [0, 1, largest - 1, largest, largest + 1, 2 * largest] {
                let bytes = sample(size);
                assert_eq!(decode(codec, &encode(codec, 3, &bytes)), bytes, "{size} bytes as {codec:?}");
            }
        }
    }

    #[test]
    fn dropping_an_encoder_ends_its_threads() {
        let mut encoder = ParallelEncoder::gzip(Vec::new(), 2);
        encoder.write_all(&sample(3 << 20)).expect("memory takes everything");
        drop(encoder);
    }
}
