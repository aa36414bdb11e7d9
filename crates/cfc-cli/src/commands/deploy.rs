//! `cfc deploy`: build, push, then one request that changes Worker and applications together.

use std::process::ExitCode;

use cfc_control::{ApplicationRequest, Client, DeployRequest, InstanceSize, Module};
use cfc_oci::Reference;
use cfc_project::{Container, ImageSource, Project};
use cfc_store::Store;

use crate::args::Deploy;
use crate::commands::client_runtime;
use crate::commands::setup::{toolchain, workers_failure};
use crate::failure::Failure;
use crate::images;
use crate::images::build::{ImageBuild, build_container};
use crate::images::progress::Style;
use crate::images::push::push_image;
use crate::interrupt;
use crate::output;
use crate::project::open_project;
use crate::server::client::{connect, control_failure};
use crate::settings::Settings;

pub fn run(settings: &Settings, arguments: &Deploy) -> Result<ExitCode, Failure> {
    let project = open_project(&arguments.path, &arguments.project)?;
    warn_of_unread_variables(&project);
    // Everything that can be refused is asked before minutes go into a build.
    let client = connect(settings)?;
    let tools = toolchain(settings)?;
    let runtime = client_runtime()?;
    runtime.block_on(client.workers()).map_err(control_failure)?;

    let bundle = cfc_workers::bundle(&project, &tools).map_err(workers_failure)?;
    let store = settings.open_store()?;
    let build = ImageBuild { progress: Style::choose(None)?, ..ImageBuild::default() };
    build.progress.begin();
    interrupt::catch();
    let mut references = Vec::new();
    for container in &project.containers {
        let reference = match &container.image {
            ImageSource::Dockerfile { .. } => build_container(settings, &store, container, build.clone())?.reference,
            ImageSource::Reference(reference) => reference.clone(),
        };
        references.push(reference);
    }
    let url = runtime.block_on(upload(settings, &client, &store, &project, bundle, &references, arguments))?;
    output::data(url);
    Ok(ExitCode::SUCCESS)
}

/// Says so where variables of `wrangler dev` lie beside the config, which a deployment does not read.
fn warn_of_unread_variables(project: &Project) {
    let of_environment = project.environment.iter().map(|environment| format!(".dev.vars.{environment}"));
    let names = std::iter::once(".dev.vars".to_string()).chain(of_environment);
    for path in names.map(|name| project.directory.join(name)).filter(|path| path.exists()) {
        output::tell(format!(
            "warning: `{}` is not read\nhint: it is for `wrangler dev`; a deployed Worker has the `vars` of its config, and \
             its secrets: `cfc secret bulk {}` makes these its secrets",
            path.display(),
            path.display()
        ));
    }
}

/// Pushes what was built, then deploys; returns the Worker's URL.
async fn upload(
    settings: &Settings,
    client: &Client,
    store: &Store,
    project: &Project,
    bundle: cfc_workers::Bundle,
    references: &[Reference],
    arguments: &Deploy,
) -> Result<String, Failure> {
    let (registry, options) = (settings.addresses()?.registry, settings.transfer_options()?);
    let mut containers = Vec::new();
    for (container, reference) in project.containers.iter().zip(references) {
        let pinned = match &container.image {
            ImageSource::Dockerfile { .. } => {
                let image = images::resolve(store, reference)?;
                let destination = Reference { registry: Some(registry.clone()), ..reference.clone() };
                push_image(store, &image, &destination, &options).await?
            }
            ImageSource::Reference(_) => reference.clone(),
        };
        containers.push(application(container, pinned));
    }
    output::tell(format!("deploying {}", project.name));
    let request = request(project, bundle, containers, arguments.skip_trial)?;
    let deployed = client.deploy(&request).await.map_err(control_failure)?;
    for warning in &deployed.warnings {
        output::tell(format!("warning: {warning}"));
    }
    for (application, isolation) in &deployed.isolations {
        output::tell(format!("{application} runs in {isolation}"));
    }
    Ok(deployed.url)
}

fn application(container: &Container, image: Reference) -> ApplicationRequest {
    let size = &container.instance_type;
    // Kept with the application, and shown; on one machine they change nothing.
    let mut more: serde_json::Map<String, serde_json::Value> = container.extra.clone().into_iter().collect();
    more.insert("constraints".to_string(), serde_json::json!(container.constraints));
    more.insert("scheduling_policy".to_string(), serde_json::json!(container.scheduling_policy));
    ApplicationRequest {
        name: container.name.clone(),
        class_name: container.class_name.clone(),
        image,
        size: InstanceSize { vcpu: size.vcpu, memory_mib: size.memory_mib, disk_mb: size.disk_mb },
        max_instances: container.max_instances,
        more,
    }
}

fn request(
    project: &Project,
    bundle: cfc_workers::Bundle,
    containers: Vec<ApplicationRequest>,
    skip_trial: bool,
) -> Result<DeployRequest, Failure> {
    let more = cfc_workers::WorkerVersion::from_project(project, bundle.clone(), Vec::new()).more;
    let modules = bundle.modules.into_iter().map(|module| Module {
        name: module.name,
        content_type: module.content_type,
        bytes: module.bytes.into(),
    });
    Ok(DeployRequest {
        name: project.name.clone(),
        main_module: bundle.main_module,
        modules: modules.collect(),
        compatibility_date: project.compatibility_date.clone(),
        compatibility_flags: project.compatibility_flags.clone(),
        vars: project.vars.clone(),
        durable_objects: project.durable_objects.clone(),
        migrations: project.migrations.clone(),
        containers,
        more,
        skip_trial,
    })
}
