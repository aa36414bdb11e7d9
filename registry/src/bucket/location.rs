//! [`BucketLocation`]: which bucket, and how it is used.

use std::str::FromStr;
use std::time::Duration;

/// Which bucket a registry is in, and how it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketLocation {
    /// The bucket's name.
    pub bucket: String,
    /// What all keys begin with: empty, or a path that ends with a slash.
    pub prefix: String,
    /// Where the store is, as `https://host:port`, fit for [`check_endpoint`]; `None` for what the environment says, else
    /// AWS.
    pub endpoint: Option<String>,
    /// Who we are there; `None` for what the environment says (`AWS_ACCESS_KEY_ID` and so on), else the role of the
    /// machine or container.
    pub keys: Option<BucketKeys>,
    /// For how long a client may fetch content from the store itself, by a signed URL; `None` for never.
    pub redirect: Option<Duration>,
    /// No other process will ever use the bucket, so the store need not be fit for several.
    pub single_replica: bool,
}

/// Who we are to a store.
#[derive(Clone, PartialEq, Eq)]
pub struct BucketKeys {
    /// The public half.
    pub id: String,
    /// The secret half.
    pub secret: String,
}

impl std::fmt::Debug for BucketKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BucketKeys {{ id: {:?}, .. }}", self.id)
    }
}

/// Why a text names no bucket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `s3://BUCKET` or `s3://BUCKET/PREFIX`, found `{0}`")]
pub struct BucketError(String);

/// Why a text is not where a bucket's store is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It does not say by which protocol.
    #[error(
        "`{0}` does not say how to speak to the store: write it as `https://{0}`, or `http://{0}` without encryption"
    )]
    Scheme(String),
    /// It is something else.
    #[error("expected `https://HOST:PORT`, or `http://HOST:PORT` without encryption, found `{0}`")]
    Other(String),
}

/// Says what is wrong with a text that is to be a store's endpoint: `https://HOST`, `http://HOST:PORT`, with a path where
/// the store is below one.
///
/// # Errors
/// When it has no scheme or another one, no host, or a user, a query or a fragment, which cannot begin a URL of a bucket.
pub fn check_endpoint(text: &str) -> Result<(), EndpointError> {
    let is_good = |text: &str| {
        reqwest::Url::parse(text).is_ok_and(|url| {
            let is_plain = url.username().is_empty() && url.password().is_none();
            let is_begin = url.query().is_none() && url.fragment().is_none();
            url.has_host() && is_plain && is_begin && !text.contains(char::is_whitespace)
        })
    };
    let has_scheme = ["https://", "http://"].iter().any(|scheme| text.starts_with(scheme));
    match has_scheme {
        true if is_good(text) => Ok(()),
        false if !text.contains("://") && is_good(&format!("https://{text}")) => {
            Err(EndpointError::Scheme(text.to_string()))
        }
        _ => Err(EndpointError::Other(text.to_string())),
    }
}

impl FromStr for BucketLocation {
    type Err = BucketError;

    fn from_str(text: &str) -> Result<BucketLocation, BucketError> {
        let error = || BucketError(text.to_string());
        let rest = text.strip_prefix("s3://").ok_or_else(error)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let prefix = prefix.trim_end_matches('/');
        let is_path = prefix.is_empty()
            || prefix
                .split('/')
                .all(|part| !part.is_empty() && part != "." && part != ".." && part.bytes().all(is_plain));
        if bucket.is_empty() || !bucket.bytes().all(is_plain) || !is_path {
            return Err(error());
        }
        Ok(BucketLocation {
            bucket: bucket.to_string(),
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            endpoint: None,
            keys: None,
            redirect: None,
            single_replica: false,
        })
    }
}

impl std::fmt::Display for BucketLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_a_name_and_may_have_a_prefix() {
        let parsed = |text: &str| text.parse::<BucketLocation>().map(|location| (location.bucket, location.prefix));
        assert_eq!(parsed("s3://images"), Ok(("images".to_string(), String::new())));
        assert_eq!(parsed("s3://images/"), Ok(("images".to_string(), String::new())));
        assert_eq!(parsed("s3://images/a/b/"), Ok(("images".to_string(), "a/b/".to_string())));
        for bad in ["images", "s3://", "s3:///a", "s3://a//b", "s3://a/../b", "s3://a/b?c", "gs://a", "s3://a b"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_endpoint_says_how_to_speak_to_the_store() {
        for good in
            ["https://s3.example", "http://127.0.0.1:6140", "https://[::1]:9000/", "https://a.example/storage/v1/s3"]
        {
            assert_eq!(check_endpoint(good), Ok(()), "{good}");
        }
        for bare in ["127.0.0.1:6140", "s3.local", "s3.local:9000", "[::1]:9000", "localhost:9000"] {
            assert_eq!(check_endpoint(bare), Err(EndpointError::Scheme(bare.to_string())), "{bare}");
        }
        for bad in
            ["", "ftp://a", "s3://a", "https://", "http://a b", "https://a/?x", "https://a/#x", "https://u:p@a", "://a"]
        {
            assert_eq!(check_endpoint(bad), Err(EndpointError::Other(bad.to_string())), "{bad}");
        }
    }
}
