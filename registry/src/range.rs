//! Byte ranges: the `Range` of a pull (RFC 9110, 14.2) and the `Content-Range` of a chunk (distribution-spec,
//! "Pushing a blob in chunks").

use std::ops::Range;

use cfc_oci::Digest;
use http::{HeaderMap, header};

/// What a pull asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of it.
    Whole,
    /// These bytes, at least one.
    Part(Range<u64>),
    /// Bytes that are not there.
    Unsatisfiable,
}

/// What the headers of a pull of `digest`, which has `size` bytes, ask for: with `If-Range` a part only if the client's other
/// parts are of this blob, too.
pub(crate) fn wanted_by(headers: &HeaderMap, digest: &Digest, size: u64) -> Wanted {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let is_same = text(header::IF_RANGE).is_none_or(|tag| tag.trim_matches('"') == digest.to_string());
    match text(header::RANGE) {
        Some(range) if is_same => wanted(range, size),
        _ => Wanted::Whole,
    }
}

/// Reads the `Range` header of a pull of `size` bytes. Several ranges, and units other than bytes, get the whole.
fn wanted(header: &str, size: u64) -> Wanted {
    let Some(set) = header.trim().strip_prefix("bytes=") else { return Wanted::Whole };
    let Some((first, last)) = set.trim().split_once('-') else { return Wanted::Whole };
    let range = match (number(first), number(last)) {
        (Some(first), Some(last)) => first..last.saturating_add(1).min(size),
        (Some(first), None) if last.is_empty() => first..size,
        (None, Some(suffix)) if first.is_empty() => size.saturating_sub(suffix)..size,
        _ => return Wanted::Whole,
    };
    if range.is_empty() { Wanted::Unsatisfiable } else { Wanted::Part(range) }
}

/// Reads the `Content-Range` of a chunk, `<first>-<last>`; `None` when it is malformed or empty.
pub(crate) fn chunk(header: &str) -> Option<Range<u64>> {
    let (first, last) = header.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(first..last.checked_add(1)?)
}

/// Digits only: the standard library would also take a sign. Too many of them are as good as the largest number.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_a_pull() {
        for (header, expected) in [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=500-1499", Wanted::Part(500..1500)),
            ("bytes=500-", Wanted::Part(500..2048)),
            ("bytes=-500", Wanted::Part(1548..2048)),
            ("bytes=-5000", Wanted::Part(0..2048)),
            ("bytes=2000-5000", Wanted::Part(2000..2048)),
            ("bytes=5000-10000", Wanted::Unsatisfiable),
            ("bytes=500-0", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=0-99999999999999999999999999", Wanted::Part(0..2048)),
            ("bytes=99999999999999999999999999-", Wanted::Unsatisfiable),
            ("bytes=0-1,5-6", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("lines=1-2", Wanted::Whole),
            ("", Wanted::Whole),
        ] {
            assert_eq!(wanted(header, 2048), expected, "{header}");
        }
        assert_eq!(wanted("bytes=0-", 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn ranges_of_a_chunk() {
        assert_eq!(chunk("0-0"), Some(0..1));
        assert_eq!(chunk("10-19"), Some(10..20));
        for malformed in ["", "-", "0", "5-4", "-1", "a-b", "bytes 0-1/2", "+0-1", "0-18446744073709551615"] {
            assert_eq!(chunk(malformed), None, "{malformed}");
        }
    }
}
