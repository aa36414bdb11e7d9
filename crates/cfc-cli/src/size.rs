//! [`Size`]: an amount of disk as people write it, and [`CacheLimit`], which may also be a share of the disk.

use std::str::FromStr;

use serde::Deserialize;

/// An amount of disk: `500MB`, `10GB`, `1.5g`, bytes without a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Size(u64);

impl Size {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let wrong = || format!("`{text}` is no size: write bytes, or units of 1024 as in `500MB`, `10GB`, `1.5TB`");
        cfc_dockerfile::parse_size(text).map(Size).ok_or_else(wrong)
    }
}

/// How large the build cache may be at the end of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub enum CacheLimit {
    /// As large as it likes.
    None,
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the filesystem that the store is on.
    Percent(u64),
}

impl CacheLimit {
    /// In bytes, for a filesystem of `total` bytes; none for no limit.
    pub fn bytes(self, total: u64) -> Option<u64> {
        match self {
            CacheLimit::None => None,
            CacheLimit::Bytes(bytes) => Some(bytes),
            CacheLimit::Percent(percent) => Some(total / 100 * percent),
        }
    }
}

/// As it stands in the configuration file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Bytes(u64),
    Text(String),
}

impl TryFrom<Written> for Size {
    type Error = String;

    fn try_from(written: Written) -> Result<Size, String> {
        match written {
            Written::Bytes(bytes) => Ok(Size(bytes)),
            Written::Text(text) => text.parse(),
        }
    }
}

impl TryFrom<Written> for CacheLimit {
    type Error = String;

    fn try_from(written: Written) -> Result<CacheLimit, String> {
        let text = match written {
            Written::Bytes(bytes) => return Ok(CacheLimit::Bytes(bytes)),
            Written::Text(text) => text,
        };
        match text.strip_suffix('%').map(str::parse) {
            Some(Ok(percent @ 1..=100)) => Ok(CacheLimit::Percent(percent)),
            Some(_) => Err(format!("`{text}` is no share of a disk: write `1%` to `100%`")),
            None if text == "none" => Ok(CacheLimit::None),
            None => text.parse().map(|size: Size| CacheLimit::Bytes(size.bytes())),
        }
    }
}

/// As Docker shows it: three digits, units of 1000.
pub fn show(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            return match unit {
                "B" => format!("{bytes}B"),
                _ if value < 9.995 => format!("{value:.2}{unit}"),
                _ if value < 99.95 => format!("{value:.1}{unit}"),
                _ => format!("{value:.0}{unit}"),
            };
        }
        value /= 1000.0;
    }
    format!("{value:.2}TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        let parsed = |text: &str| text.parse().map(Size::bytes).ok();
        assert_eq!(parsed("512"), Some(512));
        assert_eq!(parsed("1kB"), Some(1024));
        assert_eq!(parsed("10GB"), Some(10 << 30));
        assert_eq!(parsed("1.5g"), Some(3 << 29));
        assert_eq!(parsed("2 TiB"), Some(2 << 40));
        assert_eq!(parsed("1PB"), Some(1 << 50));
        for text in ["", "GB", "-1", "1.2.3", "5 apples", "1e9", "99999999TB", "."] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }

    #[test]
    fn a_limit_may_be_a_share_or_none() {
        let parsed = |text: &str| CacheLimit::try_from(Written::Text(text.to_string())).ok();
        assert_eq!(parsed("none"), Some(CacheLimit::None));
        assert_eq!(parsed("10%").and_then(|limit| limit.bytes(1000)), Some(100));
        assert_eq!(parsed("1MB").and_then(|limit| limit.bytes(1000)), Some(1 << 20));
        assert_eq!([parsed("0%"), parsed("101%"), parsed("%"), parsed("much")], [None; 4]);
    }

    #[test]
    fn sizes_are_shown_in_three_digits() {
        let shown = [0, 999, 1000, 12_345, 999_600, 123_456_789, 5_000_000_000_000].map(show);
        assert_eq!(shown, ["0B", "999B", "1.00kB", "12.3kB", "1.00MB", "123MB", "5.00TB"]);
    }
}
