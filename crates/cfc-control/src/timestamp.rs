//! [`Timestamp`]: a moment as Cloudflare's API writes it, RFC 3339 in UTC with milliseconds.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01T00:00:00Z; written as `2026-11-23T17:11:00.000Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Timestamp {
    milliseconds: u64,
}

impl Timestamp {
    /// The present moment of this machine's clock.
    pub fn now() -> Timestamp {
        SystemTime::now().into()
    }

    /// The moment `milliseconds` after the epoch.
    pub fn from_milliseconds(milliseconds: u64) -> Timestamp {
        Timestamp { milliseconds }
    }

    /// Milliseconds since the epoch.
    pub fn milliseconds(self) -> u64 {
        self.milliseconds
    }
}

impl From<SystemTime> for Timestamp {
    /// A moment before the epoch counts as the epoch.
    fn from(time: SystemTime) -> Timestamp {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Timestamp { milliseconds: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX) }
    }
}

impl From<Timestamp> for SystemTime {
    fn from(timestamp: Timestamp) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(timestamp.milliseconds)
    }
}

const MILLISECONDS_PER_DAY: u64 = 86_400_000;

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_from_days(self.milliseconds / MILLISECONDS_PER_DAY);
        let rest = self.milliseconds % MILLISECONDS_PER_DAY;
        let (hour, minute, second) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", rest % 1000)
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    /// Accepts what [`Display`](fmt::Display) writes, and the same without a fraction of a second.
    fn from_str(text: &str) -> Result<Timestamp, TimestampError> {
        parse(text).ok_or_else(|| TimestampError { text: text.to_string() })
    }
}

fn parse(text: &str) -> Option<Timestamp> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let [year, month, day] = numbers::<3>(date, '-')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [hour, minute, second] = numbers::<3>(time, ':')?;
    let is_valid = (1..=12).contains(&month) && (1..=31).contains(&day) && year >= 1970;
    if !is_valid || hour > 23 || minute > 59 || second > 60 || fraction.is_empty() {
        return None;
    }
    let fraction = fraction.bytes().all(|b| b.is_ascii_digit()).then(|| format!("{fraction:0<3}"))?;
    let milliseconds: u64 = fraction.get(..3)?.parse().ok()?;
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some(Timestamp { milliseconds: seconds * 1000 + milliseconds })
}

fn numbers<const N: usize>(text: &str, separator: char) -> Option<[u64; N]> {
    let numbers: Vec<u64> = text.split(separator).map(|part| part.parse().ok()).collect::<Option<_>>()?;
    numbers.try_into().ok().filter(|numbers: &[u64; N]| numbers.iter().all(|&number| number < 10_000))
}

/// Days since the epoch into year, month and day (Howard Hinnant's `civil_from_days`, years from 1970 on).
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let year_of_era = year % 400;
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (year / 400) * 146_097 + day_of_era - 719_468
}

/// A text that is not a moment in UTC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed time `{text}`, expected the form `2026-11-23T17:11:00.000Z`")]
pub struct TimestampError {
    /// What was given.
    pub text: String,
}

impl TryFrom<String> for Timestamp {
    type Error = TimestampError;
    fn try_from(text: String) -> Result<Timestamp, TimestampError> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(timestamp: Timestamp) -> String {
        timestamp.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_are_written_as_rfc_3339() {
        let check = |milliseconds, text: &str| {
            let timestamp = Timestamp::from_milliseconds(milliseconds);
            assert_eq!(timestamp.to_string(), text);
            assert_eq!(text.parse(), Ok(timestamp));
        };
        check(0, "1970-01-01T00:00:00.000Z");
        check(951_782_400_000, "2000-02-29T00:00:00.000Z");
        check(1_795_453_860_123, "2026-11-23T17:11:00.123Z");
        check(4_107_542_399_999, "2100-02-28T23:59:59.999Z");
    }

    #[test]
    fn every_day_of_four_centuries_round_trips() {
        for day in 0..146_097 {
            let (year, month, date) = civil_from_days(day);
            assert_eq!(days_from_civil(year, month, date), day);
        }
    }

    #[test]
    fn malformed_times_are_refused() {
        for text in
            ["", "2026-11-23", "2026-13-01T00:00:00Z", "2026-11-23T17:11:00", "2026-11-23T24:00:00Z", "x-y-zT1:2:3Z"]
        {
            assert!(text.parse::<Timestamp>().is_err(), "{text} was accepted");
        }
    }
}
