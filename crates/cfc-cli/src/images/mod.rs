//! The images of a project and of the store, as the commands name them.

pub mod annotations;
pub mod base;
pub mod build;
pub mod cache;
pub mod call;
pub mod context;
pub mod daemon;
mod directory;
mod layout;
mod limit;
pub mod named_contexts;
mod network;
mod output_spec;
pub mod outputs;
mod paint;
pub mod progress;
pub mod push;
pub mod run_settings;
pub mod timestamp;
pub mod trust;

use cfc_oci::{Descriptor, Reference, RepositoryName, Tag};
use cfc_project::{Container, ImageSource, Project};
use cfc_store::Store;

use crate::failure::Failure;

/// The containers whose image is built from a Dockerfile.
pub fn built_by(project: &Project) -> impl Iterator<Item = &Container> {
    project.containers.iter().filter(|container| matches!(container.image, ImageSource::Dockerfile { .. }))
}

/// What the image of a container is called in the store: the application's name, tag `latest`.
pub fn local_reference(container: &Container) -> Result<Reference, Failure> {
    let repository: RepositoryName = container.name.parse().map_err(|error| {
        Failure::because(format!("the image of container `{}` cannot have its name", container.name), &error)
            .hint("give the container a `name` of lower-case letters, digits and dashes")
    })?;
    Ok(Reference { registry: None, repository, tag: Some(Tag::latest()), digest: None })
}

/// The image that `reference` names in the store.
pub fn resolve(store: &Store, reference: &Reference) -> Result<Descriptor, Failure> {
    store.images().resolve(reference)?.ok_or_else(|| {
        Failure::new(format!("there is no image `{reference}` in the store `{}`", store.root().display()))
            .hint("build it first with `cfc build`")
    })
}
