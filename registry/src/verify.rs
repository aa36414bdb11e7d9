//! Verification: reads everything again and says what is not as it should be.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use cfc_oci::{Digest, Hasher, RepositoryName, Tag};

use crate::files::blocking;
use crate::manifest::ManifestFacts;
use crate::metadata::Found;
use crate::{Registry, StorageError};

/// What is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A blob's bytes are others than its name says.
    CorruptBlob {
        /// The name.
        expected: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// A manifest's bytes are others than its name says, or no manifest.
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
#[derive(Debug, Default)]
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
        let work = || -> Result<(), StorageError> {
            loop {
                let next = pending.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let Some((expected, _)) = next else { return Ok(()) };
                let Some(found) = self.inner.blobs.hash(&expected)? else { continue };
                if found != expected {
                    if quarantine {
                        self.inner.blobs.quarantine(&expected)?;
                    }
                    let finding = Finding::CorruptBlob { expected, found };
                    verified.lock().unwrap_or_else(PoisonError::into_inner).findings.push(finding);
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        Ok(verified.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn verify_repositories(&self, quarantine: bool, verified: &mut Verified) -> Result<(), StorageError> {
        let found = self.inner.metadata.walk_repositories()?;
        for found in &found {
            if let Found::Manifest(name, digest) = found {
                verified.manifests += 1;
                self.verify_manifest(name, digest, quarantine, verified)?;
            }
        }
        for found in found {
            let Found::Tag(repository, tag) = found else { continue };
            let Some(manifest) = self.inner.metadata.peek_tag(&repository, &tag)? else { continue };
            let is_there = self.inner.metadata.manifest_touched(&repository, &manifest)?.is_some();
            // A deletion takes the tags first, so a tag that is still there really leads nowhere.
            if !is_there && self.inner.metadata.peek_tag(&repository, &tag)?.as_ref() == Some(&manifest) {
                verified.findings.push(Finding::DanglingTag { repository, tag, manifest });
            }
        }
        Ok(())
    }

    fn verify_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        quarantine: bool,
        verified: &mut Verified,
    ) -> Result<(), StorageError> {
        let metadata = &self.inner.metadata;
        let Some((media_type, bytes)) = metadata.peek_manifest(repository, digest)? else { return Ok(()) };
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        let hashed = hasher.finish();
        let facts = match ManifestFacts::parse(Some(&media_type), &bytes) {
            _ if hashed != *digest => Err(format!("its bytes hash to {hashed}")),
            Ok(facts) => Ok(facts),
            Err(error) => Err(error.to_string()),
        };
        let facts = match facts {
            Ok(facts) => facts,
            Err(reason) => {
                if quarantine {
                    metadata.quarantine_manifest(repository, digest)?;
                }
                let (repository, digest) = (repository.clone(), digest.clone());
                verified.findings.push(Finding::CorruptManifest { repository, digest, reason });
                return Ok(());
            }
        };
        for content in facts.blobs.iter().chain(&facts.manifests) {
            let is_blob = metadata.has_link(repository, content)? && self.inner.blobs.local_path(content).is_some();
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
