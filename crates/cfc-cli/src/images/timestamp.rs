//! The time of an image, as `--timestamp` says it.

use std::time::{SystemTime, UNIX_EPOCH};

/// RFC 3339 ends with the year 9999.
const END: i64 = 253_402_300_800;

/// Seconds since 1970 of `now`, a number of them, or a date in RFC 3339 (`2024-02-29T12:00:00Z`, `…+01:00`).
///
/// # Errors
/// The text says what was expected.
pub fn parse(text: &str) -> Result<i64, String> {
    let seconds = match text {
        "now" => SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|elapsed| elapsed.as_secs() as i64),
        number if number.parse::<i64>().is_ok() => number.parse().ok(),
        date => rfc3339(date),
    };
    seconds.filter(|seconds| (0..END).contains(seconds)).ok_or_else(|| {
        "expected `now`, seconds since 1970, or a date since then like `2024-02-29T12:00:00Z`".to_string()
    })
}

/// The fractions of a second are left out: layers have none.
fn rfc3339(text: &str) -> Option<i64> {
    let (date, rest) = (text.get(..19)?, text.get(19..)?);
    let is_separator = |at: usize, allowed: &[u8]| allowed.contains(&date.as_bytes()[at]);
    let is_date = is_separator(4, b"-") && is_separator(7, b"-") && is_separator(10, b"Tt ") && is_separator(13, b":");
    if !is_date || !is_separator(16, b":") {
        return None;
    }
    let number = |from: usize, to: usize, least: i64, most: i64| {
        let digits = &date[from..to];
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<i64>().ok().filter(|number| is_number && (least..=most).contains(number))
    };
    let (year, month) = (number(0, 4, 0, 9999)?, number(5, 7, 1, 12)?);
    let day = number(8, 10, 1, days_of(year, month))?;
    let (hour, minute, second) = (number(11, 13, 0, 23)?, number(14, 16, 0, 59)?, number(17, 19, 0, 59)?);
    let offset = offset(without_fraction(rest)?)?;
    Some(days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

fn without_fraction(text: &str) -> Option<&str> {
    let Some(fraction) = text.strip_prefix('.') else { return Some(text) };
    let zone = fraction.trim_start_matches(|digit: char| digit.is_ascii_digit());
    (zone.len() < fraction.len()).then_some(zone)
}

/// Seconds east of Greenwich.
fn offset(zone: &str) -> Option<i64> {
    let bytes = zone.as_bytes();
    let number = |from: usize, most: i64| {
        let digits = zone.get(from..from + 2)?;
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<i64>().ok().filter(|number| is_number && *number <= most)
    };
    match bytes {
        b"Z" | b"z" => Some(0),
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let seconds = number(1, 23)? * 3600 + number(4, 59)? * 60;
            Some(if *sign == b'-' { -seconds } else { seconds })
        }
        _ => None,
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let before = |year: i64| year * 365 + (year + 3) / 4 - (year + 99) / 100 + (year + 399) / 400;
    let of_months: i64 = (1..month).map(|month| days_of(year, month)).sum();
    before(year) - before(1970) + of_months + day - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_each_form() {
        for (text, expected) in [
            ("0", 0),
            ("1700000000", 1_700_000_000),
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56Z", 951_827_696),
            ("2023-11-14T23:13:20.75+01:00", 1_700_000_000),
            ("2023-11-14 21:43:20-00:30", 1_700_000_000),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        assert!(parse("now").is_ok_and(|now| now > 1_700_000_000));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "-1",
            "yesterday",
            "2023-11-14",
            "2023-02-29T00:00:00Z",
            "2023-13-01T00:00:00Z",
            "2023-11-14T24:00:00Z",
            "2023-11-14T23:13:20",
            "2023-11-14T23:13:20.Z",
            "2023-11-14T23:13:20+1:00",
            "1969-12-31T23:59:59Z",
            "253402300800",
            "2023-11-14T+3:13:20Z",
            "2023-11-14T23:13:20Zü",
            "ü023-11-14T23:13:20Z",
        ] {
            assert!(parse(text).is_err_and(|message| message.starts_with("expected `now`")), "{text}");
        }
    }
}
