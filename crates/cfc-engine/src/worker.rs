//! [`WorkerNames`]: what the names that one workerd uses mean here.

use std::collections::BTreeMap;

use cfc_oci::{Descriptor, Reference};
use cfc_runtime::Runtime;

const CONTAINER_PREFIX: &str = "workerd-";
const SIDECAR_SUFFIX: &str = "-proxy";

/// What the names that one Worker's workerd uses mean here.
#[derive(Clone, Debug, Default)]
pub struct WorkerNames {
    /// The Worker, for messages.
    pub worker: String,
    /// Unique keys of Durable Object namespaces, and the application behind each. workerd calls a container
    /// `workerd-<unique key>-<actor id>`.
    pub applications: BTreeMap<String, String>,
    /// Image names as the Worker's configuration has them, and the image behind each. A name that is not here may
    /// still be the image of its application by digest.
    pub images: BTreeMap<String, Descriptor>,
    /// The image name of the sidecar, as the Worker's configuration has it.
    pub sidecar_image: String,
}

impl WorkerNames {
    /// The application of the container `name`: that of the longest unique key that fits.
    pub(crate) fn application_of(&self, name: &str) -> Option<&str> {
        let rest = name.strip_prefix(CONTAINER_PREFIX)?;
        let fits = |key: &str| rest.strip_prefix(key).is_some_and(|id| id.starts_with('-'));
        let keys = self.applications.iter().filter(|(key, _)| fits(key));
        keys.max_by_key(|(key, _)| key.len()).map(|(_, application)| application.as_str())
    }

    /// The image that `name` names for `application`.
    pub(crate) fn image(&self, name: &str, application: &str, runtime: &Runtime) -> Option<Descriptor> {
        self.images.get(name).cloned().or_else(|| {
            let digest = Reference::parse(name).ok()?.digest?;
            runtime.application(application).map(|application| application.image).filter(|image| image.digest == digest)
        })
    }
}

/// Whether it is a name as workerd gives them, and no id.
pub(crate) fn is_full_name(name: &str) -> bool {
    name.starts_with(CONTAINER_PREFIX)
}

/// The Durable Object's id in the name of its container.
pub(crate) fn object_id(name: &str) -> &str {
    name.rsplit_once('-').map_or(name, |(_, id)| id)
}

/// The container beside which the sidecar `name` stands.
pub(crate) fn beside(name: &str) -> Option<&str> {
    name.strip_suffix(SIDECAR_SUFFIX)
}

/// The name of the sidecar of the container `name`.
pub(crate) fn sidecar_of(name: &str) -> String {
    format!("{name}{SIDECAR_SUFFIX}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unique_key_wins() {
        let applications = [("app-C", "short"), ("app-C-2", "long")];
        let applications = applications.map(|(key, name)| (key.to_string(), name.to_string())).into();
        let names = WorkerNames { applications, ..WorkerNames::default() };
        assert_eq!(names.application_of("workerd-app-C-0af3"), Some("short"));
        assert_eq!(names.application_of("workerd-app-C-2-0af3"), Some("long"));
        assert_eq!(names.application_of("workerd-other-0af3"), None);
        assert_eq!(names.application_of("app-C-0af3"), None);
    }
}
