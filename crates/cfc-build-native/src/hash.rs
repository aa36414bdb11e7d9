//! Fills in the digests of files: from the stat cache where it knows them, else by reading, on all processors.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::entry::{Entries, EntryKind, SourceFile};
use crate::failure::{Failure, OnPath, Result};
use crate::stat_cache::StatCache;
use crate::tree::{Identity, Tree};

const BUFFER_BYTES: usize = 256 << 10;

/// Fills in the digest of every file of `entries`. Those of the first tree are remembered in `cache`.
pub(crate) fn fill_digests(entries: &mut Entries, trees: &[&dyn Tree], cache: Option<&StatCache>) -> Result<()> {
    let files = entries.values_mut().filter_map(|entry| match &mut entry.kind {
        EntryKind::File(file) => Some(file),
        _ => None,
    });
    let mut unknown: Vec<&mut SourceFile> = Vec::new();
    for file in files {
        match cache.filter(|_| file.tree == 0).and_then(|cache| cache.get(&file.identity)) {
            Some(digest) => file.digest = digest,
            None => unknown.push(file),
        }
    }
    hash_all(unknown, trees, cache)
}

fn hash_all(files: Vec<&mut SourceFile>, trees: &[&dyn Tree], cache: Option<&StatCache>) -> Result<()> {
    // Starting threads for a handful of small files takes longer than hashing them.
    let n_bytes: u64 = files.iter().map(|file| file.size).sum();
    let n_processors = std::thread::available_parallelism().map_or(1, usize::from);
    let n_threads = if n_bytes < 1 << 20 { 1 } else { n_processors.min(files.len()) };
    if n_threads <= 1 {
        let mut buffer = vec![0; BUFFER_BYTES];
        return files.into_iter().try_for_each(|file| hash_one(file, trees, cache, &mut buffer));
    }
    let next = AtomicUsize::new(0);
    let files: Vec<Mutex<&mut SourceFile>> = files.into_iter().map(Mutex::new).collect();
    let work = || {
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            hash_one(&mut file, trees, cache, &mut buffer)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn hash_one(file: &mut SourceFile, trees: &[&dyn Tree], cache: Option<&StatCache>, buffer: &mut [u8]) -> Result<()> {
    let mut open = open_unchanged(trees, file)?;
    let mut hasher = Sha256::new();
    loop {
        let length = open.read(buffer).on("read", &file.path)?;
        if length == 0 {
            break;
        }
        hasher.update(&buffer[..length]);
    }
    refuse_changed(&open, file)?;
    file.digest = hasher.finalize().into();
    if let Some(cache) = cache.filter(|_| file.tree == 0) {
        cache.put(file.identity, file.digest);
    }
    Ok(())
}

/// Opens `file`, which must still be what it was when it was looked at.
pub(crate) fn open_unchanged(trees: &[&dyn Tree], file: &SourceFile) -> Result<File> {
    let open = trees[file.tree].open(&file.path)?;
    refuse_changed(&open, file)?;
    Ok(open)
}

/// Fails when `open` is not any more what `file` was when it was looked at: its digest and its bytes would not agree.
pub(crate) fn refuse_changed(open: &File, file: &SourceFile) -> Result<()> {
    let metadata = open.metadata().on("look at", &file.path)?;
    let now = Identity::of(&metadata);
    // Reading, or a further name in the store, does not change a file; its content has the other times.
    let is_same = (now.device, now.inode, now.size, now.modified)
        == (file.identity.device, file.identity.inode, file.identity.size, file.identity.modified);
    if is_same {
        return Ok(());
    }
    Err(changed(&file.path))
}

fn changed(path: &Path) -> Failure {
    Failure::new(format!("`{}` changed while it was copied", path.display()))
        .hint("build again when nothing writes there")
}
