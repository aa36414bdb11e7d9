//! Referrers: which manifests name another one as their subject.

use cfc_oci::{Descriptor, Digest, RepositoryName};
use futures::{StreamExt, TryStreamExt};

use super::{Metadata, READS_IN_FLIGHT, key, split_manifest, to_json};
use crate::StorageError;
use crate::manifest::ManifestFacts;
use crate::objects::keys;

impl Metadata {
    pub(super) async fn put_referrer(
        &self,
        name: &RepositoryName,
        subject: &Digest,
        referrer: &Descriptor,
    ) -> Result<(), StorageError> {
        self.objects.put(&key::referrer(name, subject, &referrer.digest), to_json(referrer)).await
    }

    pub(super) async fn delete_referrer(
        &self,
        name: &RepositoryName,
        subject: &Digest,
        digest: &Digest,
    ) -> Result<(), StorageError> {
        self.objects.delete(&key::referrer(name, subject, digest)).await.map(|_| ())
    }

    /// Descriptors of the manifests that refer to `subject`, sorted by digest.
    pub(crate) async fn referrers(
        &self,
        name: &RepositoryName,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, StorageError> {
        let keys = keys(&self.objects, &key::referrers(name, subject)).await?;
        let read = |key: String| async move {
            let Some(object) = self.objects.get(&key).await? else { return Ok(None) };
            serde_json::from_slice(&object).map(Some).map_err(|e| StorageError::new("read", &key, e))
        };
        let descriptors = futures::stream::iter(keys).map(read).buffered(READS_IN_FLIGHT);
        let mut descriptors: Vec<Descriptor> = descriptors.try_filter_map(|d| async { Ok(d) }).try_collect().await?;
        descriptors.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok(descriptors)
    }

    /// Lists the manifests that were stored before referrers were listed, once for a bucket (distribution-spec,
    /// "Enabling the Referrers API").
    pub(crate) async fn list_earlier_referrers(&self) -> Result<(), StorageError> {
        if self.objects.exists(key::REFERRERS_LISTED).await? {
            return Ok(());
        }
        for key in keys(&self.objects, key::REPOSITORIES).await? {
            let Some((name, digest)) = key::parse_manifest(&key) else { continue };
            let Some(object) = self.objects.get_kept(&key).await? else { continue };
            let (media_type, bytes) = split_manifest(&key, object)?;
            let Ok(facts) = ManifestFacts::parse(Some(&media_type), &bytes) else { continue };
            if let Some(subject) = &facts.subject {
                self.put_referrer(&name, subject, &facts.referrer(digest, bytes.len() as u64)).await?;
            }
        }
        self.put_marker(key::REFERRERS_LISTED).await
    }
}
