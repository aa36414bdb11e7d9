//! [`Project`]: what a wrangler config means.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::table::{Findings, Table};
use crate::{Container, classes, container};

/// What a wrangler config means once its environment is chosen and it was found valid.
#[derive(Clone, Debug, PartialEq)]
pub struct Project {
    /// The config file, absolute.
    pub config_path: PathBuf,
    /// The directory that relative paths of the config start from.
    pub directory: PathBuf,
    /// The chosen environment, `None` for the top level.
    pub environment: Option<String>,
    /// The Worker's name; `<name>-<env>` in an environment that does not name itself.
    pub name: String,
    /// The Worker's entry file, absolute.
    pub main: PathBuf,
    /// `YYYY-MM-DD`.
    pub compatibility_date: String,
    /// workerd's flags, in order.
    pub compatibility_flags: Vec<String>,
    /// Variables that the Worker sees in `env`.
    pub vars: BTreeMap<String, Value>,
    /// The containers, in the order of the config.
    pub containers: Vec<Container>,
    /// The Durable Object bindings, in the order of the config.
    pub durable_objects: Vec<DurableObjectBinding>,
    /// The migrations as they were written, in order.
    pub migrations: Vec<Value>,
    /// What was valid but will not do what its author may expect, one sentence each; the caller prints them.
    pub warnings: Vec<String>,
    /// The whole effective config, environment applied: wrangler's own keys and values.
    pub raw: Value,
}

impl Project {
    /// Keys of the config that workerd translates by itself and cfc hands on unread.
    pub const TRANSLATED_KEYS: &[&str] =
        &["exports", "kv_namespaces", "d1_databases", "queues", "workflows", "triggers"];
}

/// One entry of `durable_objects.bindings[]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurableObjectBinding {
    /// The name in `env`.
    pub name: String,
    /// The class.
    pub class_name: String,
    /// The Worker that has the class, when it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script_name: Option<String>,
}

/// Reads the effective config. Where something is missing or wrong the finding is noted, and the project holds
/// something empty instead.
pub(crate) fn read(
    path: &Path,
    env: Option<&str>,
    top_level_name: Option<&str>,
    effective: Map<String, Value>,
    findings: &Findings,
) -> Project {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let table = Table::top(&effective, findings);
    let name = worker_name(&table);
    let durable_objects = durable_objects(&table);
    let migrations = migrations(&table);
    let classes = classes::Classes::read(&table, &name, &durable_objects, &migrations);
    let base_name = top_level_name.unwrap_or(&name);
    let surroundings = container::Surroundings { directory, worker: base_name, environment: env, classes: &classes };
    check_bundler_fields(&table);
    let project = Project {
        config_path: path.to_path_buf(),
        directory: directory.to_path_buf(),
        environment: env.map(str::to_string),
        main: main_file(&table, directory),
        compatibility_date: compatibility_date(&table),
        compatibility_flags: table.strings("compatibility_flags"),
        vars: vars(&table),
        containers: container::read_all(&table, &surroundings),
        durable_objects,
        migrations,
        warnings: Vec::new(),
        name,
        raw: Value::Null,
    };
    Project { raw: Value::Object(effective), ..project }
}

/// `cfc-workers` hands these to the bundler; here only their types are looked at.
fn check_bundler_fields(table: &Table) {
    for field in ["minify", "keep_names"] {
        table.boolean(field);
    }
    for field in ["tsconfig", "jsx_factory", "jsx_fragment"] {
        table.string(field);
    }
    for field in ["define", "alias"] {
        table.string_map(field);
    }
}

fn worker_name(table: &Table) -> String {
    let hint = "use lower-case letters, digits, `-` and `_`, at most 63 of them";
    let Some(name) = table.string("name") else {
        if table.value("name").is_none() {
            table.problem("name", "the Worker has no name", hint);
        }
        return String::new();
    };
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    if name.is_empty() || name.len() > 63 || name.starts_with('-') || !name.bytes().all(is_allowed) {
        table.problem("name", format!("`{name}` cannot name a Worker"), hint);
    }
    name.to_string()
}

fn main_file(table: &Table, directory: &Path) -> PathBuf {
    let Some(main) = table.string("main") else {
        if table.value("main").is_none() {
            table.problem("main", "the Worker has no entry file", "name it, for example `\"main\": \"src/index.js\"`");
        }
        return PathBuf::new();
    };
    let path = directory.join(main);
    if !path.is_file() {
        let what = if path.is_dir() { "is a directory" } else { "does not exist" };
        table.problem(
            "main",
            format!("`{main}` {what} (looked at `{}`)", path.display()),
            "name the Worker's entry file, relative to the config",
        );
    }
    path
}

fn compatibility_date(table: &Table) -> String {
    let hint = "write the day on which the Worker was last tested, for example `\"2025-10-03\"`";
    let Some(date) = table.string("compatibility_date") else {
        if table.value("compatibility_date").is_none() {
            table.problem("compatibility_date", "the Worker has none", hint);
        }
        return String::new();
    };
    let pattern =
        |(index, byte): (usize, u8)| if matches!(index, 4 | 7) { byte == b'-' } else { byte.is_ascii_digit() };
    if date.len() != 10 || !date.bytes().enumerate().all(pattern) {
        table.problem("compatibility_date", format!("expected `YYYY-MM-DD`, found `{date}`"), hint);
    }
    date.to_string()
}

fn vars(table: &Table) -> BTreeMap<String, Value> {
    match table.value("vars") {
        None => BTreeMap::new(),
        Some(Value::Object(vars)) => vars.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        Some(other) => {
            table.problem("vars", format!("expected an object, found {}", crate::table::described(other)), "");
            BTreeMap::new()
        }
    }
}

fn durable_objects(table: &Table) -> Vec<DurableObjectBinding> {
    let Some(durable_objects) = table.object("durable_objects") else { return Vec::new() };
    let bindings = durable_objects.objects("bindings");
    durable_objects.refuse_others();
    bindings.iter().filter_map(binding).collect()
}

fn binding(table: &Table) -> Option<DurableObjectBinding> {
    let name = table.string("name");
    let class_name = table.string("class_name");
    let script_name = table.string("script_name").map(str::to_string);
    if table.value("environment").is_some() {
        table.problem(
            "environment",
            "cfc does not support it",
            "name the Worker, environment included, in `script_name`",
        );
    }
    table.refuse_others();
    for (field, value) in [("name", name), ("class_name", class_name)] {
        if value.is_none() && table.value(field).is_none() {
            table.problem(field, "it is missing", "a Durable Object binding needs `name` and `class_name`");
        }
    }
    Some(DurableObjectBinding { name: name?.to_string(), class_name: class_name?.to_string(), script_name })
}

fn migrations(table: &Table) -> Vec<Value> {
    for migration in table.objects("migrations") {
        if migration.string("tag").is_none() {
            migration.problem("tag", "it is missing", "give each migration a tag of its own, for example `v1`");
        }
        migration.strings("new_classes");
        migration.strings("new_sqlite_classes");
        migration.strings("deleted_classes");
        for renamed in migration.objects("renamed_classes") {
            renamed.string("from");
            renamed.string("to");
            renamed.refuse_others();
        }
        if !migration.objects("transferred_classes").is_empty() {
            migration.problem(
                "transferred_classes",
                "cfc cannot move objects from another Worker",
                "begin with new classes",
            );
        }
        migration.refuse_others();
    }
    table.value("migrations").and_then(Value::as_array).cloned().unwrap_or_default()
}
