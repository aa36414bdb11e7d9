//! `cfc push`: images into a registry, only the blobs it lacks.

use std::path::Path;
use std::process::ExitCode;

use cfc_oci::Reference;

use crate::args::Push;
use crate::commands::client_runtime;
use crate::failure::Failure;
use crate::images::{self, push::push_image};
use crate::output;
use crate::project::open_project;
use crate::settings::Settings;

pub fn run(settings: &Settings, arguments: &Push) -> Result<ExitCode, Failure> {
    let names_a_project = arguments.project.config.is_some() || Path::new(&arguments.what).exists();
    if names_a_project { push_project(settings, arguments) } else { push_one(settings, arguments) }?;
    Ok(ExitCode::SUCCESS)
}

/// Pushes what `cfc build` made of the project's Dockerfiles.
fn push_project(settings: &Settings, arguments: &Push) -> Result<(), Failure> {
    if let Some(destination) = &arguments.destination {
        return Err(Failure::new(format!(
            "a project's images have names of their own, so `{destination}` cannot be their destination"
        ))
        .hint("push one image with `cfc push NAME:TAG DESTINATION`"));
    }
    let project = open_project(Path::new(&arguments.what), &arguments.project)?;
    let registry = settings.addresses()?.registry;
    let store = settings.open_store()?;
    let (runtime, options) = (client_runtime()?, settings.transfer_options()?);
    for container in images::built_by(&project) {
        let local = images::local_reference(container)?;
        let destination = Reference { registry: Some(registry.clone()), ..local.clone() };
        let image = images::resolve(&store, &local)?;
        let pushed = runtime.block_on(push_image(&store, &image, &destination, &options))?;
        output::data(pushed);
    }
    Ok(())
}

fn push_one(settings: &Settings, arguments: &Push) -> Result<(), Failure> {
    let source = Reference::parse(&arguments.what)?;
    let destination = match &arguments.destination {
        Some(destination) => Reference::parse(destination)?,
        None if source.registry.is_some() => source.clone(),
        None => Reference { registry: Some(settings.addresses()?.registry), ..source.clone() },
    };
    if destination.registry.is_none() {
        return Err(Failure::new(format!("the destination `{destination}` names no registry"))
            .hint(format!("put the registry's host in front, for example `127.0.0.1:5000/{destination}`")));
    }
    let store = settings.open_store()?;
    let image = images::resolve(&store, &source)?;
    let pushed = client_runtime()?.block_on(push_image(&store, &image, &destination, &settings.transfer_options()?))?;
    output::data(pushed);
    Ok(())
}
