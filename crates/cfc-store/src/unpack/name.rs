//! [`EntryName`]: what an entry's name asks for (image-spec, "Whiteouts").

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::invalid;
use super::tree::{MAX_DEPTH, too_deep};
use crate::layer_tar::{OPAQUE_WHITEOUT, WHITEOUT_PREFIX};

/// In front of what AUFS kept for itself.
const AUFS_PREFIX: &str = ".wh..wh.";

/// A name, made safe: relative, without `.`, `..` and empty components, none of them a whiteout's except the last.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum EntryName {
    /// The root itself.
    Root,
    /// Something that only AUFS understands.
    Ignored,
    /// The directory hides what lower layers have in it.
    Opaque { directory: PathBuf },
    /// The file of lower layers is gone.
    Whiteout { parent: PathBuf, name: OsString },
    /// Anything else.
    Plain { parent: PathBuf, name: OsString },
}

impl EntryName {
    /// Reads the name of an entry, or the target of a hard link.
    pub fn parse(bytes: &[u8]) -> io::Result<EntryName> {
        if bytes.contains(&0) {
            return Err(invalid("its name has a NUL in it"));
        }
        let mut components: Vec<&[u8]> = Vec::new();
        for component in bytes.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(invalid("`..` in its name leads out of the layer")),
                _ => components.push(component),
            }
        }
        if components.len() >= MAX_DEPTH {
            return Err(too_deep());
        }
        let Some((last, ancestors)) = components.split_last() else { return Ok(EntryName::Root) };
        EntryName::classify(ancestors, last)
    }

    fn classify(ancestors: &[&[u8]], last: &[u8]) -> io::Result<EntryName> {
        if ancestors.iter().any(|component| component.starts_with(AUFS_PREFIX.as_bytes())) {
            return Ok(EntryName::Ignored);
        }
        if ancestors.iter().any(|component| component.starts_with(WHITEOUT_PREFIX.as_bytes())) {
            return Err(invalid("a directory may not be named like a whiteout"));
        }
        let parent: PathBuf = ancestors.iter().map(|component| Path::new(OsStr::from_bytes(component))).collect();
        if last == OPAQUE_WHITEOUT.as_bytes() {
            return Ok(EntryName::Opaque { directory: parent });
        }
        if last.starts_with(AUFS_PREFIX.as_bytes()) {
            return Ok(EntryName::Ignored);
        }
        match last.strip_prefix(WHITEOUT_PREFIX.as_bytes()) {
            Some(b"" | b"." | b"..") => Err(invalid("a whiteout of no file")),
            Some(name) => Ok(EntryName::Whiteout { parent, name: OsStr::from_bytes(name).to_os_string() }),
            None => Ok(EntryName::Plain { parent, name: OsStr::from_bytes(last).to_os_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(parent: &str, name: &str) -> Option<EntryName> {
        Some(EntryName::Plain { parent: parent.into(), name: name.into() })
    }

    #[test]
    fn names_are_relative_to_the_layer() {
        assert_eq!(EntryName::parse(b"a/b").ok(), plain("a", "b"));
        assert_eq!(EntryName::parse(b"./a//b/").ok(), plain("a", "b"));
        assert_eq!(EntryName::parse(b"/etc/passwd").ok(), plain("etc", "passwd"));
        assert_eq!(EntryName::parse(b"./").ok(), Some(EntryName::Root));
        assert_eq!(EntryName::parse(b"/").ok(), Some(EntryName::Root));
        assert_eq!(EntryName::parse(b"..a/...").ok(), plain("..a", "..."));
    }

    #[test]
    fn whiteouts_are_told_apart() {
        let whiteout = EntryName::Whiteout { parent: "a".into(), name: "b".into() };
        assert_eq!(EntryName::parse(b"a/.wh.b").ok(), Some(whiteout));
        assert_eq!(EntryName::parse(b"a/.wh..wh..opq").ok(), Some(EntryName::Opaque { directory: "a".into() }));
        assert_eq!(EntryName::parse(b".wh..wh.plnk/1.2").ok(), Some(EntryName::Ignored));
        assert_eq!(EntryName::parse(b".wh..wh.aufs").ok(), Some(EntryName::Ignored));
    }

    #[test]
    fn hostile_names_are_refused() {
        let deep = b"a/".repeat(300);
        for name in [&b"../a"[..], b"a/../b", b"a/..", b"a/.wh.", b".wh..", b".wh...", b".wh.a/b", b"a\0b", &deep] {
            assert!(EntryName::parse(name).is_err(), "{} was accepted", name.escape_ascii());
        }
    }
}
