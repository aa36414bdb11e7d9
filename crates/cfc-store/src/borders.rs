//! [`Borders`]: where a layer's tar is cut into blocks.
//!
//! Blocks that are cut at fixed distances all change when one file of a layer grows. These borders follow the archive's
//! entries instead: whether a block ends in front of an entry depends on that entry's name and size alone once the block
//! is large enough, so that two archives which differ in a file have the same blocks again soon after it. They depend on
//! nothing but the bytes: not on how these come, nor on what was built before.

/// The unit of the tar format.
const HEADER_BYTES: usize = 512;

/// How large blocks are, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockSizes {
    /// A block ends in front of an entry only from here on.
    pub(crate) min: u64,
    /// How many more bytes it takes, on average, until such an entry comes.
    pub(crate) spread: u64,
    /// No block is larger.
    pub(crate) max: u64,
}

impl BlockSizes {
    /// Blocks of `average` bytes, give or take.
    pub(crate) const fn around(average: u64) -> BlockSizes {
        BlockSizes { min: average / 4 * 3, spread: average / 4, max: average / 2 * 3 }
    }
}

/// Follows a stream of bytes and says where its blocks end.
pub(crate) struct Borders {
    sizes: BlockSizes,
    /// Bytes of the block so far.
    block: u64,
    /// What is there of a header.
    header: Vec<u8>,
    /// Bytes until the next header; none where the stream is no tar (any more).
    until_header: Option<u64>,
}

/// What to do with the first bytes of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fed {
    /// So many belong to the block.
    Block(usize),
    /// So many were kept, until more come.
    Kept(usize),
    /// So many were kept, and everything that was is a header: it belongs to the block.
    Header(usize),
    /// The block ends here.
    Border,
}

impl Borders {
    pub(crate) fn new(sizes: BlockSizes) -> Borders {
        Borders { sizes, block: 0, header: Vec::new(), until_header: Some(0) }
    }

    /// No borders at all.
    pub(crate) fn none() -> Borders {
        let sizes = BlockSizes { min: u64::MAX, spread: 1, max: u64::MAX };
        Borders { until_header: None, ..Borders::new(sizes) }
    }

    /// What to do with the beginning of `bytes`, of which there is at least one. Called again with the rest, and after a
    /// border with the same.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Fed {
        if self.until_header == Some(0) {
            return self.feed_header(bytes);
        }
        if self.block >= self.sizes.max {
            return self.border();
        }
        let left = self.until_header.unwrap_or(u64::MAX).min(self.sizes.max - self.block);
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        self.until_header = self.until_header.map(|until| until - taken as u64);
        self.block += taken as u64;
        Fed::Block(taken)
    }

    /// What was kept and not yet said to be a header.
    pub(crate) fn kept(&self) -> &[u8] {
        &self.header
    }

    /// The header that was just found; call it before feeding more.
    pub(crate) fn take_header(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.header)
    }

    fn border(&mut self) -> Fed {
        self.block = 0;
        Fed::Border
    }

    fn feed_header(&mut self, bytes: &[u8]) -> Fed {
        let taken = bytes.len().min(HEADER_BYTES - self.header.len());
        if self.header.len() + taken < HEADER_BYTES {
            self.header.extend_from_slice(&bytes[..taken]);
            return Fed::Kept(taken);
        }
        // Looked at before it is taken: in front of a border the same bytes come again.
        let whole = [&self.header[..], &bytes[..taken]].concat();
        let size = content_size(&whole);
        if self.block > 0 && self.ends_before(&whole, size) {
            return self.border();
        }
        self.header = whole;
        self.block += HEADER_BYTES as u64;
        self.until_header = size.map(|size| size.next_multiple_of(HEADER_BYTES as u64));
        Fed::Header(taken)
    }

    fn ends_before(&self, header: &[u8], size: Option<u64>) -> bool {
        if self.block + HEADER_BYTES as u64 > self.sizes.max {
            return true;
        }
        let Some(size) = size else { return false };
        // A large file's blocks are the same wherever it stands.
        let is_large = size >= self.sizes.max;
        let is_chosen =
            self.block >= self.sizes.min && hash(&header[..100]) % self.sizes.spread < size + HEADER_BYTES as u64;
        is_large || is_chosen
    }
}

/// The size of what follows a header; none when it is none. Zeros end an archive, and nothing follows them.
fn content_size(header: &[u8]) -> Option<u64> {
    if header.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let field = &header[148..156];
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = field.iter().map(|byte| u64::from(*byte)).sum();
    let is_header = octal(field)? == sum - own + 8 * u64::from(b' ');
    // Above 8 GiB other records tell the size. What follows is then taken for no header.
    if is_header { octal(&header[124..136]) } else { None }
}

/// A number of a header's field: octal digits, ended by a space or NUL.
fn octal(field: &[u8]) -> Option<u64> {
    let is_end = |byte: &u8| matches!(byte, b' ' | 0);
    let digits: Vec<u8> =
        field.iter().skip_while(|byte| **byte == b' ').take_while(|byte| !is_end(byte)).copied().collect();
    u64::from_str_radix(std::str::from_utf8(&digits).ok()?, 8).ok()
}

/// FNV-1a, mixed at the end: spreads names evenly.
fn hash(bytes: &[u8]) -> u64 {
    let folded =
        bytes.iter().fold(0xcbf29ce484222325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100000001b3));
    (folded ^ (folded >> 32)).wrapping_mul(0x9e3779b97f4a7c15) >> 16
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::layer_tar::{LayerWriter, Metadata};

    const SIZES: BlockSizes = BlockSizes::around(1 << 16);

    /// The blocks of `stream`, which comes in pieces of `piece` bytes.
    fn blocks(stream: &[u8], piece: usize) -> Vec<Vec<u8>> {
        let mut borders = Borders::new(SIZES);
        let mut blocks = vec![Vec::new()];
        for mut rest in stream.chunks(piece) {
            while !rest.is_empty() {
                let block = blocks.last_mut().expect("there is one");
                match borders.feed(rest) {
                    Fed::Block(n) => {
                        block.extend_from_slice(&rest[..n]);
                        rest = &rest[n..];
                    }
                    Fed::Kept(n) => rest = &rest[n..],
                    Fed::Header(n) => {
                        block.append(&mut borders.take_header());
                        rest = &rest[n..];
                    }
                    Fed::Border => blocks.push(Vec::new()),
                }
            }
        }
        blocks.last_mut().expect("there is one").extend_from_slice(borders.kept());
        blocks
    }

    fn archive(sizes: &[usize]) -> Vec<u8> {
        let mut writer = LayerWriter::new(Vec::new());
        for (number, size) in sizes.iter().enumerate() {
            let content = vec![number as u8; *size];
            let name = format!("file-{number}");
            writer.file(Path::new(&name), &Metadata::default(), *size as u64, &mut &*content).expect("writes");
        }
        writer.finish().expect("writes")
    }

    fn sizes() -> Vec<usize> {
        (0..400).map(|number| number * 7919 % 12000).collect()
    }

    #[test]
    fn blocks_depend_on_the_bytes_and_not_on_how_they_come() {
        let stream = archive(&sizes());
        let whole = blocks(&stream, usize::MAX);
        assert_eq!(whole.concat(), stream);
        assert!(whole.len() > 10);
        assert!(whole.iter().all(|block| block.len() as u64 <= SIZES.max));
        for piece in [1, 511, 512, 513, 8192] {
            assert_eq!(blocks(&stream, piece), whole, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_comes_after_a_changed_file_has_its_blocks_again() {
        let mut sizes = sizes();
        let before = blocks(&archive(&sizes), usize::MAX);
        sizes[20] += 5000;
        let after = blocks(&archive(&sizes), usize::MAX);
        let n_new = after.iter().filter(|block| !before.contains(block)).count();
        assert!(n_new <= 4, "{n_new} of {} blocks are new", after.len());
    }

    #[test]
    fn a_large_file_has_its_blocks_wherever_it_stands() {
        let before = blocks(&archive(&[100, 2_000_000, 5000]), usize::MAX);
        let after = blocks(&archive(&[40_000, 2_000_000, 5000]), usize::MAX);
        assert_eq!(before[1..], after[1..]);
    }

    #[test]
    fn what_is_no_archive_is_cut_at_fixed_distances() {
        let stream: Vec<u8> = (0..500_000_u32).map(|number| ((number * 31) >> 3) as u8).collect();
        let cut = blocks(&stream, 1000);
        assert_eq!(cut.concat(), stream);
        assert!(cut[..cut.len() - 1].iter().all(|block| block.len() as u64 == SIZES.max));
    }
}
