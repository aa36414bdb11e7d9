//! `cfc build`: the images of a project, or one image from a directory.

use std::process::ExitCode;

use cfc_oci::Reference;

use crate::args::Build;
use crate::failure::Failure;
use crate::images::build::{ImageBuild, build_container, build_image, parse_pairs};
use crate::images::trust::Trust;
use crate::images::{built_by, resolve};
use crate::output;
use crate::project::open_project;
use crate::settings::Settings;

pub fn run(settings: &Settings, arguments: &Build) -> Result<ExitCode, Failure> {
    match &arguments.tag {
        Some(tag) => build_one(settings, arguments, &Reference::parse(tag)?),
        None => build_project(settings, arguments),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn build_project(settings: &Settings, arguments: &Build) -> Result<(), Failure> {
    let project = open_project(&arguments.path, &arguments.project)?;
    let store = settings.open_store()?;
    let mut built_any = false;
    for container in built_by(&project) {
        let extra = ImageBuild {
            build_args: parse_pairs(&arguments.build_args, "--build-arg")?,
            labels: parse_pairs(&arguments.labels, "--label")?,
            no_cache: arguments.no_cache,
            trust: Trust::parse(arguments)?,
            ..ImageBuild::default()
        };
        let built = build_container(settings, &store, container, extra)?;
        output::data(format!("{}  {}", built.reference, built.digest));
        built_any = true;
    }
    if !built_any {
        output::tell(format!("{} has no container that is built from a Dockerfile", project.config_path.display()));
    }
    Ok(())
}

fn build_one(settings: &Settings, arguments: &Build, tag: &Reference) -> Result<(), Failure> {
    if arguments.project.config.is_some() || arguments.project.env.is_some() {
        return Err(Failure::new("--config and --env belong to a project, --tag builds without one")
            .hint("leave out --tag to build the project's images"));
    }
    let store = settings.open_store()?;
    let build = ImageBuild {
        dockerfile: arguments.file.clone().unwrap_or_else(|| arguments.path.join("Dockerfile")),
        context: arguments.path.clone(),
        target: arguments.target.clone(),
        build_args: parse_pairs(&arguments.build_args, "--build-arg")?,
        labels: parse_pairs(&arguments.labels, "--label")?,
        no_cache: arguments.no_cache,
        trust: Trust::parse(arguments)?,
    };
    let built = build_image(settings, &store, &build, tag)?;
    if let Some(directory) = &arguments.oci_layout {
        let image = resolve(&store, tag)?;
        store.export_oci_layout(&image, Some(tag), directory)?;
    }
    output::data(format!("{}  {}", built.reference, built.digest));
    Ok(())
}
