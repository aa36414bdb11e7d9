//! [`Room`]: room on the disk for what an upload will still grow by.

use std::fs::File;

use rustix::fs::{FallocateFlags, fallocate, fstatfs};

/// How much room is asked for at once. What was not needed is given back when the request ends.
const STRIDE: u64 = 16 << 20;
/// Shorter ones are written as they come.
const LEAST: u64 = 4 << 20;
/// `EXT4_SUPER_MAGIC`, `linux/magic.h`.
pub(super) const EXT4: u64 = 0xef53;

/// Has ext4 choose the place of a growing file in large pieces, not block by block as the pages become dirty, which is a
/// quarter of what writing costs there. Other file systems are left to their own ways: to btrfs, room that was asked for is
/// room that is not compressed.
pub(super) struct Room {
    /// How long the file was at first.
    start: u64,
    /// Where the room ends; `None` where none is asked for.
    end: Option<u64>,
    /// Whether there may be some beyond the end of the file.
    is_left: bool,
    /// Where the file will end, if that is known.
    expected: Option<u64>,
}

impl Room {
    /// For a file that may have `size` bytes already.
    pub(super) fn new(file: &File, size: u64) -> Room {
        let is_ext4 = fstatfs(file).is_ok_and(|fs| fs.f_type as u64 == EXT4);
        // A process that died may have left some.
        Room { start: size, end: is_ext4.then_some(size), is_left: is_ext4 && size > 0, expected: None }
    }

    /// Says that the file will not grow beyond `end`.
    pub(super) fn expect(&mut self, end: u64) {
        self.expected = Some(end);
    }

    /// Gets `file`, which has grown to `size`, room beyond that when it is running out.
    pub(super) fn make(&mut self, file: &File, size: u64) {
        let Some(end) = self.end else { return };
        let wanted = (size + STRIDE).min(self.expected.unwrap_or(u64::MAX));
        if size - self.start < LEAST || size < end || wanted <= size {
            return;
        }
        // Whoever has no room for it, or not for all of it, says so when it is written.
        self.is_left = true;
        self.end = fallocate(file, FallocateFlags::KEEP_SIZE, size, wanted - size).ok().map(|()| wanted);
    }

    /// Gives back what `file` of `size` bytes does not need.
    pub(super) fn give_back(&mut self, file: &File, size: u64) -> std::io::Result<()> {
        if !std::mem::take(&mut self.is_left) {
            return Ok(());
        }
        self.end = self.end.map(|_| size);
        // Frees the blocks beyond the end, also when the length stays.
        file.set_len(size)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_large_upload_is_given_room_and_gives_back_what_it_does_not_need() {
        let file = tempfile::tempfile().expect("a file");
        let mut room = Room::new(&file, 0);
        if room.end.is_none() {
            eprintln!("skipped: temporary files are not on ext4");
            return;
        }
        let taken =
            |file: &File| file.metadata().map(|metadata| (metadata.len(), metadata.blocks() * 512)).expect("is there");
        file.set_len(LEAST).expect("grows");
        Room::new(&file, 1).make(&file, LEAST);
        assert_eq!(taken(&file), (LEAST, 0), "too little has come");
        room.make(&file, LEAST);
        assert_eq!(taken(&file), (LEAST, STRIDE));
        room.make(&file, LEAST + 1);
        assert_eq!(taken(&file), (LEAST, STRIDE), "there is enough");
        room.give_back(&file, LEAST).expect("is given back");
        assert_eq!(taken(&file), (LEAST, 0));

        // What a process that died had asked for.
        fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 2 * LEAST).expect("there is room");
        Room::new(&file, LEAST).give_back(&file, LEAST).expect("is given back");
        assert_eq!(taken(&file), (LEAST, LEAST));
        file.set_len(0).and_then(|()| file.set_len(LEAST)).expect("is emptied");

        room.expect(LEAST + 4096);
        room.make(&file, LEAST);
        room.make(&file, LEAST + 4096);
        assert_eq!(taken(&file), (LEAST, 4096));
    }
}
