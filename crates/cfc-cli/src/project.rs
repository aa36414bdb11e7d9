//! The project that a command is about.

use std::path::Path;

use cfc_project::{Project, ProjectError, ProjectErrorKind, find_config, load};

use crate::args::ProjectSelection;
use crate::failure::Failure;
use crate::output;

/// Finds, reads and checks the project at or above `path`; prints its warnings.
pub fn open_project(path: &Path, selection: &ProjectSelection) -> Result<Project, Failure> {
    let config = match &selection.config {
        Some(config) => config.clone(),
        None => find_config(path).map_err(|error| {
            let is_context = ["Dockerfile", "dockerfile"].iter().any(|name| path.join(name).is_file());
            let hint = "its Dockerfile alone is built with a name for the image: `-t NAME:TAG`";
            project_failure(error).maybe_hint(is_context.then(|| hint.to_string()))
        })?,
    };
    let project = load(&config, selection.env.as_deref()).map_err(project_failure)?;
    for warning in &project.warnings {
        output::tell(format!("warning: {}: {warning}", project.config_path.display()));
    }
    Ok(project)
}

/// The Worker that a command is about: the one that was named, else that of the project here.
pub fn worker_name(given: Option<&str>, selection: &ProjectSelection) -> Result<String, Failure> {
    match given {
        Some(name) => Ok(name.to_string()),
        None => Ok(open_project(Path::new("."), selection)?.name),
    }
}

fn project_failure(error: ProjectError) -> Failure {
    let hints: Vec<String> = match &error.kind {
        ProjectErrorKind::Invalid(problems) => problems.iter().filter_map(|problem| problem.hint.clone()).collect(),
        _ => Vec::new(),
    };
    Failure::from(error).maybe_hint((!hints.is_empty()).then(|| hints.join("\n      ")))
}
