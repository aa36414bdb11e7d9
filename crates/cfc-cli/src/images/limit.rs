//! The limit of the build cache, enforced at the end of builds.

use std::error::Error;

use cfc_store::{PruneFilter, PrunePlan, Store};

use crate::settings::Settings;
use crate::size::{self, CacheLimit};

/// The smallest limit where none is configured, in bytes: a few base images and what is built on them.
const DEFAULT_MIN: u64 = 10 << 30;

/// Forgets what was not used for longest until the build cache is within its limit. A failure is none of the build's.
pub fn enforce(settings: &Settings, store: &Store) {
    let Ok(status) = rustix::fs::statvfs(store.root()) else { return };
    let total = status.f_blocks.saturating_mul(status.f_frsize);
    let limit = match settings.file.build_cache_limit {
        Some(limit) => limit.bytes(total),
        // A tenth of the filesystem, but enough to be of use, and never most of it.
        None => CacheLimit::Percent(10).bytes(total).map(|tenth| tenth.max(DEFAULT_MIN).min(total / 5 * 3)),
    };
    let Some(max_used) = limit else { return };
    // Zero means no bound to a plan; a byte is as good as none.
    let plan = PrunePlan { max_used: max_used.max(1), ..PrunePlan::default() };
    match store.pruner().prune(&PruneFilter { all: true, ..PruneFilter::default() }, &plan) {
        Ok(pruned) if pruned.removed.is_empty() => {}
        Ok(pruned) => tracing::info!(freed = size::show(pruned.freed_bytes()), "the build cache was over its limit"),
        Err(error) => {
            let reason = error.source().map(ToString::to_string);
            tracing::warn!(%error, reason, "cannot keep the build cache within its limit");
        }
    }
}
