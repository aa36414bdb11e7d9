//! [`StatCache`]: the digests of files whose identity has not changed since they were hashed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use cfc_oci::Digest;
use cfc_store::Store;

use crate::failure::Result;
use crate::tree::Identity;

/// Changes with the format of the records.
const MAGIC: &[u8; 8] = b"cfcstat1";
/// Five numbers of 8 bytes and a SHA-256.
const RECORD_BYTES: usize = 5 * 8 + 32;
/// A file that changed this shortly before it was hashed may change again without its times telling: the kernel's clock
/// for files ticks every 1 to 10 ms.
const SETTLED_NANOSECONDS: i64 = 50_000_000;
/// The same where a file system keeps whole seconds only.
const SETTLED_COARSE_NANOSECONDS: i64 = 2_000_000_000;
/// Other Dockerfiles use other files of the same context. Above this number, and above the number of files this build
/// used, they are taken for leftovers and forgotten.
const MAX_UNUSED: usize = 10_000;

/// Digests by file identity, for one build context.
pub(crate) struct StatCache {
    key: String,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    digests: HashMap<Identity, [u8; 32]>,
    /// Those that were asked for or added in this build.
    used: HashMap<Identity, [u8; 32]>,
    has_news: bool,
}

impl StatCache {
    /// What is remembered of the context in `directory`.
    pub(crate) fn load(store: &Store, directory: &Path) -> Result<StatCache> {
        let key = format!("stat-{}", Digest::of(directory.as_os_str().as_encoded_bytes()).hex());
        let bytes = store.cache().get_to_use(&key)?.unwrap_or_default();
        let known = Known { digests: parse(&bytes).unwrap_or_default(), ..Known::default() };
        Ok(StatCache { key, known: Mutex::new(known) })
    }

    /// The SHA-256 of the file with `identity`, when it is known.
    pub(crate) fn get(&self, identity: &Identity) -> Option<[u8; 32]> {
        let mut known = self.lock();
        let digest = *known.digests.get(identity)?;
        known.used.insert(*identity, digest);
        Some(digest)
    }

    /// Remembers the SHA-256 of the file with `identity`, unless it changed so recently that it might change again
    /// unseen.
    pub(crate) fn put(&self, identity: Identity, digest: [u8; 32]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos() as i64);
        let is_coarse = identity.changed % 1_000_000_000 == 0;
        let settled = if is_coarse { SETTLED_COARSE_NANOSECONDS } else { SETTLED_NANOSECONDS };
        if now.saturating_sub(identity.changed.max(identity.modified)) < settled {
            return;
        }
        let mut known = self.lock();
        known.used.insert(identity, digest);
        known.has_news = true;
    }

    /// Writes what is known, if there is anything new.
    pub(crate) fn save(&self, store: &Store) -> Result<()> {
        let known = self.lock();
        if !known.has_news {
            return Ok(());
        }
        let unused = || known.digests.iter().filter(|(identity, _)| !known.used.contains_key(*identity));
        let n_unused = unused().count();
        let n_kept = if n_unused > MAX_UNUSED.max(known.used.len()) { 0 } else { n_unused };
        let mut bytes = MAGIC.to_vec();
        for (identity, digest) in known.used.iter().chain(unused().take(n_kept)) {
            let Identity { device, inode, size, modified, changed } = *identity;
            for number in [device, inode, size, modified as u64, changed as u64] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            bytes.extend_from_slice(digest);
        }
        Ok(store.cache().put(&self.key, &bytes)?)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// None when the bytes are not what [`StatCache::save`] writes.
fn parse(bytes: &[u8]) -> Option<HashMap<Identity, [u8; 32]>> {
    let records = bytes.strip_prefix(MAGIC)?.chunks_exact(RECORD_BYTES);
    if !records.remainder().is_empty() {
        return None;
    }
    records
        .map(|record| {
            let number = |index: usize| record[index * 8..][..8].try_into().ok().map(u64::from_le_bytes);
            let identity = Identity {
                device: number(0)?,
                inode: number(1)?,
                size: number(2)?,
                modified: number(3)? as i64,
                changed: number(4)? as i64,
            };
            Some((identity, record[40..].try_into().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settled_files_are_remembered_and_fresh_ones_are_not() {
        let root = tempfile::tempdir().expect("a directory");
        let store = Store::open(root.path()).expect("a store");
        let settled = Identity { device: 1, inode: 2, size: 3, modified: 4, changed: 5 };
        let coarse = Identity { inode: 7, changed: 1_000_000_000, ..settled };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as i64;
        let fresh = Identity { inode: 9, changed: now, ..settled };

        let cache = StatCache::load(&store, Path::new("/context")).expect("loads");
        for identity in [settled, coarse, fresh] {
            cache.put(identity, [identity.inode as u8; 32]);
        }
        cache.save(&store).expect("saves");

        let cache = StatCache::load(&store, Path::new("/context")).expect("loads");
        assert_eq!(cache.get(&settled), Some([2; 32]));
        assert_eq!(cache.get(&coarse), Some([7; 32]));
        assert_eq!(cache.get(&fresh), None);
        assert_eq!(cache.get(&Identity { changed: 6, ..settled }), None);
        let elsewhere = StatCache::load(&store, Path::new("/elsewhere")).expect("loads");
        assert_eq!(elsewhere.get(&settled), None);
    }

    #[test]
    fn a_damaged_record_is_as_good_as_none() {
        assert!(parse(b"").is_none());
        assert!(parse(b"cfcstat1short").is_none());
        assert_eq!(parse(b"cfcstat1").map(|known| known.len()), Some(0));
    }
}
