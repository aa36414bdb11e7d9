//! A Cap'n Proto message as a tree that can be changed and written again.
//!
//! Cap'n Proto data describes its own shape: pointers say how many words and pointers a struct has and how large a
//! list's elements are. So a message can be copied, and a field added, without its schema; what a field *means* is the
//! business of `patch.rs`. The encoding is the one of <https://capnproto.org/encoding.html>. Reads what workerd wrote,
//! yet trusts none of its offsets.

/// How deep a message may nest. workerd's config needs about ten levels.
const MAX_DEPTH: usize = 64;

/// What a pointer points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    /// Nothing: the field's default.
    Null,
    /// A struct.
    Struct(Struct),
    /// A list of structs.
    Structs(Vec<Struct>),
    /// A list of pointers.
    Pointers(Vec<Object>),
    /// A list of anything without pointers: text and data above all.
    Plain(Plain),
}

/// A struct: its data section in words, and its pointers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Struct {
    pub data: Vec<u64>,
    pub pointers: Vec<Object>,
}

/// A list without pointers: the encoding's element size (0 to 5), the number of elements, and their bits in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plain {
    size_code: u8,
    count: usize,
    words: Vec<u64>,
}

/// The element size code of a list of bytes.
const BYTES: u8 = 2;
/// The element size codes of lists of pointers and of structs.
const POINTERS: u8 = 6;
const STRUCTS: u8 = 7;

impl Struct {
    /// The pointer at `index`; `Null` beyond the end, as the encoding wants it.
    pub fn pointer(&self, index: usize) -> &Object {
        self.pointers.get(index).unwrap_or(&Object::Null)
    }

    /// The pointer at `index`, to change it.
    pub fn pointer_mut(&mut self, index: usize) -> &mut Object {
        if self.pointers.len() <= index {
            self.pointers.resize(index + 1, Object::Null);
        }
        &mut self.pointers[index]
    }

    /// The 16 bits of data at `bit`, which is a multiple of 16. Union tags are such numbers.
    pub fn u16_at(&self, bit: usize) -> u16 {
        let word = self.data.get(bit / 64).copied().unwrap_or(0);
        (word >> (bit % 64)) as u16
    }

    /// Changes the 16 bits of data at `bit`, which is a multiple of 16.
    pub fn set_u16_at(&mut self, bit: usize, value: u16) {
        if self.data.len() <= bit / 64 {
            self.data.resize(bit / 64 + 1, 0);
        }
        let word = &mut self.data[bit / 64];
        *word = *word & !(0xffff << (bit % 64)) | u64::from(value) << (bit % 64);
    }
}

impl Object {
    /// A text: its bytes and a zero byte.
    pub fn text(text: &str) -> Object {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        Object::data(&bytes)
    }

    /// A list of bytes.
    pub fn data(bytes: &[u8]) -> Object {
        let word = |chunk: &[u8]| chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        Object::Plain(Plain { size_code: BYTES, count: bytes.len(), words: bytes.chunks(8).map(word).collect() })
    }

    /// The text, when this is one.
    pub fn as_text(&self) -> Option<String> {
        let Object::Plain(Plain { size_code: BYTES, count, words }) = self else { return None };
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).take(*count).collect();
        (bytes.pop() == Some(0)).then(|| String::from_utf8(bytes).ok()).flatten()
    }
}

/// Reads a message: a segment table, then the segments.
pub(crate) fn read(bytes: &[u8]) -> Result<Object, &'static str> {
    const TRUNCATED: &str = "the message ends within its segment table";
    let word32 = |index: usize| -> Option<usize> {
        let bytes = bytes.get(index * 4..index * 4 + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    let n_segments = word32(0).ok_or(TRUNCATED)?.saturating_add(1);
    // A table that large cannot be followed by its segments.
    if n_segments > bytes.len() {
        return Err(TRUNCATED);
    }
    let mut position = (1 + n_segments).div_ceil(2) * 8;
    let mut segments = Vec::with_capacity(n_segments);
    for segment in 0..n_segments {
        let length = word32(1 + segment).ok_or(TRUNCATED)? * 8;
        let content = bytes.get(position..position + length).ok_or("a segment is longer than the message")?;
        segments.push(
            content
                .chunks_exact(8)
                .map(|word| word.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
                .collect(),
        );
        position += length;
    }
    // Two pointers may share what they point at; a hostile message could so grow without end.
    let budget = segments.iter().map(Vec::len).sum::<usize>() * 4 + 64;
    Reader { segments, budget }.object(0, 0, MAX_DEPTH)
}

struct Reader {
    segments: Vec<Vec<u64>>,
    budget: usize,
}

const OUTSIDE: &str = "a pointer leads outside its segment";

impl Reader {
    fn words(&mut self, segment: usize, start: usize, count: usize) -> Result<Vec<u64>, &'static str> {
        self.budget = self.budget.checked_sub(count.max(1)).ok_or("the message refers to itself")?;
        let end = start.checked_add(count).ok_or(OUTSIDE)?;
        Ok(self.segments.get(segment).and_then(|words| words.get(start..end)).ok_or(OUTSIDE)?.to_vec())
    }

    /// The object that the pointer in this word points at.
    fn object(&mut self, segment: usize, index: usize, depth: usize) -> Result<Object, &'static str> {
        let pointer = self.words(segment, index, 1)?[0];
        if pointer == 0 {
            return Ok(Object::Null);
        }
        let depth = depth.checked_sub(1).ok_or("the message nests too deep")?;
        match pointer & 3 {
            2 => self.far(pointer, depth),
            3 => Err("the message holds a capability"),
            _ => {
                let offset = i64::from((pointer as i32) >> 2);
                let start = usize::try_from(index as i64 + 1 + offset).map_err(|_| OUTSIDE)?;
                self.near(segment, start, pointer, depth)
            }
        }
    }

    /// A far pointer: to a pointer in another segment, or (double) to a word that says where and a word that says what.
    fn far(&mut self, pointer: u64, depth: usize) -> Result<Object, &'static str> {
        let segment = (pointer >> 32) as usize;
        let index = (pointer as u32 >> 3) as usize;
        let is_double = pointer & 4 != 0;
        if !is_double {
            return self.object(segment, index, depth);
        }
        let pad = self.words(segment, index, 2)?;
        self.near((pad[0] >> 32) as usize, (pad[0] as u32 >> 3) as usize, pad[1], depth)
    }

    /// The struct or list whose content begins at `start`; `pointer` says what it is.
    fn near(&mut self, segment: usize, start: usize, pointer: u64, depth: usize) -> Result<Object, &'static str> {
        if pointer & 3 == 0 {
            return Ok(Object::Struct(self.structure(segment, start, pointer, depth)?));
        }
        let size_code = (pointer >> 32 & 7) as u8;
        let count = (pointer >> 35) as usize;
        match size_code {
            POINTERS => {
                let items = (0..count).map(|item| self.object(segment, start + item, depth));
                Ok(Object::Pointers(items.collect::<Result<_, _>>()?))
            }
            STRUCTS => {
                let tag = self.words(segment, start, 1)?[0];
                let n_items = (tag as u32 >> 2) as usize;
                let step = data_words(tag) + n_pointers(tag);
                let items = (0..n_items).map(|item| self.structure(segment, start + 1 + item * step, tag, depth));
                Ok(Object::Structs(items.collect::<Result<_, _>>()?))
            }
            _ => {
                let bits = [0, 1, 8, 16, 32, 64][usize::from(size_code)] * count;
                Ok(Object::Plain(Plain { size_code, count, words: self.words(segment, start, bits.div_ceil(64))? }))
            }
        }
    }

    fn structure(&mut self, segment: usize, start: usize, shape: u64, depth: usize) -> Result<Struct, &'static str> {
        let data = self.words(segment, start, data_words(shape))?;
        let first_pointer = start + data_words(shape);
        let pointers = (0..n_pointers(shape)).map(|index| self.object(segment, first_pointer + index, depth));
        Ok(Struct { data, pointers: pointers.collect::<Result<_, _>>()? })
    }
}

fn data_words(shape: u64) -> usize {
    (shape >> 32 & 0xffff) as usize
}

fn n_pointers(shape: u64) -> usize {
    (shape >> 48) as usize
}

/// Writes the message in one segment.
pub(crate) fn write(root: &Object) -> Vec<u8> {
    let mut words = vec![0];
    write_object(root, 0, &mut words);
    let mut bytes = Vec::with_capacity(8 + words.len() * 8);
    bytes.extend(0u32.to_le_bytes());
    bytes.extend((words.len() as u32).to_le_bytes());
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

/// Appends the object to `words` and puts a pointer to it at `at`.
fn write_object(object: &Object, at: usize, words: &mut Vec<u64>) {
    let start = words.len();
    let offset = ((start - at - 1) as u64) << 2;
    let list = |size_code: u8, count: usize| 1 | offset | u64::from(size_code) << 32 | (count as u64) << 35;
    match object {
        Object::Null => words[at] = 0,
        // An empty struct has no content; offset -1 tells it from a null pointer.
        Object::Struct(Struct { data, pointers }) if data.is_empty() && pointers.is_empty() => words[at] = 0xffff_fffc,
        Object::Struct(structure) => {
            words[at] = offset | shape(structure.data.len(), structure.pointers.len());
            write_structs(std::slice::from_ref(structure), structure.data.len(), structure.pointers.len(), words);
        }
        Object::Structs(items) => {
            let n_data = items.iter().map(|item| item.data.len()).max().unwrap_or(0);
            let n_pointers = items.iter().map(|item| item.pointers.len()).max().unwrap_or(0);
            words[at] = list(STRUCTS, items.len() * (n_data + n_pointers));
            words.push((items.len() as u64) << 2 | shape(n_data, n_pointers));
            write_structs(items, n_data, n_pointers, words);
        }
        Object::Pointers(items) => {
            words[at] = list(POINTERS, items.len());
            words.resize(start + items.len(), 0);
            for (index, item) in items.iter().enumerate() {
                write_object(item, start + index, words);
            }
        }
        Object::Plain(plain) => {
            words[at] = list(plain.size_code, plain.count);
            words.extend(&plain.words);
        }
    }
}

/// Appends the structs, each widened to the given shape, then what they point at.
fn write_structs(items: &[Struct], n_data: usize, n_pointers: usize, words: &mut Vec<u64>) {
    let start = words.len();
    let step = n_data + n_pointers;
    words.resize(start + items.len() * step, 0);
    for (index, item) in items.iter().enumerate() {
        let position = start + index * step;
        words[position..position + item.data.len()].copy_from_slice(&item.data);
        for (pointer, object) in item.pointers.iter().enumerate() {
            write_object(object, position + n_data + pointer, words);
        }
    }
}

fn shape(n_data: usize, n_pointers: usize) -> u64 {
    (n_data as u64) << 32 | (n_pointers as u64) << 48
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Object {
        let mut named = Struct { data: vec![7], pointers: vec![Object::text("name")] };
        named.set_u16_at(32, 3);
        let empty = Object::Struct(Struct::default());
        let pointers = vec![Object::Structs(vec![named.clone(), Struct::default()]), empty, Object::Null];
        Object::Struct(Struct { data: vec![], pointers: vec![Object::Pointers(pointers), Object::Struct(named)] })
    }

    #[test]
    fn what_is_written_is_read_again() {
        let bytes = write(&sample());
        let read = read(&bytes).expect("our own message");
        assert_eq!(write(&read), bytes);
        let Object::Struct(root) = read else { panic!("not a struct") };
        let Object::Struct(named) = root.pointer(1) else { panic!("not a struct") };
        assert_eq!((named.u16_at(0), named.u16_at(32), named.pointer(0).as_text()), (7, 3, Some("name".to_string())));
        assert_eq!(named.pointer(9), &Object::Null);
    }

    #[test]
    fn far_pointers_are_followed() {
        // Segment 0 holds a far pointer to word 0 of segment 1, a struct pointer to the one data word behind it.
        let mut bytes = Vec::new();
        for half in [1u32, 1, 2, 0] {
            bytes.extend(half.to_le_bytes());
        }
        for word in [2u64 | 1 << 32, 1 << 32, 42] {
            bytes.extend(word.to_le_bytes());
        }
        assert_eq!(read(&bytes), Ok(Object::Struct(Struct { data: vec![42], pointers: vec![] })));
    }

    #[test]
    fn broken_messages_are_refused_without_a_panic() {
        let bytes = write(&sample());
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "{length} bytes of {} were accepted", bytes.len());
        }
        for position in 0..bytes.len() {
            for value in [0xff, 0x02, 0x06, 0x80] {
                let mut broken = bytes.clone();
                broken[position] = value;
                let _ = read(&broken);
            }
        }
        let refers_to_itself =
            [0u32, 1, 0xffff_fffc, 1 << 16].into_iter().flat_map(u32::to_le_bytes).collect::<Vec<_>>();
        assert!(read(&refers_to_itself).is_err());
    }
}
