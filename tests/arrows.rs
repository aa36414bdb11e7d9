//! Which crate may name which. A new arrow is a decision: change the table in the commit that needs it, and say why in
//! ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A crate and the cfc crates it may depend on, `cfc-oci` aside, which is free to all.
const ARROWS: &[(&str, &[&str])] = &[
    ("cfc-oci", &[]),
    ("cfc-dockerfile", &[]),
    ("cfc-project", &[]),
    ("cfc-scheduler", &[]),
    ("cfc-sandbox", &[]),
    ("cfc-relay", &[]),
    ("cfc-egress", &["cfc-sandbox"]),
    ("cfc-store", &[]),
    ("cfc-plan", &["cfc-dockerfile"]),
    ("cfc-build-native", &["cfc-plan", "cfc-dockerfile", "cfc-store", "cfc-sandbox", "cfc-egress"]),
    ("cfc-build-buildkit", &["cfc-plan", "cfc-dockerfile", "cfc-store"]),
    ("cfc-transfer", &["cfc-store"]),
    ("cfc-runtime", &["cfc-scheduler", "cfc-store", "cfc-sandbox", "cfc-relay", "cfc-transfer"]),
    ("cfc-engine", &["cfc-runtime", "cfc-scheduler", "cfc-egress"]),
    ("cfc-workers", &["cfc-project"]),
    ("cfc-control", &["cfc-project", "cfc-scheduler"]),
    ("cfc-gateway", &[]),
    ("cfc-registry", &[]),
];

/// May use everything: it wires the others together.
const TOP: &str = "cfc-cli";

#[test]
fn arrows_between_crates_stay_within_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut table: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, may_use) in ARROWS {
        table.insert(name, may_use.iter().copied().chain(["cfc-oci"]).collect());
    }
    let mut mistakes = Vec::new();
    for manifest in manifests(&root) {
        let (name, used) = cfc_dependencies(&manifest);
        if name == TOP {
            continue;
        }
        match table.get(name.as_str()) {
            None => mistakes.push(format!("{name} has no row in tests/arrows.rs")),
            Some(allowed) => {
                let extra = used.iter().filter(|used| !allowed.contains(used.as_str()));
                mistakes.extend(extra.map(|extra| format!("{name} may not use {extra}")));
            }
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

fn manifests(root: &Path) -> Vec<std::path::PathBuf> {
    let crates = std::fs::read_dir(root.join("crates")).expect("crates/ is beside this test");
    let mut found: Vec<_> = crates.map(|entry| entry.expect("readable").path().join("Cargo.toml")).collect();
    found.push(root.join("registry/Cargo.toml"));
    found
}

/// The name of the package, and the cfc crates its code (not its tests) depends on.
fn cfc_dependencies(manifest: &Path) -> (String, Vec<String>) {
    let text = std::fs::read_to_string(manifest).unwrap_or_else(|error| panic!("{}: {error}", manifest.display()));
    let value: toml::Table = text.parse().unwrap_or_else(|error| panic!("{}: {error}", manifest.display()));
    let name = value["package"]["name"].as_str().expect("a name is a string").to_string();
    let dependencies = value.get("dependencies").and_then(toml::Value::as_table);
    let used = dependencies.into_iter().flat_map(|table| table.keys());
    (name, used.filter(|key| key.starts_with("cfc-")).cloned().collect())
}
