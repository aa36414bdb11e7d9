//! Build arguments: the ones every build has, and the global ones declared before the first `FROM`.

use std::collections::BTreeMap;

use cfc_dockerfile::{Dockerfile, Instruction};
use cfc_oci::Platform;

use crate::environment::Environment;
use crate::error::Located;
use crate::{BuildRequest, PlanError};

const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";

/// The variables that `FROM` lines see.
pub(crate) fn global(request: &BuildRequest) -> Result<Environment, PlanError> {
    global_with(request, &request.build_args)
}

/// As [`global`], if no build arguments were given.
pub(crate) fn defaults(request: &BuildRequest) -> Result<Environment, PlanError> {
    global_with(request, &BTreeMap::new())
}

fn global_with(request: &BuildRequest, build_args: &BTreeMap<String, String>) -> Result<Environment, PlanError> {
    let mut arguments = predefined(request);
    for declaration in &request.dockerfile.global_args {
        for (key, default) in &declaration.value {
            let value = match (build_args.get(key), default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => {
                    let expanded = expand(&request.dockerfile, default, &arguments);
                    Some(expanded.map_err(|error| request.error_at(declaration.span, error.to_string()))?)
                }
                (None, None) => None,
            };
            if let Some(value) = value {
                arguments.set(key, &value);
            }
        }
    }
    Ok(arguments)
}

/// Expands `word` by the Dockerfile's escape character.
pub(crate) fn expand(
    dockerfile: &Dockerfile,
    word: &str,
    environment: &Environment,
) -> Result<String, cfc_dockerfile::WordError> {
    cfc_dockerfile::expand(word, dockerfile.directives.escape, &|name| environment.get(name).map(str::to_string))
}

fn predefined(request: &BuildRequest) -> Environment {
    let build = Platform::host();
    let target = &request.platform;
    let last_stage = request.dockerfile.stages.last().and_then(|stage| stage.name.clone());
    let target_stage = request.target.clone().or(last_stage).unwrap_or_else(|| "default".to_string());
    let text = |option: &Option<String>| option.clone().unwrap_or_default();
    let values = [
        ("BUILDPLATFORM", build.to_string()),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", text(&build.os_version)),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", text(&build.variant)),
        ("TARGETPLATFORM", target.to_string()),
        ("TARGETOS", target.os.clone()),
        ("TARGETOSVERSION", text(&target.os_version)),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETVARIANT", text(&target.variant)),
        ("TARGETSTAGE", target_stage),
    ];
    let mut arguments = Environment::default();
    for (key, value) in values {
        arguments.set(key, request.build_args.get(key).unwrap_or(&value));
    }
    arguments
}

/// The proxy settings among the build arguments, as programs look for them: each in upper and in lower case.
pub(crate) fn proxies(build_args: &BTreeMap<String, String>) -> Vec<(String, String)> {
    const NAMES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];
    let mut variables = Vec::new();
    for name in NAMES {
        let given = build_args.iter().rfind(|(key, _)| key.eq_ignore_ascii_case(name));
        if let Some((_, value)) = given {
            variables.push((name.to_string(), value.clone()));
            variables.push((name.to_ascii_lowercase(), value.clone()));
        }
    }
    variables
}

/// A warning about build arguments that no `ARG` asks for: most likely a typing error.
pub(crate) fn unused(request: &BuildRequest) -> Option<String> {
    let declared = |name: &str| {
        let global = request.dockerfile.global_args.iter().flat_map(|declaration| &declaration.value);
        let instructions = request.dockerfile.stages.iter().flat_map(|stage| &stage.instructions);
        let in_stages = instructions.filter_map(|instruction| match &instruction.value {
            Instruction::Arg(declarations) => Some(declarations),
            _ => None,
        });
        global.chain(in_stages.flatten()).any(|(key, _)| key == name)
    };
    let proxies = proxies(&request.build_args);
    let is_known = |name: &str| {
        let is_proxy = proxies.iter().any(|(key, _)| key == name);
        is_proxy || name == SOURCE_DATE_EPOCH || name.starts_with("BUILDKIT_") || declared(name)
    };
    let unused: Vec<&str> = request.build_args.keys().map(String::as_str).filter(|name| !is_known(name)).collect();
    (!unused.is_empty()).then(|| format!("no `ARG` asks for the build arguments {}", unused.join(", ")))
}

/// The time of images that are given none, in seconds since 1970: 1980-01-01T00:00:01Z, as of Cloud Native Buildpacks. Zip
/// archives cannot hold an earlier one, and there are programs that fail on files from before it.
const DEFAULT_EPOCH: i64 = 315_532_801;

/// The image's time: the build argument `SOURCE_DATE_EPOCH`, given or defaulted before the first `FROM`, else the default.
pub(crate) fn source_date_epoch(request: &BuildRequest, global: &Environment) -> Result<i64, PlanError> {
    const NAME: &str = SOURCE_DATE_EPOCH;
    let given = request.build_args.get(NAME).map(String::as_str).or_else(|| global.get(NAME));
    let Some(text) = given.filter(|text| !text.is_empty()) else { return Ok(DEFAULT_EPOCH) };
    // Later than the year 9999 there is no RFC 3339.
    match text.parse::<i64>() {
        Ok(seconds) if (0..253_402_300_800).contains(&seconds) => Ok(seconds),
        _ => {
            let mut error = request.error(format!("invalid {NAME} `{text}`, expected seconds since 1970"));
            error.hint = Some(format!("set it to a number, for example `{NAME}=$(git log -1 --format=%ct)`"));
            Err(error)
        }
    }
}
