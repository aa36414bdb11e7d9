//! Multipart uploads that nobody goes on with, of which the client library cannot tell: their parts are in no list of
//! objects, and cost as much.

use std::error::Error;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};
use serde::Deserialize;

use super::store::{SILENCE, Store};
use crate::StorageError;

/// What a time looks like, to the second.
const TIME: &str = "0000-00-00T00:00:00";

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
            let (mut found, is_truncated) = parse(&page).map_err(|error| failed(error.into()))?;
            after = found.last().cloned();
            found.retain(|multipart| multipart.begun <= cutoff);
            for multipart in &mut found {
                multipart.key = multipart.key.strip_prefix(self.prefix()).unwrap_or_default().to_string();
            }
            old.extend(found);
            if !is_truncated {
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

/// The answer to ListMultipartUploads, as far as it matters.
#[derive(Deserialize)]
enum Answer {
    ListMultipartUploadsResult(Listing),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listing {
    is_truncated: bool,
    #[serde(default)]
    upload: Vec<Upload>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    upload_id: String,
    initiated: String,
}

/// What an answer names, and whether there is more. Fails when it is not whole, or not such an answer.
fn parse(text: &str) -> Result<(Vec<Multipart>, bool), String> {
    let answer = quick_xml::de::from_str(text).map_err(|error| format!("the answer cannot be read: {error}"))?;
    let Answer::ListMultipartUploadsResult(listing) = answer;
    if listing.is_truncated && listing.upload.is_empty() {
        return Err("the answer says that there is more, and names nothing".to_string());
    }
    let uploads = listing.upload.into_iter().map(|Upload { key, upload_id: id, initiated }| {
        let begun = to_seconds(&initiated);
        match is_time(&begun) && !key.is_empty() && !id.is_empty() {
            true => Ok(Multipart { key, id, begun }),
            false => Err(format!("the answer has an upload `{id}` of `{key}`, begun at `{initiated}`")),
        }
    });
    Ok((uploads.collect::<Result<_, _>>()?, listing.is_truncated))
}

/// A time as S3 and we write it, without what is less than a second, so that it can be compared as text.
fn to_seconds(time: &str) -> String {
    time.chars().take(TIME.len()).collect()
}

fn is_time(text: &str) -> bool {
    let fits = |(expected, found): (u8, u8)| if expected == b'0' { found.is_ascii_digit() } else { found == expected };
    text.len() == TIME.len() && TIME.bytes().zip(text.bytes()).all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
        <ListMultipartUploadsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>b</Bucket><KeyMarker/>\
        <IsTruncated>true</IsTruncated>\
        <Upload><Key>p/a&amp;b</Key><UploadId>2~x</UploadId><Owner><ID>1</ID></Owner>\
        <Initiated>2026-03-01T02:03:04.567Z</Initiated></Upload><CommonPrefixes><Prefix>q/</Prefix></CommonPrefixes>\
        <Upload><Initiated>2026-03-01T02:03:05Z</Initiated><Key>p/&#99;</Key><UploadId>y</UploadId></Upload>\
        </ListMultipartUploadsResult>";

    #[test]
    fn an_answer_of_the_store_is_read() {
        let multipart = |key: &str, id: &str, begun: &str| Multipart {
            key: key.to_string(),
            id: id.to_string(),
            begun: begun.to_string(),
        };
        let expected = [multipart("p/a&b", "2~x", "2026-03-01T02:03:04"), multipart("p/c", "y", "2026-03-01T02:03:05")];
        assert_eq!(parse(WHOLE), Ok((expected.to_vec(), true)));
        let empty = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>";
        assert_eq!(parse(empty), Ok((vec![], false)));
    }

    #[test]
    fn an_answer_that_breaks_off_is_an_error() {
        for end in 0..WHOLE.len() {
            assert!(parse(&WHOLE[..end]).is_err(), "{}", &WHOLE[..end]);
        }
    }

    #[test]
    fn an_answer_of_another_kind_is_an_error() {
        let without = |part: &str| WHOLE.replace(part, "");
        for text in [
            "<html><body>Please log in</body></html>".to_string(),
            "<Error><Code>SlowDown</Code></Error>".to_string(),
            r#"{"uploads":[]}"#.to_string(),
            "<ListMultipartUploadsResult/>".to_string(),
            "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated></ListMultipartUploadsResult>".to_string(),
            without("<IsTruncated>true</IsTruncated>"),
            without("<UploadId>y</UploadId>"),
            without("<Key>p/&#99;</Key>"),
            without("<Initiated>2026-03-01T02:03:05Z</Initiated>"),
            WHOLE.replace("2026-03-01T02:03:05Z", "yesterday"),
            WHOLE.replace("2026-03-01T02:03:05Z", ""),
            WHOLE.replace("&amp;", "&nonsense;"),
            WHOLE.replace("</UploadId>", "</Upload>"),
        ] {
            assert!(parse(&text).is_err(), "{text}");
        }
    }
}
