//! [`fetch_url`]: a file of the network that is in no registry.

use std::time::Duration;

use reqwest::header::LAST_MODIFIED;
use reqwest::{Client, StatusCode};
use tokio::io::{AsyncWrite, AsyncWriteExt};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(300);
const MAX_REDIRECTS: usize = 10;

/// Why a file was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No answer, or one that broke off.
    #[error("cannot get `{url}`: {cause}")]
    Unreachable {
        /// The address.
        url: String,
        /// What the network said.
        cause: String,
    },
    /// Another answer than the file.
    #[error("cannot get `{url}`: the server answered {status}")]
    Answer {
        /// The address.
        url: String,
        /// The HTTP status.
        status: StatusCode,
    },
    /// What arrived could not be written.
    #[error("cannot keep what `{url}` gave")]
    Write {
        /// The address.
        url: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Writes what is at `url` to `to`, and returns when it was last modified, in seconds since 1970, where the server says
/// so. After an error, a part is written.
pub async fn fetch_url(url: &str, to: &mut (dyn AsyncWrite + Unpin + Send)) -> Result<Option<i64>, FetchError> {
    let unreachable = |error: reqwest::Error| {
        let mut cause: &dyn std::error::Error = &error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        FetchError::Unreachable { url: url.to_string(), cause: cause.to_string() }
    };
    let prepared = client(url).and_then(|client| client.get(url).build().map(|request| (client, request)));
    let (client, request) = prepared.map_err(unreachable)?;
    let mut answer = client.execute(request).await.map_err(unreachable)?;
    if !answer.status().is_success() {
        return Err(FetchError::Answer { url: url.to_string(), status: answer.status() });
    }
    let modified = answer.headers().get(LAST_MODIFIED).and_then(|value| value.to_str().ok()).and_then(parse_date);
    let failed = |source| FetchError::Write { url: url.to_string(), source };
    while let Some(bytes) = answer.chunk().await.map_err(unreachable)? {
        to.write_all(&bytes).await.map_err(failed)?;
    }
    to.flush().await.map_err(failed)?;
    Ok(modified)
}

fn client(url: &str) -> reqwest::Result<Client> {
    // Whoever installs one first wins, and any is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("cfc/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .redirect(reqwest::redirect::Policy::limited(MAX_REDIRECTS));
    if url.starts_with("http://") {
        // Needs no certificates, and so works where the system has none. A redirect to https then fails.
        builder = builder.tls_certs_only([]);
    }
    builder.build()
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the only form that servers may send, in seconds since 1970.
fn parse_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = words[..] else { return None };
    let (day, year) = (day.parse::<i64>().ok()?, year.parse::<i64>().ok()?);
    let month = MONTHS.iter().position(|name| *name == month)? as i64 + 1;
    let clock: Vec<i64> = time.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [hour, minute, second] = clock[..] else { return None };
    let is_plausible = (1..=31).contains(&day) && (1970..10_000).contains(&year) && hour < 24 && minute < 60;
    if !is_plausible {
        return None;
    }
    // Days since 1970 of a civil date, counting years from 1 March so that the leap day comes last.
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let days = shifted_year * 365 + shifted_year / 4 - shifted_year / 100 + shifted_year / 400 + day_of_year - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::parse_date;

    #[test]
    fn dates_of_http_are_read() {
        assert_eq!(parse_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(parse_date("Tue, 29 Feb 2000 12:34:56 GMT"), Some(951_827_696));
        assert_eq!(parse_date("Tue, 14 Nov 2023 22:13:20 GMT"), Some(1_700_000_000));
        for text in ["", "yesterday", "Tue, 14 Nov 2023 22:13:20 CET", "Tue, 14 Nov 2023 22:13 GMT"] {
            assert_eq!(parse_date(text), None, "{text}");
        }
    }
}
