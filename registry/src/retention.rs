//! Retention: removes tags that nobody wants to keep. What they pointed at goes with garbage collection.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cfc_oci::{Digest, RepositoryName, Tag};
use serde::{Deserialize, Serialize};

use crate::access::matches;
use crate::audit::Entry;
use crate::files::{blocking, blocking_each};
use crate::metadata::{Found, SeenTag};
use crate::registry::Inner;
use crate::visit::Kind;
use crate::webhook::{Cause, Target};
use crate::{HookEvent, Registry, StorageError};

/// How long tags wait, all together, for receivers of webhooks who have heard of less than has gone; what finds them busy
/// after that they do not hear of.
const RECEIVERS_PATIENCE: Duration = Duration::from_secs(30);

/// Which tags stay. The first rule that is about a tag decides; a tag that no rule is about stays. Immutable tags stay.
/// So do, whatever their number and age, tags that are named after a manifest which is there, `sha256-<hex>` with or
/// without an ending: signatures, attestations and lists of referrers go after what they are about.
#[derive(Clone, Debug)]
pub struct RetentionRule {
    /// Patterns of the repositories it is about.
    pub repositories: Vec<String>,
    /// Patterns of the tags it is about.
    pub tags: Vec<String>,
    /// Of these, so many of each repository stay that were pushed last.
    pub keep_last: Option<usize>,
    /// Tags that were pushed within this time stay.
    pub keep_younger: Option<Duration>,
    /// Patterns of tags that stay in any case.
    pub keep: Vec<String>,
}

/// A tag that was removed, or would be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Retired {
    /// Its repository.
    pub repository: String,
    /// Its name.
    pub tag: String,
    /// What it pointed at.
    pub digest: String,
    /// When it was pushed, in seconds since 1970.
    pub pushed: u64,
}

/// A tag that a rule is about.
struct Candidate {
    repository: RepositoryName,
    tag: Tag,
    seen: SeenTag,
    /// It is named after a manifest that is not there any more.
    is_orphan: bool,
}

impl Registry {
    /// Removes the tags that the registry's rules do not keep, or with `is_dry_run` only names them, in order.
    pub async fn retain(&self, is_dry_run: bool) -> Result<Vec<Retired>, StorageError> {
        self.inner.retain(is_dry_run).await
    }
}

impl Inner {
    pub(crate) async fn retain(self: &Arc<Self>, is_dry_run: bool) -> Result<Vec<Retired>, StorageError> {
        self.metadata.require_known_format().await?;
        let candidates = self.tags_to_retire().await?;
        let mut retired = Vec::new();
        let until = tokio::time::Instant::now() + RECEIVERS_PATIENCE;
        for candidate in candidates {
            if !is_dry_run {
                self.hooks.wait_for_room(until).await;
            }
            if is_dry_run || self.retire(&candidate).await? {
                retired.push(candidate.into());
            }
        }
        retired.sort();
        Ok(retired)
    }

    /// Removes a tag, and says so to whoever wants to know of deletions. False when the tag was pushed again meanwhile.
    async fn retire(&self, candidate: &Candidate) -> Result<bool, StorageError> {
        let Candidate { repository, tag, seen, .. } = candidate;
        let began = Instant::now();
        let is_retired = self.metadata.delete_tag_as_seen(repository, tag, seen).await?;
        if is_retired {
            tracing::info!(%repository, %tag, digest = %seen.manifest, "a tag is not kept");
            self.note_retired(candidate, began.elapsed());
        }
        Ok(is_retired)
    }

    fn note_retired(&self, Candidate { repository, tag, seen, .. }: &Candidate, took: Duration) {
        if let Some(log) = &self.options.audit {
            let mut entry = Entry {
                repository: Some(repository.to_string()),
                reference: Some(tag.to_string()),
                digest: Some(seen.manifest.to_string()),
                ..Entry::default()
            };
            entry.end("retain", Kind::Manifest, 202, took);
            log.write(&entry);
        }
        let target = Target { repository: repository.to_string(), ..Target::default() };
        let url = self.options.url.as_deref();
        self.hooks.tell(HookEvent::Delete, &Cause::Retention { url }, vec![target.tagged(tag)]);
    }

    async fn tags_to_retire(self: &Arc<Self>) -> Result<Vec<Candidate>, StorageError> {
        let registry = self.clone();
        let (tags, now) = blocking(move || Ok((registry.tags_under_rules()?, registry.metadata.now()?))).await?;
        let registry = self.clone();
        let look = move |(rule, repository, tag)| Ok((rule, registry.candidate(repository, tag)?));
        let mut by_rule: HashMap<(RepositoryName, usize), Vec<Candidate>> = HashMap::new();
        for (rule, candidate) in blocking_each(tags, look).await? {
            if let Some(candidate) = candidate {
                by_rule.entry((candidate.repository.clone(), rule)).or_default().push(candidate);
            }
        }
        let rules = &self.options.retention;
        let chosen = by_rule.into_iter().flat_map(|((_, rule), tags)| rules[rule].choose(tags, now));
        Ok(chosen.filter(|candidate| !self.options.is_immutable(&candidate.repository, &candidate.tag)).collect())
    }

    /// Tags that rules are about, with the number of the rule.
    fn tags_under_rules(&self) -> Result<Vec<(usize, RepositoryName, Tag)>, StorageError> {
        let rules = &self.options.retention;
        let mut tags = Vec::new();
        for found in self.metadata.walk_repositories()? {
            let Found::Tag(repository, tag) = found else { continue };
            if let Some(rule) = rules.iter().position(|rule| rule.is_about(&repository, &tag)) {
                tags.push((rule, repository, tag));
            }
        }
        Ok(tags)
    }

    /// `None` for a tag that was deleted meanwhile, and for one that goes with what it is about.
    fn candidate(&self, repository: RepositoryName, tag: Tag) -> Result<Option<Candidate>, StorageError> {
        let metadata = &self.metadata;
        let subject = subject(&tag);
        if let Some(subject) = &subject
            && metadata.manifest_touched(&repository, subject)?.is_some()
        {
            return Ok(None);
        }
        let Some(seen) = metadata.peek_tag(&repository, &tag)? else { return Ok(None) };
        Ok(Some(Candidate { repository, tag, seen, is_orphan: subject.is_some() }))
    }
}

/// The manifest after which a tag is named, as signatures are (cosign) and lists of referrers (distribution-spec,
/// "Referrers Tag Schema").
fn subject(tag: &Tag) -> Option<Digest> {
    let (algorithm, rest) = tag.as_str().split_once('-')?;
    let hex = rest.split_once('.').map_or(rest, |(hex, _)| hex);
    format!("{algorithm}:{hex}").parse().ok()
}

impl RetentionRule {
    fn is_about(&self, repository: &RepositoryName, tag: &Tag) -> bool {
        let is_one = |patterns: &[String], name: &str| patterns.iter().any(|pattern| matches(pattern, name));
        is_one(&self.repositories, repository.as_str()) && is_one(&self.tags, tag.as_str())
    }

    /// Those of the tags that do not stay.
    fn choose(&self, tags: Vec<Candidate>, now: SystemTime) -> Vec<Candidate> {
        let (orphans, mut tags): (Vec<_>, Vec<_>) = tags.into_iter().partition(|candidate| candidate.is_orphan);
        tags.sort_by(|a, b| b.seen.pushed().cmp(&a.seen.pushed()).then_with(|| b.tag.as_str().cmp(a.tag.as_str())));
        tags.drain(..self.keep_last.unwrap_or(0).min(tags.len()));
        tags.extend(orphans);
        let is_young = |candidate: &Candidate| {
            let age = now.duration_since(candidate.seen.pushed()).unwrap_or_default();
            self.keep_younger.is_some_and(|limit| age < limit)
        };
        let is_kept = |candidate: &Candidate| self.keep.iter().any(|pattern| matches(pattern, candidate.tag.as_str()));
        tags.retain(|candidate| !is_young(candidate) && !is_kept(candidate));
        tags
    }
}

impl From<Candidate> for Retired {
    fn from(candidate: Candidate) -> Retired {
        let pushed = candidate.seen.pushed().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let Candidate { repository, tag, seen, .. } = candidate;
        Retired { repository: repository.into(), tag: tag.to_string(), digest: seen.manifest.to_string(), pushed }
    }
}
