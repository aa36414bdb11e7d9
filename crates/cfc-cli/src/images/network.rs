//! The network, for `ADD` of addresses.

use std::fs::File;

use cfc_plan::{DownloadError, Downloads};

/// Gets files over HTTP.
pub struct Network;

impl Downloads for Network {
    fn download(&self, url: &str, to: &mut File) -> Result<Option<i64>, DownloadError> {
        let failed = |message: String, source: Option<Box<dyn std::error::Error + Send + Sync>>| DownloadError {
            message,
            hint: None,
            source,
        };
        let runtime = crate::commands::client_runtime().map_err(|failure| failed(failure.message, None))?;
        let file = to.try_clone().map_err(|error| failed(format!("cannot keep `{url}`"), Some(Box::new(error))))?;
        let fetched = runtime.block_on(cfc_transfer::fetch_url(url, &mut tokio::fs::File::from_std(file)));
        fetched.map_err(|error| {
            let source = std::error::Error::source(&error).map(|source| source.to_string().into());
            failed(error.to_string(), source)
        })
    }
}
