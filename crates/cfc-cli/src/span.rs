//! [`Span`]: a length of time as people write it.

use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// Units, and how many milliseconds each is.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// A length of time: `90` (seconds), `500ms`, `15m`, `2h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Span(Duration);

impl Span {
    /// How long that is.
    pub fn duration(self) -> Duration {
        self.0
    }
}

/// As it stands in the configuration file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Seconds(u64),
    Text(String),
}

impl TryFrom<Written> for Span {
    type Error = String;

    fn try_from(written: Written) -> Result<Span, String> {
        match written {
            Written::Seconds(seconds) => Ok(Span(Duration::from_secs(seconds))),
            Written::Text(text) => text.parse(),
        }
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let wrong =
            || format!("`{text}` is no length of time: write seconds, or units as in `90s`, `15m`, `2h30m`, `1d`");
        if let Ok(seconds) = text.parse::<u64>() {
            return Ok(Span(Duration::from_secs(seconds)));
        }
        let mut rest = text;
        let mut total_ms = 0_u64;
        while !rest.is_empty() {
            let digits = rest.find(|character: char| !character.is_ascii_digit()).ok_or_else(wrong)?;
            let (number, after) = rest.split_at(digits);
            let unit_end = after.find(|character: char| character.is_ascii_digit()).unwrap_or(after.len());
            let (unit, after) = after.split_at(unit_end);
            let (_, unit_ms) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
            let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*unit_ms)).ok_or_else(wrong)?;
            total_ms = total_ms.checked_add(part).ok_or_else(wrong)?;
            rest = after;
        }
        if text.is_empty() { Err(wrong()) } else { Ok(Span(Duration::from_millis(total_ms))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_units_are_understood_and_nothing_else() {
        let parsed = |text: &str| text.parse::<Span>().map(|span| span.duration().as_millis()).ok();
        assert_eq!(parsed("90"), Some(90_000));
        assert_eq!(parsed("2h30m"), Some(9_000_000));
        assert_eq!(parsed("500ms"), Some(500));
        assert_eq!(parsed("0s"), Some(0));
        for text in ["", "m", "5 m", "-5s", "1.5h", "3w", "99999999999999999999d", "12x", "1h30"] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}
