//! Retention: removes tags that nobody wants to keep. What they pointed at goes with garbage collection.

use std::time::{Duration, SystemTime};

use cfc_oci::{Digest, RepositoryName, Tag};
use serde::{Deserialize, Serialize};

use crate::access::matches;
use crate::files::blocking;
use crate::metadata::Found;
use crate::registry::Inner;
use crate::{Registry, StorageError};

/// Which tags stay. The first rule that is about a tag decides; a tag that no rule is about stays. Immutable tags stay.
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
    digest: Digest,
    pushed: SystemTime,
}

impl Registry {
    /// Removes the tags that the registry's rules do not keep, or with `is_dry_run` only names them, in order.
    pub async fn retain(&self, is_dry_run: bool) -> Result<Vec<Retired>, StorageError> {
        self.inner.retain(is_dry_run).await
    }
}

impl Inner {
    pub(crate) async fn retain(self: &std::sync::Arc<Self>, is_dry_run: bool) -> Result<Vec<Retired>, StorageError> {
        let registry = self.clone();
        let candidates = blocking(move || registry.tags_to_retire()).await?;
        let mut retired = Vec::new();
        for candidate in candidates {
            if is_dry_run || self.retire(&candidate).await? {
                retired.push(candidate.into());
            }
        }
        retired.sort();
        Ok(retired)
    }

    /// False when the tag was pushed again meanwhile.
    async fn retire(&self, candidate: &Candidate) -> Result<bool, StorageError> {
        let Candidate { repository, tag, pushed, .. } = candidate;
        if self.metadata.tag_pushed(repository, tag)? != Some(*pushed) {
            return Ok(false);
        }
        tracing::info!(%repository, %tag, digest = %candidate.digest, "a tag is not kept");
        self.metadata.delete_tag(repository, tag).await
    }

    fn tags_to_retire(&self) -> Result<Vec<Candidate>, StorageError> {
        let rules = &self.options.retention;
        let mut by_rule: std::collections::HashMap<(RepositoryName, usize), Vec<Candidate>> = Default::default();
        for found in self.metadata.walk_repositories()? {
            let Found::Tag(repository, tag) = found else { continue };
            let Some(rule) = rules.iter().position(|rule| rule.is_about(&repository, &tag)) else { continue };
            let (digest, pushed) =
                (self.metadata.peek_tag(&repository, &tag)?, self.metadata.tag_pushed(&repository, &tag)?);
            // Deleted meanwhile, if there is none.
            if let (Some(digest), Some(pushed)) = (digest, pushed) {
                let key = (repository.clone(), rule);
                by_rule.entry(key).or_default().push(Candidate { repository, tag, digest, pushed });
            }
        }
        let now = self.metadata.now()?;
        let chosen = by_rule.into_iter().flat_map(|((_, rule), tags)| rules[rule].choose(tags, now));
        Ok(chosen.filter(|candidate| !self.options.is_immutable(&candidate.repository, &candidate.tag)).collect())
    }
}

impl RetentionRule {
    fn is_about(&self, repository: &RepositoryName, tag: &Tag) -> bool {
        let is_one = |patterns: &[String], name: &str| patterns.iter().any(|pattern| matches(pattern, name));
        is_one(&self.repositories, repository.as_str()) && is_one(&self.tags, tag.as_str())
    }

    /// Those of the tags that do not stay.
    fn choose(&self, mut tags: Vec<Candidate>, now: SystemTime) -> Vec<Candidate> {
        tags.sort_by(|a, b| b.pushed.cmp(&a.pushed).then_with(|| b.tag.as_str().cmp(a.tag.as_str())));
        tags.drain(..self.keep_last.unwrap_or(0).min(tags.len()));
        let is_young = |candidate: &Candidate| {
            let age = now.duration_since(candidate.pushed).unwrap_or_default();
            self.keep_younger.is_some_and(|limit| age < limit)
        };
        let is_kept = |candidate: &Candidate| self.keep.iter().any(|pattern| matches(pattern, candidate.tag.as_str()));
        tags.retain(|candidate| !is_young(candidate) && !is_kept(candidate));
        tags
    }
}

impl From<Candidate> for Retired {
    fn from(candidate: Candidate) -> Retired {
        let pushed = candidate.pushed.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let Candidate { repository, tag, digest, .. } = candidate;
        Retired { repository: repository.into(), tag: tag.to_string(), digest: digest.to_string(), pushed }
    }
}
