//! [`Classes`]: the Durable Object classes of a Worker, gathered from bindings, migrations and `exports`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::DurableObjectBinding;
use crate::table::Table;

/// The Durable Object classes that a config speaks of.
pub(crate) struct Classes {
    /// Classes of this Worker that a binding or `exports` names.
    own: BTreeSet<String>,
    /// Classes of other Workers that a binding names, with the Worker.
    foreign: BTreeMap<String, String>,
    /// What the migrations or `exports` made, and whether with SQLite.
    created: BTreeMap<String, bool>,
    /// `exports[Class].container`: the class of each container that is attached so.
    attached: BTreeMap<String, String>,
}

impl Classes {
    pub fn read(table: &Table, worker: &str, bindings: &[DurableObjectBinding], migrations: &[Value]) -> Classes {
        let is_own =
            |binding: &&DurableObjectBinding| binding.script_name.as_ref().is_none_or(|script| script == worker);
        let (own, foreign): (Vec<_>, Vec<_>) = bindings.iter().partition(is_own);
        let foreign = foreign.into_iter().map(|b| (b.class_name.clone(), b.script_name.clone().unwrap_or_default()));
        let mut classes = Classes {
            own: own.into_iter().map(|binding| binding.class_name.clone()).collect(),
            foreign: foreign.collect(),
            created: created(migrations),
            attached: BTreeMap::new(),
        };
        for (class, export) in table.value("exports").and_then(Value::as_object).into_iter().flatten() {
            if export["type"] == "durable-object" {
                classes.own.insert(class.clone());
                classes.created.insert(class.clone(), export["storage"] == "sqlite");
                let container = export["container"].as_str();
                classes.attached.extend(container.map(|container| (container.to_string(), class.clone())));
            }
        }
        classes
    }

    /// The class to which `exports` attaches the container of this name.
    pub fn attached_to(&self, container: &str) -> Option<&str> {
        self.attached.get(container).map(String::as_str)
    }

    /// Notes what is wrong with `class` as the class of a container.
    pub fn check(&self, container: &Table, class: &str) {
        let known = || self.own.iter().map(String::as_str).collect::<Vec<_>>();
        if !self.own.contains(class) {
            let (message, hint) = match self.foreign.get(class) {
                Some(worker) => (
                    format!("class `{class}` belongs to the Worker `{worker}` (`script_name` of its binding)"),
                    format!("move the container to the config of `{worker}`"),
                ),
                None if self.own.is_empty() => (
                    format!("no Durable Object class is called `{class}`"),
                    format!(
                        "bind it: `\"durable_objects\": {{ \"bindings\": [{{ \"name\": \"{}\", \"class_name\": \"{class}\" }}] }}`",
                        upper_snake(class)
                    ),
                ),
                None => (
                    format!(
                        "no Durable Object class is called `{class}`; `durable_objects.bindings` has {}",
                        crate::table::list(&known())
                    ),
                    crate::keys::similar(class, known().into_iter())
                        .map_or("bind the class in `durable_objects.bindings`".to_string(), |similar| {
                            format!("did you mean `{similar}`?")
                        }),
                ),
            };
            container.problem("class_name", message, hint);
            return;
        }
        match self.created.get(class) {
            Some(true) => {}
            Some(false) => container.warning(
                "class_name",
                format!("class `{class}` has no SQLite storage, which the `Container` class of `@cloudflare/containers` needs"),
            ),
            None => container.problem(
                "class_name",
                format!("no migration creates the class `{class}`"),
                format!("add one: `\"migrations\": [{{ \"tag\": \"v1\", \"new_sqlite_classes\": [\"{class}\"] }}]`"),
            ),
        }
    }
}

/// The classes that exist after all migrations, and whether with SQLite.
fn created(migrations: &[Value]) -> BTreeMap<String, bool> {
    let mut created = BTreeMap::new();
    for migration in migrations {
        let names = |key: &str| migration[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        created.extend(names("new_classes").map(|class| (class.to_string(), false)));
        created.extend(names("new_sqlite_classes").map(|class| (class.to_string(), true)));
        for renamed in migration["renamed_classes"].as_array().into_iter().flatten() {
            let (from, to) = (renamed["from"].as_str(), renamed["to"].as_str());
            if let (Some(has_sqlite), Some(to)) = (from.and_then(|from| created.remove(from)), to) {
                created.insert(to.to_string(), has_sqlite);
            }
        }
        names("deleted_classes").for_each(|class| {
            created.remove(class);
        });
    }
    created
}

/// `MyContainer` as `MY_CONTAINER`.
fn upper_snake(class: &str) -> String {
    let mut name = String::new();
    for letter in class.chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_uppercase());
    }
    name
}
