//! [`Image`]: what an empty filesystem of one size looks like, block by block.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};

use super::DiskKind;
use crate::error::ErrorKind;
use crate::step::Step;

const BLOCK: u64 = 4096;
const MKFS: &str = "mkfs.ext4";
/// Where it is when `PATH` does not say so, as for services and for `su`.
const MKFS_DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// No journal and no checksums: the disk never outlives its sandbox. No reserve for resizing, no copies of the superblock:
/// so the whole image is a dozen blocks. Named one by one, since `mke2fs.conf` differs between machines.
const FEATURES: &str = "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super2,large_file,huge_file,uninit_bg,dir_nlink,extra_isize";
const EXTENDED: &str = "lazy_itable_init=1,nodiscard,num_backup_sb=0,packed_meta_blocks=1";

/// One inode for this many bytes, as mke2fs has it; smaller filesystems hold smaller files.
const BYTES_PER_INODE: u64 = 16_384;
const BYTES_PER_INODE_SMALL: u64 = 4_096;
const SMALL: u64 = 512 << 20;

/// An empty filesystem: the blocks of it that are not zero. Made once a size, written to every disk.
pub(super) struct Image {
    length: u64,
    blocks: Vec<(u64, Vec<u8>)>,
}

impl Image {
    /// Lets `mkfs.ext4` make one, in a file without a name.
    pub(super) fn make(kind: &DiskKind) -> Result<Image, ErrorKind> {
        let length = kind.bytes.div_ceil(BLOCK) * BLOCK;
        let file = File::from(nameless(&kind.directory)?);
        file.set_len(length).step(|| format!("make {kind}"))?;
        let ratio = if kind.bytes < SMALL { BYTES_PER_INODE_SMALL } else { BYTES_PER_INODE };
        let mkfs = find_mkfs().ok_or_else(|| ErrorKind::Unavailable(format!("there is no {MKFS}")))?;
        let made = Command::new(mkfs)
            .args(["-q", "-F", "-m", "0", "-b", "4096", "-I", "256", "-i", &ratio.to_string()])
            .args(["-O", FEATURES, "-E", EXTENDED, "/proc/self/fd/0"])
            .stdin(file.try_clone().step(|| format!("make {kind}"))?)
            .stdout(Stdio::null())
            .output()
            .step(|| format!("run {MKFS}"))?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr);
            return Err(ErrorKind::Unavailable(format!("{MKFS} cannot make {kind}: {}", said.trim())));
        }
        let blocks = read_blocks(&file).step(|| format!("read what {MKFS} made"))?;
        Ok(Image { length, blocks })
    }

    /// A new sparse file without a name that holds it.
    pub(super) fn write(&self, kind: &DiskKind) -> Result<File, ErrorKind> {
        let file = File::from(nameless(&kind.directory)?);
        let write = || {
            file.set_len(self.length)?;
            self.blocks.iter().try_for_each(|(offset, block)| file.write_all_at(block, *offset))
        };
        write().step(|| format!("make {kind}"))?;
        Ok(file)
    }
}

/// Whether this machine cannot make filesystems.
pub(crate) fn lacks_mkfs() -> bool {
    find_mkfs().is_none()
}

fn find_mkfs() -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let named = std::env::split_paths(&path).filter(|directory| directory.is_absolute());
    let candidates = named.chain(MKFS_DIRECTORIES.map(std::path::PathBuf::from));
    candidates.map(|directory| directory.join(MKFS)).find(|path| path.is_file())
}

fn nameless(directory: &Path) -> Result<OwnedFd, ErrorKind> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)
        .step(|| format!("make a file without a name in {}", directory.display()))
}

fn read_blocks(file: &File) -> io::Result<Vec<(u64, Vec<u8>)>> {
    let mut blocks = Vec::new();
    let mut offset = 0;
    // Only what was written: the rest are gigabytes of nothing.
    while let Ok(start) = rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start))?;
        for at in (start - start % BLOCK..end).step_by(BLOCK as usize) {
            let mut block = vec![0; BLOCK as usize];
            file.read_exact_at(&mut block, at)?;
            if block.iter().any(|byte| *byte != 0) {
                blocks.push((at, block));
            }
        }
        offset = end;
    }
    Ok(blocks)
}
