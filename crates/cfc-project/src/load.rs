//! [`load`]: a config file to a [`Project`].

use std::path::Path;

use jsonc_parser::ParseOptions;
use serde_json::{Map, Value};

use crate::table::Findings;
use crate::{Project, ProjectError, ProjectErrorKind, environment, project};

/// Reads the config at `path`, applies `env.<name>` when `env` names one, and validates the outcome. The error holds
/// every finding at once. Reads no other file but looks whether those that the config names are there.
pub fn load(path: &Path, env: Option<&str>) -> Result<Project, ProjectError> {
    let path = std::path::absolute(path).map_err(|error| ProjectError::read(path, error))?;
    let text = std::fs::read_to_string(&path).map_err(|error| ProjectError::read(&path, error))?;
    let fail = |kind| ProjectError { path: path.clone(), kind };
    let written =
        parse(&path, text.trim_start_matches('\u{feff}')).map_err(|text| fail(ProjectErrorKind::Syntax(text)))?;

    let findings = Findings::default();
    let effective = environment::apply(&written, env, &findings).map_err(fail)?;
    let top_level_name = written.get("name").and_then(Value::as_str);
    let project = project::read(&path, env, top_level_name, effective, &findings);
    let (problems, warnings) = findings.into_parts();
    if problems.is_empty() {
        Ok(Project { warnings, ..project })
    } else {
        Err(fail(ProjectErrorKind::Invalid(problems)))
    }
}

/// The text as an object. A name that does not end in `.toml` is read as JSON with comments, as wrangler does.
fn parse(path: &Path, text: &str) -> Result<Map<String, Value>, String> {
    let is_toml = path.extension().is_some_and(|extension| extension == "toml");
    let value = if is_toml {
        let table: toml::Table = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_string())?;
        from_toml(toml::Value::Table(table))
    } else {
        jsonc_parser::parse_to_serde_value(text, &jsonc()).map_err(|error| error.to_string())?
    };
    match value {
        Value::Object(object) => Ok(object),
        _ => Err("expected an object".to_string()),
    }
}

/// JSON, comments and trailing commas: what wrangler and workerd read.
fn jsonc() -> ParseOptions {
    ParseOptions {
        allow_comments: true,
        allow_trailing_commas: true,
        allow_loose_object_property_names: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    }
}

/// TOML says everything that JSON does, and dates, which become text.
fn from_toml(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Datetime(date) => Value::String(date.to_string()),
        toml::Value::Array(items) => items.into_iter().map(from_toml).collect(),
        toml::Value::Table(table) => table.into_iter().map(|(key, value)| (key, from_toml(value))).collect(),
    }
}
