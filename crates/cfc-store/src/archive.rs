//! Images as one tar: an OCI layout, and with a `manifest.json` also what `docker load` reads.

use std::io::Write;
use std::path::PathBuf;

use cfc_oci::{Descriptor, Index, Manifest, Reference};
use serde::Serialize;

use crate::error::Context;
use crate::layer_tar::{LayerWriter, Metadata};
use crate::layout::{MARKER, NAME_ANNOTATION, named};
use crate::{Result, Store, StoreError, StoreErrorKind};

/// What an archive is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveKind {
    /// An OCI layout (image-spec, "Image Layout").
    Oci,
    /// The same, with the `manifest.json` of `docker save`.
    Docker,
}

/// An entry of Docker's `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: PathBuf,
    repo_tags: Vec<String>,
    layers: Vec<PathBuf>,
}

impl Store {
    /// Writes `image`, with everything it consists of and under the names `references`, to `output` as a tar. The same image
    /// gives the same bytes.
    pub fn export_archive(
        &self,
        image: &Descriptor,
        references: &[Reference],
        kind: ArchiveKind,
        output: impl Write,
    ) -> Result<()> {
        let failed = || format!("cannot write an archive of the image `{}`", image.digest);
        let mut archive = LayerWriter::new(output);
        let small = Metadata::root(0o644, 0);
        let text = |archive: &mut LayerWriter<_>, name: &str, bytes: &[u8]| {
            archive.file(name.as_ref(), &small, bytes.len() as u64, &mut &*bytes).context(failed)
        };
        for directory in ["blobs", "blobs/sha256", "blobs/sha512"] {
            archive.directory(directory.as_ref(), &Metadata::root(0o755, 0)).context(failed)?;
        }
        for blob in self.blobs_of(image)? {
            let mut content = self.blobs().open(&blob.digest)?;
            archive.file(&path_of(&blob), &small, blob.size, &mut content).context(failed)?;
        }
        let manifests = match references {
            [] => vec![named(image, None)],
            references => references.iter().map(|reference| entry(image, reference, kind)).collect(),
        };
        text(&mut archive, "index.json", &Index::new(manifests).to_bytes())?;
        if kind == ArchiveKind::Docker {
            text(&mut archive, "manifest.json", &self.docker_manifest(image, references)?)?;
        }
        text(&mut archive, "oci-layout", MARKER)?;
        archive.finish().and_then(|mut output| output.flush()).context(failed)
    }

    fn docker_manifest(&self, image: &Descriptor, references: &[Reference]) -> Result<Vec<u8>> {
        let failed = || format!("cannot write the image `{}` for Docker", image.digest);
        let manifest: Manifest = serde_json::from_slice(&self.blobs().read(&image.digest)?).map_err(|error| {
            let text = format!("`docker load` takes one image, not an index: {error}");
            StoreError::new(failed(), StoreErrorKind::Malformed(text))
        })?;
        let images = [DockerImage {
            config: path_of(&manifest.config),
            // Docker takes no name without a tag.
            repo_tags: references.iter().map(name_and_tag).collect(),
            layers: manifest.layers.iter().map(path_of).collect(),
        }];
        serde_json::to_vec(&images).map_err(std::io::Error::from).context(failed)
    }
}

/// What containerd, and a Docker that keeps its images there, calls an image of an archive.
const CONTAINERD_NAME_ANNOTATION: &str = "io.containerd.image.name";

/// `image` as the archive's index calls it. Podman takes an archive for Docker as an OCI layout too, and would call the image
/// by its tag alone; containerd wants the name as Docker writes it in full.
fn entry(image: &Descriptor, reference: &Reference, kind: ArchiveKind) -> Descriptor {
    let mut entry = named(image, Some(reference));
    if kind == ArchiveKind::Docker {
        let name = name_and_tag(reference);
        let full_name = match (&reference.registry, name.contains('/')) {
            (Some(_), _) => name.clone(),
            (None, true) => format!("docker.io/{name}"),
            (None, false) => format!("docker.io/library/{name}"),
        };
        entry.annotations.insert(CONTAINERD_NAME_ANNOTATION.to_string(), full_name);
        entry.annotations.insert(NAME_ANNOTATION.to_string(), name);
    }
    entry
}

fn name_and_tag(reference: &Reference) -> String {
    format!("{}:{}", reference.name(), reference.manifest_name())
}

fn path_of(blob: &Descriptor) -> PathBuf {
    PathBuf::from(format!("blobs/{}/{}", blob.digest.algorithm().as_str(), blob.digest.hex()))
}
