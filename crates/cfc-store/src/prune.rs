//! [`Pruner`]: takes out of a store what nobody needs, while others use it.
//!
//! What stays, whatever is asked for: what the notes of living processes name ([`crate::uses`]), images that the platform
//! keeps, and blobs of images with a name. The last do not count when the name is that of a pulled image and everything
//! is asked for, since the registry has it. What goes is chosen without a lock; then, under the exclusive lock, whether it
//! is needed is decided anew and it is renamed away, and it is deleted when others go on already.
//!
//! A pruner makes no session and writes nothing but sizes that it measured, so it also works on a disk that is full.

mod inventory;
mod live;
mod remove;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::FlockOperation;

use self::inventory::{Entity, Inventory, What};
use self::live::Live;
use self::remove::Trash;
use crate::error::Context;
use crate::{Result, store, uses};

/// Takes things out of a store.
#[derive(Clone, Debug)]
pub struct Pruner {
    root: PathBuf,
}

/// What may go. The default is everything that nothing needs, except what only saves time with images that have a name.
#[derive(Clone, Debug, Default)]
pub struct PruneFilter {
    /// Also pulled images, what was remembered of build contexts, and what saves time with named images.
    pub all: bool,
    /// Only what was used last before then.
    pub used_before: Option<SystemTime>,
    /// Only these kinds; empty for all.
    pub kinds: Vec<PrunableKind>,
    /// Only those whose id begins so.
    pub id: Option<String>,
}

/// How much goes: all that may, or, the longest unused first, until there is little enough (as BuildKit's garbage
/// collection decides it). Numbers are bytes; 0 stands for no such bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrunePlan {
    /// No more than this stays.
    pub max_used: u64,
    /// So much is to be free on the filesystem.
    pub min_free: u64,
    /// So much stays in any case.
    pub reserved: u64,
    /// Only says what would go.
    pub dry_run: bool,
}

impl PrunePlan {
    /// How many of `total` bytes may stay while `free` bytes are free.
    fn kept_bytes(&self, total: u64, free: u64) -> u64 {
        let mut kept = self.max_used;
        let missing = self.min_free.saturating_sub(free);
        if missing > 0 {
            let rest = total.saturating_sub(missing);
            kept = if kept == 0 { rest } else { kept.min(rest) };
        } else if self.min_free > 0 && kept == 0 {
            // So much is free already. Zero would be no bound, with which everything goes.
            kept = total.max(1);
        }
        kept.max(self.reserved)
    }
}

/// What kind of thing it is, by BuildKit's names where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PrunableKind {
    /// An image that was pulled: its name. What it consists of are layers.
    Image,
    /// A layer: its blobs, it unpacked, and what is remembered of it; or a blob of which nothing is known.
    Layer,
    /// A cache mount.
    CacheMount,
    /// What was remembered of a build context.
    Context,
}

impl PrunableKind {
    /// Every kind.
    pub const ALL: [PrunableKind; 4] =
        [PrunableKind::Image, PrunableKind::Layer, PrunableKind::CacheMount, PrunableKind::Context];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            PrunableKind::Image => "image",
            PrunableKind::Layer => "regular",
            PrunableKind::CacheMount => "exec.cachemount",
            PrunableKind::Context => "source.local",
        }
    }
}

/// Something that went, or would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prunable {
    /// A digest in hexadecimal, or an image's or a cache's name.
    pub id: String,
    /// What it is.
    pub kind: PrunableKind,
    /// What it takes of the disk, in bytes. A file that something outside of the store names too takes nothing.
    pub size: u64,
    /// When it was used last.
    pub last_used: SystemTime,
}

/// What pruning did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// What went, the longest unused first.
    pub removed: Vec<Prunable>,
    /// What could go, or could if nobody used it, and is there still: in bytes.
    pub left_bytes: u64,
}

impl Pruned {
    /// How much of the disk is free again, in bytes.
    pub fn freed_bytes(&self) -> u64 {
        self.removed.iter().map(|removed| removed.size).sum()
    }
}

impl Pruner {
    /// For the store below `root`, which need not be open.
    pub fn of(root: &Path) -> Pruner {
        Pruner { root: root.to_path_buf() }
    }

    /// Removes what `filter` lets go, as much of it as `plan` says. Nothing that somebody needs goes, and nobody has to
    /// wait for longer than it takes to rename.
    ///
    /// # Errors
    /// When the store cannot be read, or a process of an earlier version uses it, of which nobody knows what it needs.
    /// What cannot be removed is left for the next time.
    pub fn prune(&self, filter: &PruneFilter, plan: &PrunePlan) -> Result<Pruned> {
        if !self.root.join("lock").exists() {
            return Ok(Pruned::default());
        }
        self.prune_of(Inventory::take(&self.root)?, filter, plan)
    }

    /// As [`Pruner::prune`], with what was found some time ago.
    fn prune_of(&self, mut inventory: Inventory, filter: &PruneFilter, plan: &PrunePlan) -> Result<Pruned> {
        let mut trash = Trash::new(&self.root);
        let pruned = {
            let _guard = uses::lock(&self.root, FlockOperation::LockExclusive)?;
            let used = uses::noted(&self.root, |session| store::is_session_alive(&self.root, session))?;
            let live = Live::of(&self.root, used, filter.all)?;
            Pruning { filter, plan, root: &self.root, live, trash: &mut trash }.run(&mut inventory)?
        };
        trash.empty();
        Ok(pruned)
    }
}

/// One run, under the lock.
struct Pruning<'a> {
    filter: &'a PruneFilter,
    plan: &'a PrunePlan,
    root: &'a Path,
    live: Live,
    trash: &'a mut Trash,
}

impl Pruning<'_> {
    fn run(&mut self, inventory: &mut Inventory) -> Result<Pruned> {
        // Names come before what they name where both were used at the same time: no image is half there.
        inventory
            .entities
            .sort_by(|one, other| (one.last_used, one.kind, &one.id).cmp(&(other.last_used, other.kind, &other.id)));
        let prunes_all =
            self.filter.all && *self.plan == PrunePlan { dry_run: self.plan.dry_run, ..PrunePlan::default() };
        let mut left_bytes: u64 = inventory.entities.iter().map(|entity| entity.removable_size(&self.live)).sum();
        let kept_bytes = self.plan.kept_bytes(left_bytes, free_bytes(self.root)?);
        let mut removed = Vec::new();
        for entity in &inventory.entities {
            if left_bytes <= kept_bytes && kept_bytes > 0 {
                break;
            }
            if !self.is_wanted(entity) {
                continue;
            }
            let Some(size) = self.remove(entity, prunes_all)? else { continue };
            left_bytes = left_bytes.saturating_sub(size);
            let Entity { id, kind, last_used, .. } = entity;
            removed.push(Prunable { id: id.clone(), kind: *kind, size, last_used: *last_used });
        }
        Ok(Pruned { removed, left_bytes })
    }

    fn is_wanted(&self, entity: &Entity) -> bool {
        let PruneFilter { all, used_before, kinds, id } = self.filter;
        let is_kept_by_default = matches!(entity.kind, PrunableKind::Image | PrunableKind::Context);
        (*all || !is_kept_by_default)
            && used_before.is_none_or(|before| entity.last_used < before)
            && (kinds.is_empty() || kinds.contains(&entity.kind))
            && id.as_ref().is_none_or(|id| entity.id.starts_with(id))
    }

    /// Removes what of `entity` nobody needs. How many bytes that frees; none when nothing went.
    fn remove(&mut self, entity: &Entity, prunes_all: bool) -> Result<Option<u64>> {
        let is_dry = self.plan.dry_run;
        match &entity.what {
            What::Name { path, manifest } => {
                // Meanwhile somebody may have given the name to another image, or to one that no registry has.
                if !self.live.is_pulled(path, manifest) || self.live.used_blobs.contains(&manifest.digest) {
                    return Ok(None);
                }
                if !is_dry {
                    self.trash.remove_file(path);
                }
                self.live.forget_name(self.root, path)?;
                Ok(Some(0))
            }
            What::Layer(layer) => {
                let parts = layer.needless(&self.live, self.filter.all, prunes_all);
                if parts.is_empty() {
                    return Ok(None);
                }
                if !is_dry {
                    // What is remembered first: it must not name what is gone.
                    parts.records.iter().for_each(|(path, _)| self.trash.remove_file(path));
                    parts.blobs.iter().for_each(|(path, _)| self.trash.take(path));
                    parts.directory.iter().for_each(|(path, _)| self.trash.take(path));
                }
                Ok(Some(parts.size()))
            }
            What::Record { path, size } => {
                if !is_dry {
                    self.trash.remove_file(path);
                }
                Ok(Some(*size))
            }
            What::Mount { path, size } => {
                let is_free = if is_dry { remove::is_unused(path) } else { self.trash.take_mount(path) };
                Ok(is_free.then_some(*size))
            }
        }
    }
}

fn free_bytes(root: &Path) -> Result<u64> {
    let status = rustix::fs::statvfs(root).on("look at the filesystem of", root)?;
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}

#[cfg(test)]
mod tests {
    use cfc_oci::{Descriptor, Reference, media_type};

    use super::*;
    use crate::Store;

    #[test]
    fn a_name_that_was_given_to_another_image_after_the_look_around_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let put = |store: &Store, text: &str| {
            let digest = store.blobs().put(text.as_bytes()).expect("written");
            Descriptor::new(media_type::MANIFEST, digest, text.len() as u64)
        };
        let names: [Reference; 3] = ["a:1", "b:1", "c:1"].map(|name| name.parse().expect("a reference"));
        let store = Store::open(directory.path()).expect("a store");
        let old = put(&store, "{}");
        names.iter().for_each(|name| store.images().tag_pulled(name, &old).expect("tags"));
        drop(store);

        let inventory = Inventory::take(directory.path()).expect("lists");
        let store = Store::open(directory.path()).expect("a store");
        let new = put(&store, "{ }");
        store.images().tag_pulled(&names[0], &new).expect("tags");
        store.images().tag(&names[1], &new).expect("tags");
        let filter = PruneFilter { all: true, ..PruneFilter::default() };
        let pruned = store.pruner().prune_of(inventory, &filter, &PrunePlan::default()).expect("prunes");
        let gone: Vec<&str> = pruned.removed.iter().map(|gone| gone.id.as_str()).collect();
        assert!(gone.contains(&names[2].to_string().as_str()), "{gone:?}");
        let left: Vec<_> = store.images().list().expect("lists");
        assert_eq!(
            left.iter().map(|(name, image)| (name, image)).collect::<Vec<_>>(),
            [(&names[0], &new), (&names[1], &new)]
        );
    }

    #[test]
    fn what_stays_is_decided_as_buildkit_decides_it() {
        let kept = |max_used, min_free, reserved, total, free| {
            PrunePlan { max_used, min_free, reserved, dry_run: false }.kept_bytes(total, free)
        };
        assert_eq!(kept(0, 0, 0, 100, 5), 0, "without bounds nothing stays");
        assert_eq!(kept(60, 0, 0, 100, 5), 60);
        assert_eq!(kept(0, 0, 70, 100, 5), 70);
        assert_eq!(kept(0, 20, 0, 100, 5), 85, "fifteen bytes are missing");
        assert_eq!(kept(0, 20, 0, 100, 50), 100, "so much is free, so all stays");
        assert_eq!(kept(0, 20, 0, 0, 50), 1, "zero would be no bound");
        assert_eq!(kept(60, 20, 0, 100, 50), 60);
        assert_eq!(kept(60, 50, 0, 100, 5), 55);
        assert_eq!(kept(60, 50, 58, 100, 5), 58, "but never below what is reserved");
    }
}
