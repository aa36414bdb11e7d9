//! [`CacheEntry`]: build caches that the daemon reads and writes itself, in BuildKit's own format: in registries, in
//! directories of ours, which it gets at over the session, and in the image.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use bollard_buildkit_proto::moby::buildkit::v1 as control;
use bollard_buildkit_proto::moby::buildkit::v1::frontend;
use cfc_oci::Digest;
use cfc_store::{describe_layout_blob, name_in_oci_layout};

use crate::failure::{Failure, Result};
use crate::session::{Blobs, Last};

/// A cache that the daemon reads or writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheEntry {
    /// Where it is.
    pub place: CachePlace,
    /// What BuildKit's documentation has for this type besides the place: `mode`, `compression`.
    pub attributes: BTreeMap<String, String>,
}

/// Where a cache is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CachePlace {
    /// In a registry, by this reference.
    Registry(String),
    /// An OCI layout that is written, in which the cache is called `latest`.
    Local(PathBuf),
    /// This manifest or index of an OCI layout that is read.
    Found(PathBuf, Digest),
    /// In the image that is built.
    Inline,
}

/// The caches of one build.
pub(crate) struct Caches<'a> {
    entries: Vec<(String, &'a CacheEntry, Last)>,
}

impl<'a> Caches<'a> {
    /// Of these; they are read when `are_read`, else written.
    pub(crate) fn new(entries: &'a [CacheEntry], are_read: bool) -> Caches<'a> {
        let what = if are_read { "from" } else { "to" };
        let entry = |(index, entry)| (format!("cfc-cache-{what}-{index}"), entry, Last::default());
        Caches { entries: entries.iter().enumerate().map(entry).collect() }
    }

    /// Whether one is in the image.
    pub(crate) fn has_inline(&self) -> bool {
        self.entries.iter().any(|(_, entry, _)| entry.place == CachePlace::Inline)
    }

    /// The content stores of those that are directories, by the names that the daemon is given for them.
    pub(crate) fn stores(&self) -> impl Iterator<Item = (String, Blobs)> + '_ {
        self.entries.iter().filter_map(|(name, entry, last)| {
            let blobs = match &entry.place {
                CachePlace::Local(directory) => Blobs::Made(directory.clone(), last.clone()),
                CachePlace::Found(directory, _) => Blobs::Layout(directory.clone()),
                CachePlace::Registry(_) | CachePlace::Inline => return None,
            };
            Some((name.clone(), blobs))
        })
    }

    /// For the build's request.
    pub(crate) fn exports(&self) -> Vec<control::CacheOptionsEntry> {
        self.said().map(|(kind, attrs)| control::CacheOptionsEntry { r#type: kind.to_string(), attrs }).collect()
    }

    /// For the plan's request.
    pub(crate) fn imports(&self) -> Vec<frontend::CacheOptionsEntry> {
        self.said().map(|(kind, attrs)| frontend::CacheOptionsEntry { r#type: kind.to_string(), attrs }).collect()
    }

    /// Types and attributes.
    fn said(&self) -> impl Iterator<Item = (&'static str, HashMap<String, String>)> + '_ {
        self.entries.iter().map(|(name, entry, _)| {
            let mut attributes: HashMap<_, _> = entry.attributes.clone().into_iter().collect();
            let mut add = |key: &str, value: String| drop(attributes.insert(key.to_string(), value));
            let kind = match &entry.place {
                CachePlace::Registry(reference) => {
                    add("ref", reference.clone());
                    "registry"
                }
                // Whatever it is called: the daemon only asks us for it by this name.
                CachePlace::Local(_) => {
                    add("dest", name.clone());
                    "local"
                }
                CachePlace::Found(_, digest) => {
                    add("src", name.clone());
                    add("digest", digest.to_string());
                    "local"
                }
                CachePlace::Inline => "inline",
            };
            (kind, attributes)
        })
    }

    /// Gives those their names that are directories and whole now.
    pub(crate) fn name(&self) -> Result<()> {
        for (_, entry, last) in &self.entries {
            let CachePlace::Local(directory) = &entry.place else { continue };
            let digest = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            // A daemon that was told to ignore errors may have written none.
            if let Some(digest) = digest {
                name(directory, &digest)?;
            }
        }
        Ok(())
    }
}

fn name(directory: &Path, digest: &Digest) -> Result<()> {
    let failed = |error| Failure::because(format!("cannot write the build cache `{}`", directory.display()), error);
    let found = describe_layout_blob(directory, digest).map_err(failed)?;
    let reference = "cache:latest".parse().expect("a good reference");
    name_in_oci_layout(&found, Some(&reference), directory).map_err(failed)
}
