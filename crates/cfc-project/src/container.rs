//! [`Container`]: one entry of `containers[]`.

use std::collections::BTreeMap;
use std::path::Path;

use cfc_oci::RepositoryName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::classes::Classes;
use crate::table::{Table, described, whole};
use crate::{ImageSource, InstanceType, Rollout, image, instance_type, rollout};

/// One entry of `containers[]`, with wrangler's defaults filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// The application's name: `<worker>-<class>` in lower case unless the config names it. Also names the image's
    /// repository, so it is a valid one.
    pub name: String,
    /// The Durable Object class that owns the instances.
    pub class_name: String,
    /// Where the image comes from.
    pub image: ImageSource,
    /// Build arguments of the Dockerfile.
    pub image_vars: BTreeMap<String, String>,
    /// How many instances may run at once.
    pub max_instances: u32,
    /// The size of each instance.
    pub instance_type: InstanceType,
    /// How a new version reaches running instances.
    pub rollout: Rollout,
    /// `default`, `moon` or `regional`.
    pub scheduling_policy: String,
    /// Where instances may run; recorded, without effect on one machine.
    pub constraints: Constraints,
    /// What cfc records and gives to the control API as it is: `ssh` (also from its old name `wrangler_ssh`),
    /// `authorized_keys`, `trusted_user_ca_keys`, `affinities`, `unsafe`. Keys are those of the config.
    pub extra: BTreeMap<String, Value>,
}

/// Where instances may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Constraints {
    /// Regions, upper case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<String>,
    /// Cities, lower case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cities: Vec<String>,
    /// Tiers; empty means no constraint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<u64>,
    /// `eu` or `fedramp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jurisdiction: Option<String>,
}

/// How many instances may run at once when the config does not say.
const DEFAULT_MAX_INSTANCES: u32 = 20;
const REGIONS: &[&str] = &["ENAM", "WNAM", "EEUR", "WEUR", "APAC", "SAM", "ME", "OC", "AFR"];

/// What a container's fields are read against.
pub(crate) struct Surroundings<'a> {
    pub directory: &'a Path,
    /// The Worker's name without the environment.
    pub worker: &'a str,
    pub environment: Option<&'a str>,
    pub classes: &'a Classes,
}

/// Reads `containers[]`.
pub(crate) fn read_all(top: &Table, surroundings: &Surroundings) -> Vec<Container> {
    let mut containers: Vec<Container> = Vec::new();
    for table in top.objects("containers") {
        let Some(container) = read(&table, surroundings) else { continue };
        if containers.iter().any(|other| other.name == container.name) {
            table.problem(
                "name",
                format!("another container is called `{}` too", container.name),
                "give each container a `name` of its own",
            );
        }
        if containers.iter().any(|other| other.class_name == container.class_name) {
            table.problem(
                "class_name",
                format!("class `{}` has another container too", container.class_name),
                "give each container a class of its own",
            );
        }
        containers.push(container);
    }
    containers
}

/// `None` when something is wrong; all findings are noted first.
fn read(table: &Table, surroundings: &Surroundings) -> Option<Container> {
    let class_name = class_name(table, surroundings);
    let name = class_name.as_deref().and_then(|class| name(table, class, surroundings));
    let (deprecated_image, deprecated_size) = deprecated_configuration(table);
    let image = image::read(table, deprecated_image.as_deref(), surroundings.directory);
    let image_vars = table.string_map("image_vars");
    let max_instances = max_instances(table);
    let instance_type = instance_type::read(table, deprecated_size);
    let rollout = rollout::read(table, max_instances);
    let scheduling_policy = table.one_of("scheduling_policy", &["default", "moon", "regional"]).unwrap_or("default");
    let constraints = constraints(table);
    let extra = extra(table);
    if table.value("durable_objects").is_some() {
        table.problem("durable_objects", "cfc does not support it", "name the class with `class_name`");
    }
    if !image_vars.is_empty() && matches!(image, Some(ImageSource::Reference(_))) {
        table.warning("image_vars", "has no effect: the image is not built from a Dockerfile");
    }
    table.refuse_others();
    Some(Container {
        name: name?,
        class_name: class_name?,
        image: image?,
        image_vars,
        max_instances,
        instance_type: instance_type?,
        rollout,
        scheduling_policy: scheduling_policy.to_string(),
        constraints,
        extra,
    })
}

fn class_name(table: &Table, surroundings: &Surroundings) -> Option<String> {
    let attached = table.string("name").and_then(|name| surroundings.classes.attached_to(name));
    let class = table.string("class_name").or(attached);
    match class {
        Some(class) => surroundings.classes.check(table, class),
        None if table.value("class_name").is_none() => {
            let hint = "name the Durable Object class that extends `Container`";
            table.problem("class_name", "the container belongs to no class", hint);
        }
        None => {}
    }
    class.map(str::to_string)
}

fn name(table: &Table, class: &str, surroundings: &Surroundings) -> Option<String> {
    let environment = surroundings.environment.map(|name| format!("-{name}")).unwrap_or_default();
    let default = || format!("{}-{class}{environment}", surroundings.worker).to_lowercase().replace(' ', "-");
    let name = table.string("name").map_or_else(default, str::to_string);
    if name.parse::<RepositoryName>().is_err() {
        let hint = "use lower-case letters, digits, and single `-`, `_` or `.` between them";
        table.problem(
            "name",
            format!("`{name}` cannot name a container, since its images could not bear that name"),
            hint,
        );
        return None;
    }
    Some(name)
}

fn max_instances(table: &Table) -> u32 {
    if table.value("instances").is_some() {
        table.warning(
            "instances",
            "has no effect; `max_instances` says how many may run, and each starts when it is called",
        );
    }
    let max_instances = table.whole_number("max_instances").unwrap_or(u64::from(DEFAULT_MAX_INSTANCES));
    u32::try_from(max_instances).unwrap_or(u32::MAX)
}

/// The deprecated `configuration`: its image, and the size it gives.
fn deprecated_configuration(table: &Table) -> (Option<String>, Option<InstanceType>) {
    let Some(configuration) = table.object("configuration") else { return (None, None) };
    table.warning("configuration", "is deprecated; use `image` and `instance_type`");
    let image = configuration.string("image").map(str::to_string);
    let vcpu = configuration.positive_number("vcpu");
    let memory_mib = configuration.whole_number("memory_mib");
    let disk = configuration.object("disk");
    let disk_mb = disk.as_ref().and_then(|disk| disk.whole_number("size_mb"));
    if let Some(disk) = disk {
        disk.refuse_others();
    }
    configuration.refuse_others();
    let has_size = vcpu.is_some() || memory_mib.is_some() || disk_mb.is_some();
    (image, has_size.then(|| InstanceType::custom(vcpu, memory_mib, disk_mb)))
}

fn constraints(table: &Table) -> Constraints {
    let Some(constraints) = table.object("constraints") else { return Constraints::default() };
    let regions: Vec<String> = constraints.strings("regions").iter().map(|region| region.to_uppercase()).collect();
    for region in regions.iter().filter(|region| !REGIONS.contains(&region.as_str())) {
        constraints.problem(
            "regions",
            format!("there is no region `{region}`"),
            format!("regions are {}", crate::table::list(REGIONS)),
        );
    }
    let tiers = match (constraints.value("tiers"), constraints.value("tier")) {
        (Some(Value::Array(items)), None) => items.iter().filter_map(whole).collect(),
        (None, Some(tier)) => whole(tier).into_iter().collect(),
        (None, None) => Vec::new(),
        (Some(other), _) => {
            constraints.problem(
                "tiers",
                format!("expected a list of numbers, without `tier`, found {}", described(other)),
                "",
            );
            Vec::new()
        }
    };
    let read = Constraints {
        regions,
        cities: constraints.strings("cities").iter().map(|city| city.to_lowercase()).collect(),
        tiers,
        jurisdiction: constraints.one_of("jurisdiction", &["eu", "fedramp"]).map(str::to_string),
    };
    constraints.refuse_others();
    if read != Constraints::default() {
        table.warning("constraints", "are recorded, but all instances run on this machine");
    }
    read
}

fn extra(table: &Table) -> BTreeMap<String, Value> {
    let mut extra = BTreeMap::new();
    for (field, alias) in [
        ("ssh", "ssh"),
        ("wrangler_ssh", "ssh"),
        ("authorized_keys", "authorized_keys"),
        ("trusted_user_ca_keys", "trusted_user_ca_keys"),
        ("affinities", "affinities"),
        ("unsafe", "unsafe"),
    ] {
        if let Some(value) = table.value(field) {
            table.warning(field, "is recorded, but has no effect yet");
            extra.insert(alias.to_string(), value.clone());
        }
    }
    for key in table.objects("authorized_keys") {
        let is_ed25519 = key.string("public_key").is_some_and(|key| key.starts_with("ssh-ed25519"));
        if !is_ed25519 {
            key.problem(
                "public_key",
                "expected a key that begins with `ssh-ed25519`",
                "make one with `ssh-keygen -t ed25519`",
            );
        }
        if key.string("name").is_none() {
            key.problem("name", "it is missing", "name whose key it is");
        }
        key.refuse_others();
    }
    extra
}
