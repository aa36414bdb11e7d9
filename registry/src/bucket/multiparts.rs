//! Multipart uploads that nobody goes on with, of which the client library cannot tell: their parts are in no list of
//! objects, and cost as much.

use std::error::Error;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};

use super::store::{SILENCE, Store};
use crate::StorageError;

/// For how long our own request may be used.
const LIFETIME: Duration = Duration::from_secs(300);

/// A multipart upload that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Multipart {
    pub key: String,
    /// The store's name of it.
    pub id: String,
    /// When it was begun, to the second.
    begun: String,
}

impl Store {
    /// Those of keys that begin with `prefix`, begun before `cutoff`.
    pub(super) async fn old_multiparts(
        &self,
        prefix: &str,
        cutoff: SystemTime,
    ) -> Result<Vec<Multipart>, StorageError> {
        let cutoff = cutoff.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let cutoff = to_seconds(&cfc_oci::rfc3339(i64::try_from(cutoff).unwrap_or(i64::MAX)));
        let failed = |error| StorageError::new("list parts below", prefix, error);
        let client = reqwest::Client::builder().connect_timeout(SILENCE).read_timeout(SILENCE).build();
        let client = client.map_err(|error| failed(error.into()))?;
        let (mut old, mut after) = (Vec::new(), None);
        loop {
            let page = self.page_of_multiparts(&client, prefix, after.as_ref()).await.map_err(failed)?;
            let (mut found, is_truncated) = parse(&page);
            after = found.last().cloned();
            found.retain(|multipart| multipart.begun <= cutoff);
            for multipart in &mut found {
                multipart.key = multipart.key.strip_prefix(self.prefix()).unwrap_or_default().to_string();
            }
            old.extend(found);
            if !is_truncated || after.is_none() {
                return Ok(old);
            }
        }
    }

    async fn page_of_multiparts(
        &self,
        client: &reqwest::Client,
        prefix: &str,
        after: Option<&Multipart>,
    ) -> Result<String, Box<dyn Error + Send + Sync>> {
        let options = SignedUrlOptions::new()
            .with_query([("uploads", ""), ("prefix", &format!("{}{prefix}", self.prefix()))])
            .with_query(after.iter().flat_map(|last| [("key-marker", &last.key), ("upload-id-marker", &last.id)]));
        let url = self.s3().signed_url_opts(http::Method::GET, &Path::default(), LIFETIME, &options).await?;
        Ok(client.get(url.as_str()).send().await?.error_for_status()?.text().await?)
    }
}

/// What an answer to ListMultipartUploads names, and whether there is more.
fn parse(text: &str) -> (Vec<Multipart>, bool) {
    let uploads = text.split("<Upload>").skip(1).filter_map(|upload| {
        let text = |name| element(upload, name).map(unescape);
        Some(Multipart { key: text("Key")?, id: text("UploadId")?, begun: to_seconds(&text("Initiated")?) })
    });
    (uploads.collect(), element(text, "IsTruncated") == Some("true"))
}

fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

fn unescape(text: &str) -> String {
    let quotes = text.replace("&quot;", "\"").replace("&apos;", "'");
    quotes.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

/// A time as S3 and we write it, without what is less than a second, so that it can be compared as text.
fn to_seconds(time: &str) -> String {
    time.chars().take("2026-01-01T00:00:00".len()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_the_store_is_read() {
        let upload = "<Upload><Key>p/a&amp;b</Key><UploadId>2~x</UploadId><Owner><ID>1</ID></Owner>\
                      <Initiated>2026-03-01T02:03:04.567Z</Initiated></Upload>";
        let text =
            format!("<ListMultipartUploadsResult><IsTruncated>true</IsTruncated>{upload}</ListMultipartUploadsResult>");
        let begun = "2026-03-01T02:03:04".to_string();
        assert_eq!(parse(&text), (vec![Multipart { key: "p/a&b".into(), id: "2~x".into(), begun }], true));
        assert_eq!(parse("<ListMultipartUploadsResult/>"), (vec![], false));
    }
}
