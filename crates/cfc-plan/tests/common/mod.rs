//! Lowers a Dockerfile's text with made-up base images.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;

use cfc_oci::{ContainerConfig, Descriptor, Digest, ImageConfig, Platform, media_type};
use cfc_plan::{BaseImage, BaseImageError, BaseImages, BuildRequest, Plan, PlanError, RunSettings};

/// Knows `base` and `shell`, and notes what it was asked for.
#[derive(Default)]
pub struct Images {
    pub asked: Mutex<Vec<String>>,
    /// The trigger of the image `trigger`, in place of `RUN x`.
    pub trigger: Option<&'static str>,
}

impl BaseImages for Images {
    fn find(&self, reference: &str, platform: &Platform) -> Result<BaseImage, BaseImageError> {
        self.asked.lock().expect("no panic").push(format!("{reference} {platform}"));
        let mut container = ContainerConfig {
            env: Some(vec!["PATH=/bin".to_string(), "FROM_BASE=1".to_string()]),
            cmd: Some(vec!["base-cmd".to_string()]),
            entrypoint: Some(vec!["base-entrypoint".to_string()]),
            working_dir: "/work".to_string(),
            user: "app".to_string(),
            ..ContainerConfig::default()
        };
        match reference {
            "base" => {}
            "shell" => container.shell = Some(vec!["/bin/bash".to_string(), "-ec".to_string()]),
            "trigger" => container.on_build = Some(vec![self.trigger.unwrap_or("RUN x").to_string()]),
            _ => {
                return Err(BaseImageError {
                    message: "it is not in the store".to_string(),
                    hint: Some("build it first".to_string()),
                    source: None,
                });
            }
        }
        let config = ImageConfig {
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            config: container,
            ..ImageConfig::default()
        };
        let digest = Digest::of(reference.as_bytes());
        Ok(BaseImage { manifest: Descriptor::new(media_type::MANIFEST, digest, 1), config })
    }
}

pub fn request(dockerfile: &str) -> BuildRequest {
    BuildRequest {
        dockerfile: cfc_dockerfile::parse(dockerfile.as_bytes()).expect("the Dockerfile parses"),
        dockerfile_path: PathBuf::from("Dockerfile"),
        target: None,
        build_args: BTreeMap::new(),
        labels: BTreeMap::new(),
        platform: Platform::new("linux", "amd64"),
        allowed: BTreeSet::new(),
        ignore: None,
        contexts: BTreeMap::new(),
        run: RunSettings::default(),
        fresh_stages: BTreeSet::new(),
    }
}

pub fn with_args(dockerfile: &str, args: &[(&str, &str)]) -> BuildRequest {
    let build_args = args.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    BuildRequest { build_args, ..request(dockerfile) }
}

#[allow(dead_code)]
pub fn plan(dockerfile: &str) -> Plan {
    lower(&request(dockerfile)).expect("the Dockerfile lowers")
}

pub fn lower(request: &BuildRequest) -> Result<Plan, PlanError> {
    cfc_plan::lower(request, &Images::default())
}

/// `created_by` of each history entry; those without a layer in parentheses.
#[allow(dead_code)]
pub fn history(plan: &Plan) -> Vec<String> {
    let entry = |entry: &cfc_oci::History| {
        let text = entry.created_by.clone().unwrap_or_default();
        if entry.empty_layer { format!("({text})") } else { text }
    };
    plan.config.history.iter().map(entry).collect()
}
