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

    /// Whether an image for `self` runs where `wanted` is asked for: the same, or an older variant. A variant that is
    /// not named is the usual one.
    pub fn satisfies(&self, wanted: &Platform) -> bool {
        self.distance_from(wanted).is_some()
    }

    /// How far an image for `self` is from what `wanted` asks for: 0 for the same, 1 for the next older variant (an image
    /// for `arm/v6` where `arm/v7` is wanted), and so on. None when it does not run there.
    pub fn distance_from(&self, wanted: &Platform) -> Option<u32> {
        if self.os != wanted.os || self.architecture != wanted.architecture {
            return None;
        }
        let (ours, theirs) = (self.variant_or_usual(), wanted.variant_or_usual());
        let number = |variant: &str| variant.strip_prefix('v').and_then(|digits| digits.parse::<u32>().ok());
        match (number(&ours), number(&theirs)) {
            (Some(ours), Some(theirs)) => theirs.checked_sub(ours),
            _ => (ours == theirs).then_some(0),
        }
    }

    /// Whether the processor of `host` runs programs for `self` by itself.
    pub fn is_native_to(&self, host: &Platform) -> bool {
        let pair = (host.architecture.as_str(), self.architecture.as_str());
        self.os == host.os && (pair.0 == pair.1 || matches!(pair, ("amd64", "386") | ("arm64", "arm")))
    }

    /// The variant of a processor whose variant is not named (containerd's `platforms.Normalize`).
    fn variant_or_usual(&self) -> String {
        let usual = match self.architecture.as_str() {
            "arm" => "v7",
            "arm64" => "v8",
            "amd64" => "v1",
            _ => "",
        };
        self.variant.clone().unwrap_or_else(|| usual.to_string())
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// Reads `os/architecture[/variant]`, or an architecture alone; in the one form that each platform has
    /// (`linux/aarch64/v8` is `linux/arm64`, `armhf` is `linux/arm/v7`).
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
            [os, architecture, variant] => (os, architecture, Some(variant.to_ascii_lowercase())),
            [architecture] if is_architecture(architecture) => (&"linux", architecture, None),
            _ => return Err(PlatformError { text: text.to_string() }),
        };
        let architecture = architecture.to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            ("amd64" | "x86_64" | "x86-64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64", _) => ("amd64", variant),
            ("i386" | "i486" | "i586" | "i686" | "386", _) => ("386", None),
            ("arm64" | "aarch64", None | Some("v8" | "8")) => ("arm64", None),
            ("aarch64", _) => ("arm64", variant),
            ("armhf", _) | ("arm", None | Some("7")) => ("arm", Some("v7".to_string())),
            ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6".to_string())),
            ("arm", Some("5")) => ("arm", Some("v5".to_string())),
            (other, _) => (other, variant),
        };
        Ok(Platform { variant, ..Platform::new(&os.to_ascii_lowercase(), architecture) })
    }
}

/// Whether `text` names a processor rather than an operating system (GOARCH, and what people write for it).
fn is_architecture(text: &str) -> bool {
    const KNOWN: [&str; 20] = [
        "386", "aarch64", "amd64", "arm", "arm64", "armel", "armhf", "i386", "loong64", "mips", "mips64", "mips64le",
        "mipsle", "ppc64", "ppc64le", "riscv64", "s390x", "wasm", "x86-64", "x86_64",
    ];
    KNOWN.contains(&text.to_ascii_lowercase().as_str())
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
        for (text, name) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("armhf", "linux/arm/v7"),
            ("arm64", "linux/arm64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
        ] {
            assert_eq!(text.parse::<Platform>().map(|platform| platform.to_string()), Ok(name.to_string()));
        }
    }

    #[test]
    fn malformed_platforms_are_refused() {
        for text in ["", "linux", "linux/", "a/b/c/d", "linux/am d64"] {
            assert!(text.parse::<Platform>().is_err(), "{text} was accepted");
        }
    }

    #[test]
    fn an_older_variant_runs_on_a_newer_one_and_not_the_other_way_round() {
        let distance = |image: &str, wanted: &str| {
            let (image, wanted): (Platform, Platform) = (image.parse().expect(image), wanted.parse().expect(wanted));
            image.distance_from(&wanted)
        };
        assert_eq!(distance("linux/arm64", "linux/arm64/v8"), Some(0));
        assert_eq!(distance("linux/arm/v6", "linux/arm/v7"), Some(1));
        assert_eq!(distance("linux/arm/v7", "linux/arm/v6"), None);
        assert_eq!(distance("linux/arm", "linux/arm/v6"), None);
        assert_eq!(distance("linux/amd64", "linux/amd64/v3"), Some(2));
        assert_eq!(distance("linux/arm64", "linux/arm"), None);
        assert_eq!(distance("windows/amd64", "linux/amd64"), None);
    }
}
