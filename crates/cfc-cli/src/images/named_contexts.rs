//! `--build-context`: what is used in place of stages and images.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cfc_oci::Reference;
use cfc_plan::{ContextFiles, ContextName, GitSource, NamedContext, UrlSource, is_url};

use crate::failure::Failure;
use crate::images::layout::{self, LayoutImage};

const IMAGE: &str = "docker-image://";

/// What the command line says: `NAME=PLACE` each, the last one of a name counts.
pub fn parse(texts: &[String]) -> Result<BTreeMap<ContextName, NamedContext>, Failure> {
    texts.iter().map(|text| parse_one(text)).collect()
}

fn parse_one(text: &str) -> Result<(ContextName, NamedContext), Failure> {
    let bad = |what: String| Failure::new(format!("--build-context `{text}`: {what}"));
    let (name, place) =
        text.split_once('=').filter(|(name, place)| !name.is_empty() && !place.is_empty()).ok_or_else(|| {
            bad("it is not NAME=PLACE".to_string()).hint("for example `--build-context base=docker-image://app:1`")
        })?;
    let context_name = ContextName::of(name).ok_or_else(|| {
        bad(format!("`{name}` cannot be replaced"))
            .hint("name a stage or an image, in lower case; `scratch` and `context` always mean what they mean")
    })?;
    Ok((context_name, place_of(place, &bad)?))
}

fn place_of(place: &str, bad: &dyn Fn(String) -> Failure) -> Result<NamedContext, Failure> {
    if let Some(image) = place.strip_prefix(IMAGE) {
        if image == "scratch" {
            return Ok(NamedContext::Scratch);
        }
        Reference::parse(image).map_err(|error| bad(error.to_string()))?;
        return Ok(NamedContext::Image(image.to_string()));
    }
    if let Some(rest) = place.strip_prefix(layout::SCHEME) {
        return Ok(NamedContext::Image(LayoutImage::find(rest)?.to_string()));
    }
    let path = PathBuf::from(place);
    if !path.exists() {
        if let Some(git) = GitSource::parse(place) {
            return Ok(NamedContext::Files(ContextFiles::Git(git.map_err(bad)?)));
        }
        if is_url(place) {
            return Ok(NamedContext::Files(ContextFiles::Url(UrlSource::new(place, None))));
        }
        if place.contains("://") || place.starts_with("target:") {
            return Err(bad("cfc knows no such place".to_string()).hint(
                "a directory, oci-layout://DIR:TAG, docker-image://NAME:TAG, https://….git#ref:dir or an address of a file",
            ));
        }
    }
    if !path.is_dir() {
        let what = if path.exists() { "is not a directory" } else { "does not exist" };
        return Err(bad(format!("`{place}` {what}")));
    }
    Ok(NamedContext::Files(ContextFiles::Directory(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> NamedContext {
        parse_one(&format!("x={text}")).expect(text).1
    }

    #[test]
    fn places_are_told_apart() {
        assert_eq!(place("docker-image://scratch"), NamedContext::Scratch);
        assert_eq!(place("docker-image://r.example/a:1"), NamedContext::Image("r.example/a:1".to_string()));
        assert_eq!(place("/"), NamedContext::Files(ContextFiles::Directory(PathBuf::from("/"))));
        assert!(matches!(place("https://h/a.git#v1:dir"), NamedContext::Files(ContextFiles::Git(_))));
        assert!(matches!(place("git@h:a"), NamedContext::Files(ContextFiles::Git(_))));
        assert!(matches!(place("https://h/a.tar.gz"), NamedContext::Files(ContextFiles::Url(_))));
    }

    #[test]
    fn mistakes_are_named() {
        let message = |text: &str| parse_one(text).expect_err(text).message;
        assert!(message("x").contains("it is not NAME=PLACE"));
        assert!(message("x=").contains("it is not NAME=PLACE"));
        assert!(message("Base=/").contains("`Base` cannot be replaced"));
        assert!(message("scratch=/").contains("cannot be replaced"));
        assert!(message("x=/nowhere-at-all").contains("does not exist"));
        assert!(message("x=/dev/null").contains("is not a directory"));
        assert!(message("x=target:base").contains("no such place"));
        assert!(message("x=docker-image://A").contains("malformed"));
    }
}
