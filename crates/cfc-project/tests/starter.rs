//! The starter project, and what environments and defaults make of a config.

use std::path::{Path, PathBuf};

use cfc_project::{ImageSource, Project, RolloutKind, find_config, load};
use serde_json::{Value, json};

fn starter() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/projects/container-starter")
}

/// A project whose config is `config` in JSON, beside a Worker and a Dockerfile.
fn project(config: Value, env: Option<&str>) -> Project {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["index.js", "Dockerfile"] {
        std::fs::write(directory.path().join(name), "").expect("write");
    }
    let path = directory.path().join("wrangler.json");
    std::fs::write(&path, config.to_string()).expect("write");
    load(&path, env).unwrap_or_else(|error| panic!("{error}: {}", error.kind))
}

fn config() -> Value {
    json!({
        "name": "w", "main": "index.js", "compatibility_date": "2025-10-03",
        "containers": [{ "class_name": "C", "image": "Dockerfile" }],
        "durable_objects": { "bindings": [{ "name": "C", "class_name": "C" }] },
        "migrations": [{ "tag": "v1", "new_sqlite_classes": ["C"] }],
    })
}

#[test]
fn the_starter_means_the_same_in_both_syntaxes() {
    let found = find_config(&starter()).expect("it has a config");
    assert!(found.ends_with("wrangler.jsonc"), "{}", found.display());
    let jsonc = load(&found, None).expect("the JSONC is valid");
    let toml = load(&starter().join("wrangler.toml"), None).expect("the TOML is valid");
    assert_eq!(jsonc.warnings, Vec::<String>::new());
    let without_files = |project: Project| {
        let mut raw = project.raw.clone();
        raw.as_object_mut().expect("an object").remove("$schema");
        Project { config_path: PathBuf::new(), raw, ..project }
    };
    assert_eq!(without_files(jsonc), without_files(toml));
}

#[test]
fn defaults_are_those_of_wrangler() {
    let project = project(config(), None);
    let container = &project.containers[0];
    assert_eq!(container.name, "w-c");
    assert_eq!(container.max_instances, 20);
    assert_eq!(container.instance_type.name.as_deref(), Some("lite"));
    assert_eq!(
        (container.rollout.step_percentages.as_slice(), container.rollout.uniform),
        ([10, 100].as_slice(), false)
    );
    assert_eq!(container.rollout.kind, RolloutKind::FullAuto);
    let ImageSource::Dockerfile { path, context } = &container.image else { panic!("{:?}", container.image) };
    assert_eq!(path, &project.directory.join("Dockerfile"));
    assert_eq!(context, &project.directory);
}

#[test]
fn an_image_that_is_no_file_is_a_reference() {
    let mut config = config();
    config["containers"][0]["image"] = json!("localhost:5000/team/app:v1");
    config["containers"][0]["instance_type"] = json!({ "vcpu": 2, "memory_mib": 512 });
    let project = project(config, None);
    assert!(
        matches!(&project.containers[0].image, ImageSource::Reference(image) if image.to_string() == "localhost:5000/team/app:v1")
    );
    let size = &project.containers[0].instance_type;
    assert_eq!((size.name.as_deref(), size.vcpu, size.memory_mib, size.disk_mb), (None, 2.0, 512, 2000));
}

#[test]
fn an_environment_inherits_the_entry_file_but_no_containers() {
    let mut config = config();
    config["vars"] = json!({ "A": "top" });
    config["env"] = json!({ "staging": { "durable_objects": { "bindings": [] } } });
    let project = project(config.clone(), Some("staging"));
    assert_eq!((project.name.as_str(), project.environment.as_deref()), ("w-staging", Some("staging")));
    assert!(project.main.ends_with("index.js"));
    assert!(project.containers.is_empty() && project.durable_objects.is_empty() && project.vars.is_empty());
    assert!(project.warnings.iter().any(|warning| warning.starts_with("`containers`: only the top level has it")));
    assert_eq!(project.raw.get("env"), None);

    for key in ["containers", "durable_objects"] {
        config["env"]["staging"][key] = config[key].clone();
    }
    let project = self::project(config, Some("staging"));
    assert_eq!(project.containers[0].name, "w-c-staging");
}

#[test]
fn a_class_declared_by_exports_needs_neither_binding_nor_migration() {
    let mut config = config();
    let object = config.as_object_mut().expect("an object");
    object.remove("durable_objects");
    object.remove("migrations");
    object.insert(
        "exports".to_string(),
        json!({ "C": { "type": "durable-object", "storage": "sqlite", "container": "box" } }),
    );
    object.insert("containers".to_string(), json!([{ "name": "box", "image": "Dockerfile" }]));
    assert_eq!(project(config, None).containers[0].class_name, "C");
}

#[test]
fn a_rollout_that_cfc_does_not_carry_out_is_a_warning() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(directory.path().join("src")).expect("makes");
    std::fs::write(directory.path().join("src/index.js"), "").expect("writes");
    std::fs::write(directory.path().join("Dockerfile"), "FROM scratch\n").expect("writes");
    let config = directory.path().join("wrangler.json");
    let text = r#"{ "name": "a", "main": "src/index.js", "compatibility_date": "2025-10-03",
        "containers": [ { "class_name": "C", "image": "./Dockerfile", "rollout_step_percentage": 100 } ],
        "durable_objects": { "bindings": [ { "class_name": "C", "name": "C" } ] },
        "migrations": [ { "new_sqlite_classes": ["C"], "tag": "v1" } ] }"#;
    std::fs::write(&config, text).expect("writes");
    let project = load(&config, None).expect("a valid config");
    let warned = project.warnings.iter().filter(|warning| warning.contains("rollout_step_percentage")).count();
    assert_eq!(warned, 1, "{:?}", project.warnings);
}

#[test]
fn a_custom_size_that_cloudflare_would_refuse_is_taken_with_a_warning_that_names_the_bound() {
    let warnings = |size: Value| {
        let mut config = config();
        config["containers"][0]["instance_type"] = size;
        project(config, None).warnings
    };
    for fine in [json!("dev"), json!("standard-4")] {
        let named = warnings(fine);
        assert!(named.iter().all(|warning| warning.contains("is now called")), "{named:?}");
    }
    // Disk and memory have no ratio.
    assert_eq!(warnings(json!({ "vcpu": 1, "memory_mib": 3072, "disk_mb": 20000 })), Vec::<String>::new());
    assert_eq!(warnings(json!({ "vcpu": 2, "memory_mib": 6144, "disk_mb": 20000 })), Vec::<String>::new());
    assert_eq!(
        warnings(json!({ "vcpu": 5, "memory_mib": 16384, "disk_mb": 30000 })),
        [
            "`containers[0].instance_type.vcpu`: 5 is outside of 1 to 4: cfc runs it, Cloudflare would refuse it",
            "`containers[0].instance_type.memory_mib`: 16384 is more than 12288: cfc runs it, Cloudflare would refuse it",
            "`containers[0].instance_type.disk_mb`: 30000 is more than 20000: cfc runs it, Cloudflare would refuse it",
        ]
    );
    assert_eq!(
        warnings(json!({ "vcpu": 1.5, "memory_mib": 4000 })),
        [
            "`containers[0].instance_type.memory_mib`: 4000 is too little, 1.5 vCPU need 4608, 3072 each: cfc runs it, Cloudflare would refuse it",
        ]
    );
    // What is left out is as in `lite`, as wrangler has it.
    let lite = warnings(json!({ "disk_mb": 100 }));
    assert!(lite.iter().any(|warning| warning.contains("vcpu`: 0.0625 is outside of 1 to 4")), "{lite:?}");
}
