//! [`LooseEnds`]: what says something else of a manifest than is there. A crash leaves such, and a store to which a request
//! comes a second time, late; names that are used again are the only ones that either can spoil. A collection, which has
//! seen everything, finds them, and ties them up after it has looked once more.

use std::collections::{HashMap, HashSet};

use cfc_oci::{Digest, RepositoryName, Tag};

use crate::StorageError;
use crate::manifest::ManifestFacts;
use crate::registry::Inner;

/// What leads to the manifests of one repository, as a collection has found it.
#[derive(Default)]
pub(crate) struct Leading {
    /// Tags, and where they point.
    pub tags: Vec<(Tag, Digest)>,
    /// Manifests, and tags that are noted to point there.
    pub notes: HashSet<(Digest, Tag)>,
    /// Manifests that are listed as referrers, and of what.
    pub referrers: HashSet<(Digest, Digest)>,
}

/// What is to be looked at once more.
#[derive(Default)]
pub(crate) struct LooseEnds {
    /// Manifests that are not there, and of what they are listed as referrers.
    gone: HashSet<(RepositoryName, Digest, Option<Digest>)>,
    /// Manifests that are there and not listed as referrers, or not noted as where tags point.
    unlisted: HashMap<(RepositoryName, Digest), Vec<Tag>>,
    /// Repositories that the catalog lists without a manifest, or does not list with one.
    repositories: HashSet<RepositoryName>,
}

impl LooseEnds {
    /// Notes what does not fit in a repository with these manifests.
    pub(crate) fn find(
        &mut self,
        name: &RepositoryName,
        manifests: &HashMap<Digest, ManifestFacts>,
        leading: &Leading,
    ) {
        let is_gone = |digest: &Digest| !manifests.contains_key(digest);
        let noted = leading.notes.iter().map(|(digest, _)| (digest, None));
        let listed = leading.referrers.iter().map(|(digest, subject)| (digest, Some(subject)));
        let gone = noted.chain(listed).filter(|(digest, _)| is_gone(digest));
        self.gone.extend(gone.map(|(digest, subject)| (name.clone(), digest.clone(), subject.cloned())));
        for (digest, facts) in manifests {
            if let Some(subject) = &facts.subject
                && !leading.referrers.contains(&(digest.clone(), subject.clone()))
            {
                self.unlisted.entry((name.clone(), digest.clone())).or_default();
            }
        }
        for (tag, digest) in &leading.tags {
            if !is_gone(digest) && !leading.notes.contains(&(digest.clone(), tag.clone())) {
                self.unlisted.entry((name.clone(), digest.clone())).or_default().push(tag.clone());
            }
        }
    }

    /// Notes which repositories the catalog should not list, or should.
    pub(crate) fn compare_catalog(&mut self, listed: &HashSet<RepositoryName>, full: &HashSet<RepositoryName>) {
        self.repositories.extend(listed.symmetric_difference(full).cloned());
    }

    /// Ties up those that are still loose.
    pub(crate) async fn tie_up(self, registry: &Inner) -> Result<(), StorageError> {
        let metadata = &registry.metadata;
        for (name, digest, subject) in self.gone {
            let is_immutable = |tag: &Tag| registry.options.is_immutable(&name, tag);
            metadata.forget_manifest(&name, &digest, subject.as_ref(), &is_immutable).await?;
        }
        for ((name, digest), tags) in self.unlisted {
            metadata.note_again(&name, &digest, &tags).await?;
        }
        for name in self.repositories {
            metadata.relist(&name).await?;
        }
        Ok(())
    }
}
