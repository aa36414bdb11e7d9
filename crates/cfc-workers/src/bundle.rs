//! [`bundle`]: a project's Worker as modules that workerd loads.
//!
//! The options of esbuild are those that wrangler and `workerd compile` use, so the same sources make the same Worker.

use std::path::{Path, PathBuf};
use std::process::Command;

use cfc_project::Project;
use serde_json::Value;

use crate::{Toolchain, WorkersError, WorkersErrorKind};

/// The modules of one version of a Worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The name of the module that workerd starts with.
    pub main_module: String,
    /// Every module, the main one first.
    pub modules: Vec<Module>,
}

/// One module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name: a relative path, as imports write it.
    pub name: String,
    /// `application/javascript+module`, `application/javascript`, `text/plain`, `application/octet-stream`,
    /// `application/wasm`, `application/json`, `text/x-python` or `application/source-map` (which workerd ignores).
    pub content_type: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The bare names of Node's modules, which workerd has when `nodejs_compat` is on.
const NODE_MODULES: &[&str] = &[
    "assert",
    "async_hooks",
    "buffer",
    "child_process",
    "cluster",
    "console",
    "constants",
    "crypto",
    "dgram",
    "diagnostics_channel",
    "dns",
    "domain",
    "events",
    "fs",
    "http",
    "http2",
    "https",
    "inspector",
    "module",
    "net",
    "os",
    "path",
    "perf_hooks",
    "process",
    "punycode",
    "querystring",
    "readline",
    "repl",
    "stream",
    "string_decoder",
    "sys",
    "timers",
    "tls",
    "trace_events",
    "tty",
    "url",
    "util",
    "v8",
    "vm",
    "wasi",
    "worker_threads",
    "zlib",
];

/// CommonJS packages call `require` for Node's modules; an ES module has none, so this one is put before the bundle.
const NODE_REQUIRE: &str = "var require = (id) => {
  const builtin = process.getBuiltinModule(String(id));
  if (builtin === undefined) {
    const error = new Error(`Cannot find module '${id}'`);
    error.code = \"MODULE_NOT_FOUND\";
    throw error;
  }
  return builtin;
};";

/// Bundles the project's Worker with esbuild, as wrangler does. Dependencies resolve from the project;
/// `@cloudflare/containers` comes from the toolchain when the project has not installed it. Blocks for about 0.1 s.
pub fn bundle(project: &Project, toolchain: &Toolchain) -> Result<Bundle, WorkersError> {
    let subject = format!("bundle the Worker `{}`", project.main.display());
    let output = tempfile::tempdir().map_err(|error| WorkersError::new(&subject, WorkersErrorKind::Io(error)))?;
    let esbuild = Command::new(&toolchain.esbuild)
        .arg(&project.main)
        .args(arguments(project, output.path()))
        .current_dir(&project.directory)
        .env("NODE_PATH", toolchain.directory.join("node_modules"))
        .output()
        .map_err(WorkersError::io("run", &toolchain.esbuild))?;
    let said = String::from_utf8_lossy(&esbuild.stderr).trim().to_string();
    if !esbuild.status.success() {
        return Err(does_not_compile(subject, said));
    }
    if !said.is_empty() {
        tracing::warn!("esbuild on `{}`:\n{said}", project.main.display());
    }
    collect(output.path())
}

fn does_not_compile(subject: String, said: String) -> WorkersError {
    let unresolved = said.split("Could not resolve \"").nth(1).and_then(|rest| rest.split('"').next());
    let hint = match unresolved {
        Some(name) if is_node_module(name) => Some("add \"nodejs_compat\" to `compatibility_flags`".to_string()),
        Some(name) if !name.starts_with('.') => {
            Some(format!("run `npm install` in the project, so that `{name}` is there"))
        }
        _ => None,
    };
    let error = WorkersError::new(subject, WorkersErrorKind::Tool(said));
    WorkersError { hint, ..error }
}

fn is_node_module(name: &str) -> bool {
    NODE_MODULES.contains(&name.split('/').next().unwrap_or_default())
}

fn arguments(project: &Project, output: &Path) -> Vec<String> {
    let text = |key: &str| project.raw.get(key).and_then(Value::as_str);
    let flag = |key: &str| project.raw.get(key).and_then(Value::as_bool);
    let pairs = |key: &str| project.raw.get(key).and_then(Value::as_object).into_iter().flatten();

    let mut arguments: Vec<String> = [
        "--bundle",
        "--format=esm",
        "--platform=browser",
        "--target=es2024",
        "--conditions=workerd,worker,browser",
        "--entry-names=index",
        "--log-level=warning",
        "--color=false",
        "--external:node:*",
        "--external:cloudflare:*",
        "--external:workerd:*",
        "--loader:.js=jsx",
        "--loader:.mjs=jsx",
        "--loader:.cjs=jsx",
        "--loader:.wasm=copy",
        "--loader:.bin=copy",
        "--loader:.txt=text",
        "--loader:.html=text",
        "--loader:.sql=text",
        "--define:navigator.userAgent=\"Cloudflare-Workers\"",
        "--define:process.env.NODE_ENV=\"production\"",
    ]
    .map(String::from)
    .to_vec();
    arguments.push(format!("--outdir={}", output.display()));
    // The `Container` class finds its static handlers by class name, so names must survive.
    if flag("keep_names").unwrap_or(true) {
        arguments.push("--keep-names".to_string());
    }
    if flag("minify").unwrap_or(false) {
        arguments.push("--minify".to_string());
    }
    if project.compatibility_flags.iter().any(|flag| flag.starts_with("nodejs_compat")) {
        arguments.extend(
            NODE_MODULES.iter().flat_map(|name| [format!("--external:{name}"), format!("--external:{name}/*")]),
        );
        arguments.push(format!("--banner:js={NODE_REQUIRE}"));
    }
    arguments.extend(text("tsconfig").map(|file| format!("--tsconfig={}", project.directory.join(file).display())));
    arguments.extend(text("jsx_factory").map(|name| format!("--jsx-factory={name}")));
    arguments.extend(text("jsx_fragment").map(|name| format!("--jsx-fragment={name}")));
    for (name, value) in pairs("define") {
        arguments.extend(value.as_str().map(|value| format!("--define:{name}={value}")));
    }
    for (name, value) in pairs("alias") {
        arguments.extend(value.as_str().map(|value| format!("--alias:{name}={value}")));
    }
    arguments
}

/// What esbuild wrote: `index.js`, and copies of the modules that are not JavaScript.
fn collect(output: &Path) -> Result<Bundle, WorkersError> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(output)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(WorkersError::io("read", output))?;
    let main_module = "index.js";
    paths.sort_by_key(|path| (path.file_name() != Some(main_module.as_ref()), path.clone()));
    let mut modules = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let content_type = match path.extension().and_then(|extension| extension.to_str()) {
            Some("js") => "application/javascript+module",
            Some("wasm") => "application/wasm",
            Some("bin") => "application/octet-stream",
            _ => {
                let reason = format!("the Worker imports what esbuild made `{name}` of, and workerd cannot load that");
                return Err(WorkersError::new("bundle the Worker", WorkersErrorKind::Unsupported(reason)));
            }
        };
        let bytes = std::fs::read(&path).map_err(WorkersError::io("read", &path))?;
        modules.push(Module { name, content_type: content_type.to_string(), bytes });
    }
    Ok(Bundle { main_module: main_module.to_string(), modules })
}
