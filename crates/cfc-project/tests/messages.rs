//! What cfc says about a config that cannot be meant. Each case is a change to a config that is fine.

use cfc_project::{ProjectError, load};
use serde_json::{Value, json};

fn error(config: &str, name: &str) -> ProjectError {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(directory.path().join("app")).expect("create");
    for file in ["index.js", "Dockerfile", "app/Dockerfile"] {
        std::fs::write(directory.path().join(file), "").expect("write");
    }
    let path = directory.path().join(name);
    std::fs::write(&path, config).expect("write");
    load(&path, None).expect_err("the config is wrong")
}

fn config() -> Value {
    json!({
        "name": "w", "main": "index.js", "compatibility_date": "2025-10-03",
        "containers": [{ "class_name": "MyContainer", "image": "Dockerfile" }],
        "durable_objects": { "bindings": [{ "name": "C", "class_name": "MyContainer" }] },
        "migrations": [{ "tag": "v1", "new_sqlite_classes": ["MyContainer"] }],
    })
}

/// Sets the value at `pointer` (null removes it) and compares problem and hint.
fn check(pointer: &str, value: Value, expected_problem: &str, expected_hint: &str) {
    let mut config = config();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    config.pointer_mut(parent).expect("it is there")[key] = value;
    let error = error(&config.to_string(), "wrangler.json");
    let directory = format!("{}/", error.path.parent().expect("a parent").display());
    assert_eq!(error.kind.to_string().replace(&directory, ""), expected_problem);
    assert_eq!(error.hints().join("\n").replace(&directory, ""), expected_hint);
}

#[test]
fn unknown_classes() {
    check(
        "/containers/0/class_name",
        json!("MyContaner"),
        "`containers[0].class_name`: no Durable Object class is called `MyContaner`; `durable_objects.bindings` has `MyContainer`",
        "did you mean `MyContainer`?",
    );
    check(
        "/durable_objects",
        Value::Null,
        "`containers[0].class_name`: no Durable Object class is called `MyContainer`",
        r#"bind it: `"durable_objects": { "bindings": [{ "name": "MY_CONTAINER", "class_name": "MyContainer" }] }`"#,
    );
    check(
        "/durable_objects/bindings/0/script_name",
        json!("other"),
        "`containers[0].class_name`: class `MyContainer` belongs to the Worker `other` (`script_name` of its binding)",
        "move the container to the config of `other`",
    );
    check(
        "/migrations",
        Value::Null,
        "`containers[0].class_name`: no migration creates the class `MyContainer`",
        r#"add one: `"migrations": [{ "tag": "v1", "new_sqlite_classes": ["MyContainer"] }]`"#,
    );
}

#[test]
fn images_that_are_none() {
    check(
        "/containers/0/image",
        json!("./app"),
        "`containers[0].image`: `./app` is a directory",
        r#"write `"./app/Dockerfile"`"#,
    );
    check(
        "/containers/0/image",
        json!("./docker/Dockerfile"),
        "`containers[0].image`: there is no Dockerfile at `docker/Dockerfile`",
        "paths are relative to the config",
    );
    check(
        "/containers/0/image",
        json!("Dockerfile.prod"),
        "`containers[0].image`: there is no Dockerfile at `Dockerfile.prod`",
        "paths are relative to the config",
    );
    check(
        "/containers/0/image",
        json!("registry.example/app"),
        "`containers[0].image`: `registry.example/app` is neither a file nor an image with a tag",
        r#"if an image is meant, write its tag (`"registry.example/app:TAG"`); if a Dockerfile is meant, there is none at that path"#,
    );
    check(
        "/containers/0/image",
        json!("https://registry.example/app:1"),
        "`containers[0].image`: `https://registry.example/app:1` begins with `https://`",
        r#"write `"registry.example/app:1"`"#,
    );
    check(
        "/containers/0/image",
        Value::Null,
        "`containers[0].image`: the container has no image",
        r#"name a Dockerfile or an image, for example `"./Dockerfile"`"#,
    );
    check(
        "/containers/0/image_build_context",
        json!("nowhere"),
        "`containers[0].image_build_context`: `nowhere` does not exist (looked at `nowhere`)",
        "paths are relative to the config",
    );
}

#[test]
fn sizes_and_numbers() {
    check(
        "/containers/0/instance_type",
        json!("standrd-1"),
        "`containers[0].instance_type`: there is no instance type `standrd-1`",
        "did you mean `standard-1`?",
    );
    check(
        "/containers/0/instance_type",
        json!("huge"),
        "`containers[0].instance_type`: there is no instance type `huge`",
        "choose one of `lite`, `basic`, `standard-1`, `standard-2`, `standard-3`, `standard-4`, or give `vcpu`, `memory_mib` and `disk_mb`",
    );
    check(
        "/containers/0/instance_type",
        json!({ "memory": 5 }),
        "`containers[0].instance_type.memory`: there is no such field",
        "known here: `vcpu`, `memory_mib`, `disk_mb`",
    );
    check(
        "/containers/0/max_instances",
        json!(-1),
        "`containers[0].max_instances`: expected a whole number, zero or more, found -1",
        "",
    );
    check(
        "/containers/0/rollout_step_percentage",
        json!([50, 20]),
        "`containers[0].rollout_step_percentage`: expected ascending percentages from 10 to 100, the last one 100",
        "for example `[10, 50, 100]`",
    );
}

#[test]
fn keys_that_do_not_exist_or_that_cfc_does_not_support() {
    check(
        "/compatability_date",
        json!("x"),
        "`compatability_date`: there is no such key",
        "did you mean `compatibility_date`?",
    );
    check(
        "/containers/0/max_instance",
        json!(1),
        "`containers[0].max_instance`: there is no such field",
        "did you mean `max_instances`?",
    );
    check(
        "/r2_buckets",
        json!([{ "binding": "B" }]),
        "`r2_buckets`: cfc does not support it",
        "cfc has no such binding: remove it, or reach the service over HTTP",
    );
    check(
        "/name",
        json!("My Worker"),
        "`name`: `My Worker` cannot name a Worker",
        "use lower-case letters, digits, `-` and `_`, at most 63 of them",
    );
    check(
        "/main",
        json!("src.js"),
        "`main`: `src.js` does not exist (looked at `src.js`)",
        "name the Worker's entry file, relative to the config",
    );
}

#[test]
fn every_finding_is_told_at_once() {
    let error = error(r#"{ "name": "w", "bogus": 1, "containers": [{}] }"#, "wrangler.jsonc");
    let text = error.kind.to_string();
    assert_eq!(text.lines().count(), 5, "{text}");
}

#[test]
fn a_syntax_error_has_its_place() {
    let text = error("{\n  \"name\": \n}", "wrangler.jsonc").kind.to_string();
    assert!(text.ends_with("on line 3 column 1"), "{text}");
    let text = error("name = \"w\"\nmain = ", "wrangler.toml").kind.to_string();
    assert!(text.contains("line 2, column 8"), "{text}");
}

#[test]
fn a_missing_environment_lists_those_that_there_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("wrangler.json");
    std::fs::write(&path, r#"{ "env": { "staging": {}, "production": {} } }"#).expect("write");
    let error = load(&path, Some("prod")).expect_err("there is no such environment");
    assert_eq!(error.kind.to_string(), "it has no environment `prod`, only `staging`, `production`");
    assert_eq!(error.hints(), ["add `env.prod` to the config, or choose another `--env`"]);
}
