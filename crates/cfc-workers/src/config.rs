//! [`write_config`]: a [`WorkerVersion`] as the binary config of `workerd serve`.
//!
//! workerd itself translates a wrangler config, bindings and all, but refuses the key `containers`. So it gets the
//! version as a wrangler config without that key and with an empty main module, and `patch.rs` adds to the message what
//! is missing. Nothing of a version becomes a file name here.
//!
//! ```text
//! dir/config.bin    the config; replaced as a whole
//! dir/do/           the state: `<unique key>/<object id>.sqlite`, `kv/`, `d1/`, `queues/`, `cron/`
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::message::{self, Object};
use crate::{ContainerBinding, Toolchain, WorkerVersion, WorkersError, WorkersErrorKind, patch};

/// Where `workerd compile` puts state: below the directory of the wrangler config.
const COMPILED_STATE: &str = "/.wrangler/state/workerd";

/// What [`write_config`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// The binary config.
    pub path: PathBuf,
    /// The key of each Durable Object class of the Worker, by class. A renamed class keeps its first key. workerd names
    /// an object's container `workerd-<unique key>-<object id>`.
    pub unique_keys: BTreeMap<String, String>,
}

/// Writes `dir/config.bin` for `workerd serve --binary`. Containers of the Worker are asked from the engine that listens
/// on the unix socket `engine_socket`; their sidecar is the image `egress_image`. State lives in `dir/do`. Blocks for
/// about 50 ms.
pub fn write_config(
    toolchain: &Toolchain,
    dir: &Path,
    version: &WorkerVersion,
    engine_socket: &Path,
    egress_image: &str,
) -> Result<WorkerConfig, WorkersError> {
    std::fs::create_dir_all(dir).map_err(WorkersError::io("create", dir))?;
    let dir = dir.canonicalize().map_err(WorkersError::io("open", dir))?;
    let compiled = compile(toolchain, &dir, version)?;
    let mut config = message::read(&compiled).map_err(|reason| unexpected(version, reason))?;

    let modules = main_first(version)?;
    patch::set_modules(&mut config, &version.name, modules.into_iter())
        .map_err(|reason| WorkersError::new(subject(version), WorkersErrorKind::Unsupported(reason)))?
        .ok_or_else(|| unexpected(version, "it has no Worker of that name"))?;
    let unique_keys = set_images(&mut config, version)?;
    patch::set_engine(&mut config, &version.name, &socket_address(engine_socket), egress_image)
        .ok_or_else(|| unexpected(version, "it has no Worker of that name"))?;
    let state = dir.join("do");
    let place = |compiled: &str| {
        let (_, below) = compiled.split_once(COMPILED_STATE)?;
        Some(format!("{}{below}", state.to_str()?))
    };
    let places = patch::relocate_disks(&mut config, &place)
        .ok_or_else(|| unexpected(version, "it keeps state where cfc does not expect it"))?;
    for place in std::iter::once(state).chain(places.values().map(PathBuf::from)) {
        std::fs::create_dir_all(&place).map_err(WorkersError::io("create", &place))?;
    }

    let path = dir.join("config.bin");
    let fresh = tempfile::NamedTempFile::new_in(&dir).map_err(WorkersError::io("create a file in", &dir))?;
    std::fs::write(fresh.path(), message::write(&config)).map_err(WorkersError::io("write", fresh.path()))?;
    fresh.persist(&path).map_err(|error| WorkersError::io("write", &path)(error.error))?;
    Ok(WorkerConfig { path, unique_keys })
}

/// The key of a Durable Object class that was never renamed: workerd names an object's container
/// `workerd-<unique key>-<object id>`.
pub fn unique_key(worker: &str, class: &str) -> String {
    format!("{worker}-{class}")
}

/// How KJ, workerd's library, writes the address of a unix socket.
fn socket_address(socket: &Path) -> String {
    format!("unix:{}", socket.display())
}

fn subject(version: &WorkerVersion) -> String {
    format!("configure workerd for `{}`", version.name)
}

fn unexpected(version: &WorkerVersion, reason: &str) -> WorkersError {
    let text = format!("what `workerd compile` wrote is not understood: {reason}");
    WorkersError::new(subject(version), WorkersErrorKind::Tool(text))
        .hint("is workerd the pinned version? `cfc setup` installs it")
}

fn compile(toolchain: &Toolchain, dir: &Path, version: &WorkerVersion) -> Result<Vec<u8>, WorkersError> {
    let build = tempfile::Builder::new()
        .prefix(".compile-")
        .tempdir_in(dir)
        .map_err(WorkersError::io("create a directory in", dir))?;
    let wrangler_config = build.path().join("wrangler.json");
    let config = wrangler_json(version)?.to_string();
    std::fs::write(&wrangler_config, config).map_err(WorkersError::io("write", &wrangler_config))?;
    let main = build.path().join("main.mjs");
    std::fs::write(&main, "").map_err(WorkersError::io("write", &main))?;
    let output = Command::new(&toolchain.workerd)
        .args(["compile", "--config-only", "wrangler.json"])
        .current_dir(build.path())
        .env_clear()
        .output()
        .map_err(WorkersError::io("run", &toolchain.workerd))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
    Err(WorkersError::new(subject(version), WorkersErrorKind::Tool(said)))
}

/// The version as a wrangler config that workerd accepts.
fn wrangler_json(version: &WorkerVersion) -> Result<Value, WorkersError> {
    let mut bindings = Vec::new();
    for binding in &version.durable_objects {
        let elsewhere = binding.script_name.as_ref().filter(|script| **script != version.name);
        if let Some(script) = elsewhere {
            let reason = format!(
                "the Durable Object binding `{}` names class `{}` of another Worker, `{script}`",
                binding.name, binding.class_name
            );
            return Err(WorkersError::new(subject(version), WorkersErrorKind::Unsupported(reason)).hint(
                "cfc runs each Worker in a process of its own; bind classes of the same Worker, without `script_name`",
            ));
        }
        bindings.push(json!({ "name": binding.name, "class_name": binding.class_name }));
    }
    let mut config = json!({
        "name": version.name,
        "main": "main.mjs",
        "no_bundle": true,
        "compatibility_date": version.compatibility_date,
        "compatibility_flags": version.compatibility_flags,
        "vars": version.vars,
        "durable_objects": { "bindings": bindings },
        "migrations": version.migrations,
    });
    for (key, value) in &version.more {
        config[key] = value.clone();
    }
    Ok(config)
}

fn main_first(version: &WorkerVersion) -> Result<Vec<&crate::Module>, WorkersError> {
    let is_main = |module: &&crate::Module| module.name == version.bundle.main_module;
    let is_loaded = |module: &&crate::Module| module.content_type != "application/source-map";
    let modules = version.bundle.modules.iter().filter(is_loaded);
    let (mut ordered, others): (Vec<_>, Vec<_>) = modules.partition(is_main);
    if ordered.is_empty() {
        let reason = format!("its main module `{}` is not among its modules", version.bundle.main_module);
        return Err(WorkersError::new(subject(version), WorkersErrorKind::Unsupported(reason)));
    }
    ordered.extend(others);
    Ok(ordered)
}

/// Gives each container class its image; returns the key of each class.
fn set_images(config: &mut Object, version: &WorkerVersion) -> Result<BTreeMap<String, String>, WorkersError> {
    let namespaces =
        patch::namespaces(config, &version.name).ok_or_else(|| unexpected(version, "it has no Worker of that name"))?;
    let mut unique_keys = BTreeMap::new();
    for mut namespace in namespaces {
        let Some(class) = namespace.class_name() else { continue };
        if let Some(container) = version.containers.iter().find(|container| container.class_name == class) {
            namespace.set_image(&container.image);
        }
        if let Some(key) = namespace.unique_key() {
            unique_keys.insert(class, key);
        }
    }
    let lacks_namespace = |container: &&ContainerBinding| !unique_keys.contains_key(&container.class_name);
    if let Some(container) = version.containers.iter().find(lacks_namespace) {
        let reason = format!("container class `{}` is no Durable Object class of the Worker", container.class_name);
        return Err(WorkersError::new(subject(version), WorkersErrorKind::Unsupported(reason))
            .hint("name it in a migration (`new_sqlite_classes`) and in `durable_objects.bindings`"));
    }
    Ok(unique_keys)
}
