//! [`find_config`]: which file is the project's config.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Problem, ProjectError, ProjectErrorKind};

/// The names of a config, in wrangler's order of preference.
const NAMES: [&str; 3] = ["wrangler.json", "wrangler.jsonc", "wrangler.toml"];
/// Written by build tools (the Vite plugin): `{"configPath": "…"}` names the config that they generated.
const REDIRECT: &str = ".wrangler/deploy/config.json";

/// Finds the config for work in the directory `start`, as wrangler does: the nearest `wrangler.json` upward, else the
/// nearest `wrangler.jsonc`, else the nearest `wrangler.toml`; a parent's `.json` beats a nearer `.jsonc`. A build tool's
/// `.wrangler/deploy/config.json` upward of `start` points elsewhere. Where `start` is a file, it is the config.
pub fn find_config(start: &Path) -> Result<PathBuf, ProjectError> {
    let absolute = std::path::absolute(start).map_err(|error| ProjectError::read(start, error))?;
    let metadata = std::fs::metadata(&absolute).map_err(|error| ProjectError::read(&absolute, error))?;
    if metadata.is_file() {
        return Ok(absolute);
    }
    if let Some(redirect) = nearest(&absolute, REDIRECT) {
        return follow(&redirect);
    }
    NAMES
        .iter()
        .find_map(|name| nearest(&absolute, name))
        .ok_or(ProjectError { path: absolute, kind: ProjectErrorKind::NotFound })
}

fn nearest(directory: &Path, name: &str) -> Option<PathBuf> {
    directory.ancestors().map(|directory| directory.join(name)).find(|path| path.is_file())
}

fn follow(redirect: &Path) -> Result<PathBuf, ProjectError> {
    let text = std::fs::read_to_string(redirect).map_err(|error| ProjectError::read(redirect, error))?;
    let content: Value = serde_json::from_str(&text).map_err(|error| ProjectError {
        path: redirect.to_path_buf(),
        kind: ProjectErrorKind::Syntax(error.to_string()),
    })?;
    let invalid = |message: String| {
        let hint = Some(format!("build the project again, or remove `{}`", redirect.display()));
        let problem = Problem { field: "configPath".to_string(), message, hint };
        ProjectError { path: redirect.to_path_buf(), kind: ProjectErrorKind::Invalid(vec![problem]) }
    };
    let relative =
        content["configPath"].as_str().ok_or_else(|| invalid("expected the path of a config".to_string()))?;
    let target = redirect.parent().unwrap_or(Path::new("/")).join(relative);
    target.canonicalize().map_err(|error| invalid(format!("`{}`: {error}", target.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, text: &str) {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("create");
        std::fs::write(path, text).expect("write");
    }

    #[test]
    fn a_json_config_further_up_wins_over_a_nearer_jsonc() {
        let root = tempfile::tempdir().expect("a directory");
        let inner = root.path().join("a/b");
        write(&inner, "wrangler.toml", "");
        assert_eq!(find_config(&inner).expect("found"), inner.join("wrangler.toml"));
        write(&root.path().join("a"), "wrangler.jsonc", "");
        assert_eq!(find_config(&inner).expect("found"), root.path().join("a/wrangler.jsonc"));
        write(root.path(), "wrangler.json", "");
        assert_eq!(find_config(&inner).expect("found"), root.path().join("wrangler.json"));
    }

    #[test]
    fn a_build_tool_may_redirect_to_the_config_it_generated() {
        let root = tempfile::tempdir().expect("a directory");
        write(root.path(), "wrangler.json", "");
        write(root.path(), "dist/wrangler.json", "");
        write(root.path(), REDIRECT, r#"{"configPath": "../../dist/wrangler.json"}"#);
        let found = find_config(root.path()).expect("found");
        assert!(found.ends_with("dist/wrangler.json"), "{}", found.display());
    }

    #[test]
    fn a_file_is_the_config_itself() {
        let root = tempfile::tempdir().expect("a directory");
        write(root.path(), "other.toml", "");
        assert_eq!(find_config(&root.path().join("other.toml")).expect("found"), root.path().join("other.toml"));
    }
}
