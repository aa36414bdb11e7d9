//! [`Platform`]: the system an image runs on (image-spec, "Image Index", `platform`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Operating system, architecture and variant, in Go's words (`linux`, `amd64`, `v7`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// CPU architecture, a GOARCH value.
    pub architecture: String,
    /// Operating system, a GOOS value.
    pub os: String,
    /// Version of the operating system; only Windows uses it.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features of the operating system; only Windows uses them.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// Variant of the CPU, for example `v7` of `arm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform this program was compiled for, in Go's words.
    pub fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Platform::new("linux", architecture)
    }

    /// A platform without variant.
    pub fn new(os: &str, architecture: &str) -> Platform {
        Platform {
            architecture: architecture.to_string(),
            os: os.to_string(),
            os_version: None,
            os_features: Vec::new(),
            variant: None,
        }
    }

    /// Whether an image for `self` runs where `wanted` is asked for. Variants are compared only when both name one;
    /// `arm64` and `arm64/v8` are the same.
    pub fn satisfies(&self, wanted: &Platform) -> bool {
        let same_variant = match (&self.variant, &wanted.variant) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => true,
        };
        self.os == wanted.os && self.architecture == wanted.architecture && same_variant
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let is_part = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        };
        if !parts.iter().all(is_part) {
            return Err(PlatformError { text: text.to_string() });
        }
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_string())),
            _ => return Err(PlatformError { text: text.to_string() }),
        };
        let architecture = match architecture.to_ascii_lowercase().as_str() {
            "x86_64" | "x86-64" => "amd64".to_string(),
            "aarch64" => "arm64".to_string(),
            other => other.to_string(),
        };
        Ok(Platform { variant, ..Platform::new(&os.to_ascii_lowercase(), &architecture) })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// The text is not `os/architecture[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed platform `{text}`, expected os/architecture[/variant], for example linux/amd64")]
pub struct PlatformError {
    /// What was given.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_round_trip() {
        for text in ["linux/amd64", "linux/arm/v7"] {
            assert_eq!(text.parse::<Platform>().map(|platform| platform.to_string()), Ok(text.to_string()));
        }
        assert_eq!("linux/x86_64".parse::<Platform>().map(|p| p.to_string()), Ok("linux/amd64".to_string()));
    }

    #[test]
    fn malformed_platforms_are_refused() {
        for text in ["", "linux", "linux/", "a/b/c/d", "linux/am d64"] {
            assert!(text.parse::<Platform>().is_err(), "{text} was accepted");
        }
    }

    #[test]
    fn variants_matter_only_when_both_are_named() {
        let plain: Platform = "linux/arm64".parse().expect("well-formed");
        let v8: Platform = "linux/arm64/v8".parse().expect("well-formed");
        assert!(plain.satisfies(&v8) && v8.satisfies(&plain));
        assert!(!v8.satisfies(&"linux/arm64/v9".parse().expect("well-formed")));
    }
}
