//! [`LayoutImage`]: an image of an OCI layout, as a build context names it.

use std::fmt;
use std::path::PathBuf;

use cfc_oci::{Descriptor, Digest};
use cfc_store::{Store, find_in_oci_layout};

use crate::failure::Failure;

pub const SCHEME: &str = "oci-layout://";

/// An image of the layout in a directory, by digest. As text, which is what a plan has of it: `oci-layout://DIR@DIGEST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutImage {
    directory: PathBuf,
    digest: Digest,
}

impl LayoutImage {
    /// What `DIR[:TAG][@DIGEST]` names now; the tag is `latest` when there is none, and does not matter where there is a
    /// digest or just one image.
    pub fn find(text: &str) -> Result<LayoutImage, Failure> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (directory, tag) = match rest.rsplit_once(':') {
            Some((directory, tag)) if !tag.contains('/') => (directory, tag),
            _ => (rest, "latest"),
        };
        let absolute = std::path::absolute(directory)
            .map_err(|error| Failure::because(format!("cannot use `{directory}` as an OCI layout"), &error))?;
        let image = find_in_oci_layout(&absolute, tag, digest.as_ref())?;
        Ok(LayoutImage { directory: absolute, digest: image.digest })
    }

    /// The image that the text of one names; none when it is none.
    pub fn parse(text: &str) -> Option<LayoutImage> {
        let (directory, digest) = text.strip_prefix(SCHEME)?.rsplit_once('@')?;
        Some(LayoutImage { directory: PathBuf::from(directory), digest: digest.parse().ok()? })
    }

    /// Takes it into `store`: every platform's that is there.
    pub fn import(&self, store: &Store) -> Result<Descriptor, Failure> {
        let image = find_in_oci_layout(&self.directory, "", Some(&self.digest))?;
        store.import_from_oci_layout(&self.directory, &image)?;
        Ok(image)
    }
}

impl fmt::Display for LayoutImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}@{}", self.directory.display(), self.digest)
    }
}
