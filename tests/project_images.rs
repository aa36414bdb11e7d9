//! `image_build_context` and `image_vars` of a project's containers.

use std::path::PathBuf;

use cfc_oci::Reference;
use cfc_store::Store;

use crate::starter::{APPLICATION, WORKER, ready};
use crate::support::{Home, Platform};

/// The starter project with its Dockerfile in a directory of its own, from where only the named context leads to the files.
fn project(home: &Home) -> PathBuf {
    let project = home.project(WORKER);
    std::fs::create_dir(project.join("docker")).expect("writable");
    std::fs::rename(project.join("Dockerfile"), project.join("docker/Dockerfile.app")).expect("renamed");
    let path = project.join("wrangler.jsonc");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).expect("readable")).expect("JSON without comments");
    let container = &mut config["containers"][0];
    container["image"] = "./docker/Dockerfile.app".into();
    container["image_build_context"] = ".".into();
    container["image_vars"] = serde_json::json!({"GREETING": "Hello from image_vars"});
    std::fs::write(&path, serde_json::to_vec_pretty(&config).expect("JSON")).expect("writable");
    project
}

fn greeting(home: &Home) -> String {
    let store = Store::open(&home.data().join("store")).expect("a store");
    let name = Reference::parse(APPLICATION).expect("a name");
    let image = store.images().resolve(&name).expect("readable").expect("it was built");
    let environment = store.images().load(&image).expect("loads").config.config.env.unwrap_or_default();
    let found = environment.iter().find_map(|entry| entry.strip_prefix("GREETING="));
    found.expect("the Dockerfile sets it").to_string()
}

#[test]
fn a_project_is_built_with_its_context_and_its_variables() {
    if !crate::support::can_sandbox() {
        return;
    }
    let home = Home::new();
    let project = project(&home).display().to_string();
    home.must(&["build", &project]);
    assert_eq!(greeting(&home), "Hello from image_vars");
    home.must(&["build", &project, "--build-arg", "GREETING=Hello from the command line"]);
    assert_eq!(greeting(&home), "Hello from the command line");
}

#[test]
fn the_commands_time_wins_over_the_projects() {
    if !crate::support::can_sandbox() {
        return;
    }
    let home = Home::new();
    let project = project(&home);
    let path = project.join("wrangler.jsonc");
    let text = std::fs::read_to_string(&path).expect("readable");
    let dated = text.replace("\"image_vars\": {", "\"image_vars\": {\"SOURCE_DATE_EPOCH\": \"1600000000\",");
    assert_ne!(dated, text);
    std::fs::write(&path, dated).expect("writable");
    let project = project.display().to_string();
    let created = || {
        let store = Store::open(&home.data().join("store")).expect("a store");
        let name = Reference::parse(APPLICATION).expect("a name");
        let image = store.images().resolve(&name).expect("readable").expect("it was built");
        serde_json::to_value(store.images().load(&image).expect("loads").config).expect("JSON")["created"].clone()
    };
    home.must(&["build", &project]);
    assert_eq!(created(), "2020-09-13T12:26:40Z");
    home.must(&["build", &project, "--timestamp", "1700000000"]);
    assert_eq!(created(), "2023-11-14T22:13:20Z");
}

#[test]
fn a_project_is_deployed_with_its_context_and_its_variables() {
    if !ready() {
        return;
    }
    let home = Home::new();
    let project = project(&home).display().to_string();
    let platform = Platform::start(&home);
    home.must(&["deploy", &project]);
    let (status, body) = platform.ask(WORKER, "alice");
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("\"greeting\":\"Hello from image_vars\""), "{body}");
    platform.stop();
}
