//! Garbage collection: removes what nothing refers to, while clients push and pull.
//!
//! It takes no lock. What it reads may be out of date by the time it acts, so each removal decides anew
//! (`files::remove_if_stale`): a link goes only if nobody looked for the blob in that repository for a while, a blob
//! only if no repository holds it and no request that is under way relies on it. Whoever relies on something touches it,
//! or holds it, before looking whether it is there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cfc_oci::{Digest, RepositoryName, Tag};
use serde::{Deserialize, Serialize};

use crate::audit::Entry;
use crate::error::Chain;
use crate::files::blocking;
use crate::leads::Leads;
use crate::loose::{Leading, LooseEnds};
use crate::manifest::ManifestFacts;
use crate::metadata::Found;
use crate::registry::Inner;
use crate::removed::{Listing, Notes};
use crate::visit::Kind;
use crate::{Registry, StorageError};

/// What garbage collection may remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// A blob stays in a repository for this long after it was pushed, mounted or looked for, though no manifest names
    /// it. A client must push its manifest within seven eighths of it.
    pub grace: Duration,
    /// Remove manifests that no tag, index or subject leads to and that nobody asked for in this long; `None` keeps
    /// them. A manifest that somebody asked for keeps what it leads to, as one with a tag does.
    pub untagged: Option<Duration>,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules { grace: Duration::from_secs(24 * 60 * 60), untagged: None }
    }
}

impl Rules {
    /// What somebody relies on and was not touched for this long is touched: whoever finds something and relies on it
    /// can do so for seven eighths at least of the time after which it may go.
    pub fn refresh(&self) -> Duration {
        self.untagged.map_or(self.grace, |age| age.min(self.grace)) / 8
    }
}

/// What was removed, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Manifests without a tag.
    pub manifests: u64,
    /// Blobs taken out of a repository, each counted in each repository.
    pub unlinked: u64,
    /// Blobs that no repository holds any more.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Uploads that nobody went on with.
    pub uploads: u64,
}

impl Registry {
    /// Collects garbage, or with `is_dry_run` only tells what that would remove. Waits for a collection that is under
    /// way.
    pub async fn collect(&self, rules: Rules, is_dry_run: bool) -> Result<Collected, StorageError> {
        self.inner.clone().collect(rules, is_dry_run).await
    }

    /// As [`collect`](Self::collect), and says what each thing is that goes.
    pub async fn collect_and_list(&self, rules: Rules, is_dry_run: bool) -> Result<Listing, StorageError> {
        self.inner.clone().collect_noting(rules, is_dry_run, Some(Notes::default())).await
    }

    /// Collects garbage for nobody who asked by HTTP, and writes that down in the audit log.
    pub async fn collect_by_itself(&self, rules: Rules, is_listed: bool) -> Result<Listing, StorageError> {
        let began = Instant::now();
        let collected = self.inner.clone().collect_noting(rules, false, is_listed.then(Notes::default)).await;
        if let Some(log) = &self.inner.options.audit {
            let mut entry = Entry::default();
            let status = if collected.is_ok() { 200 } else { 500 };
            entry.end("collect", Kind::Collection, status, began.elapsed());
            log.write(&entry);
        }
        collected
    }

    /// Collects garbage as the registry's options say, for as long as this is awaited.
    pub async fn collect_regularly(&self) {
        let options = &self.inner.options;
        if !options.retention.is_empty() && options.collection.untagged.is_none() {
            tracing::warn!("retention removes tags, but what they pointed at stays: `gc_untagged` is not set");
        }
        let Some(every) = options.collect_every else { return std::future::pending().await };
        loop {
            tokio::time::sleep(every).await;
            match self.retain(false).await {
                Ok(retired) if retired.is_empty() => {}
                // A warning, since nobody has asked for it and they do not come back.
                Ok(retired) => tracing::warn!(tags = retired.len(), "retention has removed tags"),
                Err(error) => tracing::error!(error = %Chain(&error), "cannot remove tags that are not kept"),
            }
            match self.collect_by_itself(self.inner.options.collection, false).await {
                Ok(Listing { counts, .. }) => tracing::info!(collected = ?counts, "garbage collected"),
                Err(error) => tracing::error!(%error, cause = ?error.source, "cannot collect garbage"),
            }
        }
    }
}

impl Inner {
    pub(crate) async fn collect(self: Arc<Self>, rules: Rules, is_dry_run: bool) -> Result<Collected, StorageError> {
        Ok(self.collect_noting(rules, is_dry_run, None).await?.counts)
    }

    /// Collects, and lists what goes where there are notes for it.
    pub(crate) async fn collect_noting(
        self: Arc<Self>,
        rules: Rules,
        is_dry_run: bool,
        notes: Option<Notes>,
    ) -> Result<Listing, StorageError> {
        let _alone = self.collecting.lock().await;
        self.metadata.require_known_format().await?;
        if !is_dry_run {
            // First of all: a manifest that comes back needs its blobs.
            let is_immutable = |name: &RepositoryName, tag: &Tag| self.options.is_immutable(name, tag);
            self.metadata.end_deletions(rules.grace, &is_immutable).await?;
        }
        let registry = self.clone();
        let collected = blocking(move || Collection::begin(&registry, rules, is_dry_run, notes)?.finish()).await;
        if !is_dry_run {
            let done = collected.as_ref().ok().filter(|done| done.failure.is_none());
            self.metrics.collection_ended(done.map(|done| &done.counts));
        }
        let mut collected = collected?;
        for (name, digest, subject) in collected.forgotten.drain(..) {
            let is_immutable = |tag: &Tag| self.options.is_immutable(&name, tag);
            self.metadata.forget_manifest(&name, &digest, subject.as_ref(), &is_immutable).await?;
        }
        if !is_dry_run {
            collected.loose_ends.tie_up(&self).await?;
            self.take_stock_again().await?;
        }
        let Done { counts, notes, .. } = collected;
        collected.failure.map_or_else(|| Ok(Listing { counts, removed: notes.map(Notes::finish) }), Err)
    }
}

/// What a collection has done, and which removed manifests have left notes elsewhere.
struct Done {
    counts: Collected,
    forgotten: Vec<(RepositoryName, Digest, Option<Digest>)>,
    loose_ends: LooseEnds,
    /// What was removed, thing by thing, where that is asked for.
    notes: Option<Notes>,
    /// What went wrong in the end, when all else had been done.
    failure: Option<StorageError>,
}

/// One collection: first it learns what refers to what, then it removes the rest.
struct Collection<'a> {
    registry: &'a Inner,
    rules: Rules,
    is_dry_run: bool,
    now: SystemTime,
    repositories: HashMap<RepositoryName, Contents>,
    done: Done,
}

/// What is in a repository.
#[derive(Default)]
struct Contents {
    manifests: HashMap<Digest, ManifestFacts>,
    leading: Leading,
    /// A manifest or a tag could not be read; what it refers to is not known.
    is_unclear: bool,
}

impl<'a> Collection<'a> {
    fn begin(
        registry: &'a Inner,
        rules: Rules,
        is_dry_run: bool,
        notes: Option<Notes>,
    ) -> Result<Collection<'a>, StorageError> {
        let done = Done {
            counts: Collected::default(),
            forgotten: Vec::new(),
            loose_ends: LooseEnds::default(),
            notes,
            failure: None,
        };
        let now = registry.metadata.now()?;
        let mut collection = Collection { registry, rules, is_dry_run, now, repositories: HashMap::new(), done };
        for found in registry.metadata.walk_repositories()? {
            match found {
                Found::Manifest(name, digest) => collection.note_manifest(name, digest),
                Found::Tag(name, tag) => collection.note_tag(name, &tag),
                Found::Note(name, digest, tag) => drop(collection.leading(name).notes.insert((digest, tag))),
                Found::Referrer(name, digest, subject) => {
                    collection.leading(name).referrers.insert((digest, subject));
                }
            }
        }
        collection.find_loose_ends()?;
        Ok(collection)
    }

    fn leading(&mut self, name: RepositoryName) -> &mut Leading {
        &mut self.repositories.entry(name).or_default().leading
    }

    fn find_loose_ends(&mut self) -> Result<(), StorageError> {
        let loose_ends = &mut self.done.loose_ends;
        let listed = self.registry.metadata.walk_catalog()?;
        let mut full = HashSet::new();
        for (name, contents) in &self.repositories {
            // What cannot be read is there.
            if !contents.manifests.is_empty() || (contents.is_unclear && listed.contains(name)) {
                full.insert(name.clone());
            }
            if !contents.is_unclear {
                loose_ends.find(name, &contents.manifests, &contents.leading);
            }
        }
        loose_ends.compare_catalog(&listed, &full);
        Ok(())
    }

    fn note_manifest(&mut self, name: RepositoryName, digest: Digest) {
        let parsed = match self.registry.metadata.peek_manifest(&name, &digest) {
            Ok(None) => match self.registry.metadata.manifest_touched(&name, &digest) {
                Ok(None) => return,
                Ok(Some(_)) => Err("somebody is about to put it".to_string()),
                Err(error) => Err(Chain(&error).to_string()),
            },
            Ok(Some((media_type, bytes))) => {
                ManifestFacts::parse(Some(&media_type), &bytes).map_err(|error| error.to_string())
            }
            Err(error) => Err(Chain(&error).to_string()),
        };
        let contents = self.repositories.entry(name.clone()).or_default();
        match parsed {
            Ok(facts) => drop(contents.manifests.insert(digest, facts)),
            Err(error) => {
                tracing::error!(repository = %name, %digest, error, "a manifest cannot be read, nothing of its repository is collected");
                contents.is_unclear = true;
            }
        }
    }

    fn note_tag(&mut self, name: RepositoryName, tag: &Tag) {
        let target = self.registry.metadata.peek_tag(&name, tag);
        let contents = self.repositories.entry(name.clone()).or_default();
        match target {
            Ok(target) => contents.leading.tags.extend(target.map(|seen| (tag.clone(), seen.manifest))),
            Err(error) => {
                tracing::error!(repository = %name, %tag, error = %Chain(&error), "a tag cannot be read, nothing of its repository is collected");
                contents.is_unclear = true;
            }
        }
    }

    fn finish(mut self) -> Result<Done, StorageError> {
        if let Some(age) = self.rules.untagged {
            self.remove_untagged(age)?;
        }
        let linked = self.unlink()?;
        self.remove_blobs(&linked)?;
        if !self.is_dry_run {
            match self.registry.uploads.expire(self.registry.options.upload_expiry) {
                Ok(uploads) => self.done.counts.uploads = uploads,
                Err(error) => self.done.failure = Some(error),
            }
        }
        Ok(self.done)
    }

    fn remove_untagged(&mut self, age: Duration) -> Result<(), StorageError> {
        let cutoff = self.now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let metadata = &self.registry.metadata;
        for (name, contents) in self.repositories.iter_mut().filter(|(_, contents)| !contents.is_unclear) {
            let is_stale = |digest: &Digest| {
                Ok::<_, StorageError>(metadata.manifest_touched(name, digest)?.is_some_and(|touched| touched <= cutoff))
            };
            let leads = Leads::of(&contents.manifests);
            let mut kept = HashSet::new();
            contents.leading.tags.iter().for_each(|(_, digest)| leads.follow(digest, &mut kept));
            // Somebody asks for an index by its digest, and may go on with any of its entries.
            for digest in contents.manifests.keys() {
                if !kept.contains(digest) && !is_stale(digest)? {
                    leads.follow(digest, &mut kept);
                }
            }
            // The index before its entries: one that is asked for right now keeps them.
            for digest in leads.in_order(contents.manifests.keys()) {
                if kept.contains(&digest) {
                    continue;
                }
                let bytes = match &self.done.notes {
                    Some(_) => metadata.peek_manifest(name, &digest)?.map_or(0, |(_, bytes)| bytes.len() as u64),
                    None => 0,
                };
                let removed = if self.is_dry_run {
                    is_stale(&digest)?
                } else {
                    let is_held = || self.registry.holds.is_held(&digest);
                    metadata.remove_manifest_if_stale(name, &digest, cutoff, is_held)?
                };
                if !removed {
                    leads.follow(&digest, &mut kept);
                    continue;
                }
                self.done.counts.manifests += 1;
                if let Some(notes) = &mut self.done.notes {
                    notes.manifest(name, &digest, bytes);
                }
                let facts = contents.manifests.remove(&digest);
                if !self.is_dry_run {
                    self.done.forgotten.push((name.clone(), digest, facts.and_then(|facts| facts.subject)));
                }
            }
        }
        Ok(())
    }

    /// Takes blobs out of repositories that do not need them, and returns those that are left in some.
    fn unlink(&mut self) -> Result<HashSet<Digest>, StorageError> {
        let cutoff = self.now.checked_sub(self.rules.grace).unwrap_or(SystemTime::UNIX_EPOCH);
        let needed: HashMap<&RepositoryName, HashSet<&Digest>> =
            self.repositories.iter().map(|(name, contents)| (name, contents.named())).collect();
        let metadata = &self.registry.metadata;
        let mut linked = HashSet::new();
        for (name, digest, touched) in metadata.walk_links()? {
            let is_unclear = self.repositories.get(&name).is_some_and(|contents| contents.is_unclear);
            let is_needed = is_unclear || needed.get(&name).is_some_and(|needed| needed.contains(&digest));
            let unlinked = match is_needed {
                true => false,
                false if touched > cutoff => false,
                false if self.is_dry_run => true,
                false => metadata.unlink_if_stale(&name, &digest, cutoff, || self.registry.holds.is_held(&digest))?,
            };
            if unlinked {
                self.done.counts.unlinked += 1;
                if let Some(notes) = &mut self.done.notes {
                    notes.link(&name, &digest);
                }
            } else {
                linked.insert(digest);
            }
        }
        Ok(linked)
    }

    /// Removes blobs that no repository holds.
    fn remove_blobs(&mut self, linked: &HashSet<Digest>) -> Result<(), StorageError> {
        let registry = self.registry;
        let cutoff = self.now.checked_sub(self.rules.grace).unwrap_or(SystemTime::UNIX_EPOCH);
        for (digest, size) in registry.blobs.list()? {
            if linked.contains(&digest) {
                self.note_blob(&digest, size, false);
                continue;
            }
            let is_wanted = || Ok(registry.holds.is_held(&digest) || registry.metadata.is_linked(&digest)?);
            let removed = match self.is_dry_run {
                true => !registry.holds.is_held(&digest),
                false => !is_wanted()? && registry.blobs.remove_unless(&digest, cutoff, &is_wanted)?,
            };
            if removed {
                self.done.counts.blobs += 1;
                self.done.counts.bytes += size;
            }
            self.note_blob(&digest, size, removed);
        }
        Ok(())
    }

    fn note_blob(&mut self, digest: &Digest, size: u64, is_removed: bool) {
        if let Some(notes) = &mut self.done.notes {
            notes.blob(digest, size, is_removed);
        }
    }
}

impl Contents {
    /// Everything that a manifest names. An index may name blobs as well.
    fn named(&self) -> HashSet<&Digest> {
        self.manifests
            .values()
            .flat_map(|facts| facts.blobs.iter().chain(&facts.optional).chain(&facts.manifests))
            .collect()
    }
}
