//! Verification: reads everything again and says what is not as it should be.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use cfc_oci::{Digest, Hasher, RepositoryName, Tag};
use serde::Serialize;

use crate::error::Chain;
use crate::files::blocking;
use crate::manifest::ManifestFacts;
use crate::metadata::Found;
use crate::{Registry, StorageError};

/// What is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Finding {
    /// A blob's bytes are others than its name says.
    CorruptBlob {
        /// The name.
        expected: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// A blob cannot be read.
    UnreadableBlob {
        /// Its name.
        digest: Digest,
        /// What the system says.
        reason: String,
    },
    /// The bytes of a blob are gone that should be there.
    LostBlob {
        /// Its name.
        digest: Digest,
    },
    /// A manifest's bytes are others than its name says, or no manifest, or cannot be read.
    CorruptManifest {
        /// Where.
        repository: RepositoryName,
        /// The name.
        digest: Digest,
        /// What is wrong.
        reason: String,
    },
    /// A manifest names content that its repository does not have.
    Missing {
        /// Where.
        repository: RepositoryName,
        /// The manifest.
        manifest: Digest,
        /// What it names.
        content: Digest,
    },
    /// A tag cannot be read, or does not say what it points at.
    CorruptTag {
        /// Where.
        repository: RepositoryName,
        /// The tag.
        tag: Tag,
        /// What is wrong.
        reason: String,
    },
    /// A tag points at a manifest that is not there.
    DanglingTag {
        /// Where.
        repository: RepositoryName,
        /// The tag.
        tag: Tag,
        /// What it points at.
        manifest: Digest,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::CorruptBlob { expected, found } => {
                write!(f, "blob: its name says {expected}, its bytes hash to {found}")
            }
            Finding::UnreadableBlob { digest, reason } => write!(f, "blob {digest}: {reason}"),
            Finding::LostBlob { digest } => write!(f, "blob {digest}: its bytes are gone"),
            Finding::CorruptTag { repository, tag, reason } => write!(f, "tag `{repository}:{tag}`: {reason}"),
            Finding::CorruptManifest { repository, digest, reason } => {
                write!(f, "manifest `{repository}@{digest}`: {reason}")
            }
            Finding::Missing { repository, manifest, content } => {
                write!(f, "manifest `{repository}@{manifest}`: its repository lacks {content}")
            }
            Finding::DanglingTag { repository, tag, manifest } => {
                write!(f, "tag `{repository}:{tag}`: its repository lacks the manifest {manifest}")
            }
        }
    }
}

/// What a verification has read, and what it found.
#[derive(Debug, Default, Serialize)]
pub struct Verified {
    /// Blobs read.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Manifests read.
    pub manifests: u64,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
}

impl Registry {
    /// Hashes every blob and manifest again, and checks that what they name is there. With `quarantine`, content whose
    /// bytes are others than its name says is taken away, so that it can be pushed again.
    pub async fn verify(&self, quarantine: bool) -> Result<Verified, StorageError> {
        let registry = self.clone();
        blocking(move || {
            let mut verified = registry.verify_blobs(quarantine)?;
            registry.verify_repositories(quarantine, &mut verified)?;
            Ok(verified)
        })
        .await
    }

    fn verify_blobs(&self, quarantine: bool) -> Result<Verified, StorageError> {
        let blobs = self.inner.blobs.list()?;
        let verified = Verified {
            blobs: blobs.len() as u64,
            bytes: blobs.iter().map(|(_, size)| size).sum(),
            ..Verified::default()
        };
        let (pending, verified) = (Mutex::new(blobs), Mutex::new(verified));
        let work = || {
            loop {
                let next = pending.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let Some((digest, _)) = next else { return };
                let found = self.verify_blob(digest, quarantine);
                verified.lock().unwrap_or_else(PoisonError::into_inner).findings.extend(found);
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        Ok(verified.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn verify_blob(&self, expected: Digest, quarantine: bool) -> Vec<Finding> {
        let unreadable =
            |error| Finding::UnreadableBlob { digest: expected.clone(), reason: Chain(&error).to_string() };
        let blobs = &self.inner.blobs;
        let finding = match blobs.hash(&expected) {
            Ok(Some(found)) if found != expected => Finding::CorruptBlob { expected: expected.clone(), found },
            Ok(Some(_)) => return Vec::new(),
            Ok(None) => match blobs.has(&expected) {
                Ok(true) => Finding::LostBlob { digest: expected.clone() },
                // Removed meanwhile.
                Ok(false) => return Vec::new(),
                Err(error) => return vec![unreadable(error)],
            },
            Err(error) => return vec![unreadable(error)],
        };
        let quarantined = if quarantine { blobs.quarantine(&expected) } else { Ok(()) };
        [finding].into_iter().chain(quarantined.err().map(unreadable)).collect()
    }

    fn verify_repositories(&self, quarantine: bool, verified: &mut Verified) -> Result<(), StorageError> {
        let found = self.inner.metadata.walk_repositories()?;
        for found in &found {
            let Found::Manifest(repository, digest) = found else { continue };
            verified.manifests += 1;
            if let Err(error) = self.verify_manifest(repository, digest, quarantine, verified) {
                let (repository, digest) = (repository.clone(), digest.clone());
                let reason = Chain(&error).to_string();
                verified.findings.push(Finding::CorruptManifest { repository, digest, reason });
            }
        }
        for found in found {
            let Found::Tag(repository, tag) = found else { continue };
            match self.dangles(&repository, &tag) {
                Ok(None) => {}
                Ok(Some(manifest)) => verified.findings.push(Finding::DanglingTag { repository, tag, manifest }),
                Err(error) => {
                    let reason = Chain(&error).to_string();
                    verified.findings.push(Finding::CorruptTag { repository, tag, reason });
                }
            }
        }
        Ok(())
    }

    /// The manifest that a tag points at and that is not there.
    fn dangles(&self, repository: &RepositoryName, tag: &Tag) -> Result<Option<Digest>, StorageError> {
        let metadata = &self.inner.metadata;
        let Some(seen) = metadata.peek_tag(repository, tag)? else { return Ok(None) };
        let manifest = seen.manifest;
        let is_there = metadata.manifest_touched(repository, &manifest)?.is_some();
        // A deletion takes the manifest first; who dies then leaves the tags to a collection.
        let is_dangling = !is_there
            && !metadata.is_being_deleted(repository, &manifest)?
            && metadata.peek_tag(repository, tag)?.is_some_and(|seen| seen.manifest == manifest)
            && metadata.manifest_touched(repository, &manifest)?.is_none();
        Ok(is_dangling.then_some(manifest))
    }

    fn verify_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        quarantine: bool,
        verified: &mut Verified,
    ) -> Result<(), StorageError> {
        let metadata = &self.inner.metadata;
        let facts = match metadata.peek_manifest(repository, digest) {
            Ok(None) => return Ok(()),
            Ok(Some((media_type, bytes))) => understand(digest, &media_type, &bytes),
            Err(error) if error.source.is::<std::io::Error>() => return Err(error),
            // It was read, and is none.
            Err(error) => Err(Chain(&error).to_string()),
        };
        let facts = match facts {
            Ok(facts) => facts,
            Err(reason) => {
                let finding =
                    Finding::CorruptManifest { repository: repository.clone(), digest: digest.clone(), reason };
                verified.findings.push(finding);
                return if quarantine { metadata.quarantine_manifest(repository, digest) } else { Ok(()) };
            }
        };
        for content in facts.blobs.iter().chain(&facts.manifests) {
            let is_blob = metadata.has_link(repository, content)? && self.inner.blobs.has(content)?;
            let is_there = is_blob || metadata.manifest_touched(repository, content)?.is_some();
            // Deleted with everything it names while we were looking.
            let is_gone = || Ok::<_, StorageError>(metadata.manifest_touched(repository, digest)?.is_none());
            if !is_there && !is_gone()? {
                let (repository, manifest) = (repository.clone(), digest.clone());
                verified.findings.push(Finding::Missing { repository, manifest, content: content.clone() });
            }
        }
        Ok(())
    }
}

/// What a manifest says, or why it is not what its name says.
fn understand(digest: &Digest, media_type: &str, bytes: &[u8]) -> Result<ManifestFacts, String> {
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(bytes);
    let hashed = hasher.finish();
    match hashed == *digest {
        true => ManifestFacts::parse(Some(media_type), bytes).map_err(|error| error.to_string()),
        false => Err(format!("its bytes hash to {hashed}")),
    }
}
