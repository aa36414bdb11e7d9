//! `--annotation`: what is noted in an image's manifest, and where there are several in their index.

use std::collections::BTreeMap;

use crate::failure::Failure;
use crate::images::build::parse_pairs;

/// Annotations by where they go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    /// In each manifest.
    pub manifest: BTreeMap<String, String>,
    /// In the index of an image for several platforms.
    pub index: BTreeMap<String, String>,
    /// Beside each manifest in that index.
    pub manifest_descriptor: BTreeMap<String, String>,
}

impl Annotations {
    /// `NAME=VALUE`, in front of which Docker names what is annotated: `manifest:`, `index:`, `manifest-descriptor:`, or
    /// several with commas. The image is for `n_platforms`.
    pub fn parse(texts: &[String], n_platforms: usize) -> Result<Annotations, Failure> {
        let mut annotations = Annotations::default();
        for text in texts {
            let (places, pair) = split(text);
            let pair = parse_pairs(&[pair.to_string()], "--annotation")?;
            for place in places.split(',') {
                annotations.place(place, n_platforms, text)?.extend(pair.clone());
            }
        }
        Ok(annotations)
    }

    fn place(&mut self, place: &str, n_platforms: usize, text: &str) -> Result<&mut BTreeMap<String, String>, Failure> {
        match place {
            "manifest" => Ok(&mut self.manifest),
            "index" if n_platforms > 1 => Ok(&mut self.index),
            "manifest-descriptor" if n_platforms > 1 => Ok(&mut self.manifest_descriptor),
            "index" | "manifest-descriptor" => {
                Err(Failure::new(format!("--annotation `{text}`: a build of one image has no {place} to annotate"))
                    .hint("annotate its manifest: `--annotation NAME=VALUE`"))
            }
            _ => Err(Failure::new(format!("--annotation `{text}`: cfc annotates no `{place}`"))
                .hint("write manifest, index or manifest-descriptor in front, or nothing")),
        }
    }
}

/// The places in front, and the pair. A name may have colons of its own.
fn split(text: &str) -> (&str, &str) {
    const PLACES: [&str; 4] = ["manifest", "index", "manifest-descriptor", "index-descriptor"];
    let name_length = text.find('=').unwrap_or(text.len());
    match text[..name_length].find(':') {
        Some(colon)
            if text[..colon].split(',').all(|place| PLACES.contains(&place.split('[').next().unwrap_or(place))) =>
        {
            (&text[..colon], &text[colon + 1..])
        }
        _ => ("manifest", text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, n_platforms: usize) -> Result<Annotations, String> {
        Annotations::parse(&[text.to_string()], n_platforms).map_err(|failure| failure.message)
    }

    #[test]
    fn places_are_read_as_buildx_reads_them() {
        let pair = || BTreeMap::from([("a.b".to_string(), "c:d=e".to_string())]);
        let nothing = Annotations::default;
        let in_manifest = Annotations { manifest: pair(), ..nothing() };
        assert_eq!(parse("a.b=c:d=e", 1), Ok(in_manifest.clone()));
        assert_eq!(parse("manifest:a.b=c:d=e", 2), Ok(in_manifest));
        assert_eq!(parse("index:a.b=c:d=e", 2), Ok(Annotations { index: pair(), ..nothing() }));
        let both = Annotations { index: pair(), manifest_descriptor: pair(), ..nothing() };
        assert_eq!(parse("index,manifest-descriptor:a.b=c:d=e", 2), Ok(both));
        let named = Annotations { manifest: BTreeMap::from([("x:y".to_string(), "z".to_string())]), ..nothing() };
        assert_eq!(parse("x:y=z", 1), Ok(named));
    }

    #[test]
    fn what_is_not_there_is_not_annotated() {
        assert!(parse("index:a=b", 1).expect_err("refused").contains("has no index to annotate"));
        for text in ["index-descriptor:a=b", "manifest[linux/amd64]:a=b"] {
            assert!(parse(text, 2).expect_err(text).contains("cfc annotates no"), "{text}");
        }
        assert!(parse("a", 1).expect_err("refused").contains("is not NAME=VALUE"));
    }
}
