//! Which value of a key counts when an environment is chosen, and which keys there may be at all.

use serde_json::{Map, Value};

use crate::ProjectErrorKind;
use crate::keys::{self, KEYS, Scope, Use};
use crate::table::Findings;

/// The config as it counts in the environment `env` (`None`: the top level), without `env` itself.
pub(crate) fn apply(
    written: &Map<String, Value>,
    env: Option<&str>,
    findings: &Findings,
) -> Result<Map<String, Value>, ProjectErrorKind> {
    let environments = written.get("env").and_then(Value::as_object);
    if written.get("env").is_some_and(|env| !env.is_object()) {
        findings.problem("env", "expected an object of environments", "");
    }
    check_keys(written, "", Scope::Top, findings);
    let Some(name) = env else {
        return Ok(without_env(written.clone()));
    };
    let known = || environments.into_iter().flatten().map(|(name, _)| name.clone()).collect();
    let chosen = environments.and_then(|environments| environments.get(name));
    let chosen = chosen.ok_or_else(|| ProjectErrorKind::NoSuchEnvironment(name.to_string(), known()))?;
    let Some(chosen) = chosen.as_object() else {
        findings.problem(format!("env.{name}"), "expected an object", "");
        return Ok(without_env(written.clone()));
    };
    check_keys(chosen, &format!("env.{name}."), Scope::Environment, findings);
    Ok(merge(written, chosen, name, findings))
}

fn without_env(mut config: Map<String, Value>) -> Map<String, Value> {
    config.remove("env");
    config
}

fn merge(
    written: &Map<String, Value>,
    chosen: &Map<String, Value>,
    environment: &str,
    findings: &Findings,
) -> Map<String, Value> {
    let mut effective = Map::new();
    for key in KEYS.iter().filter(|key| key.name != "env") {
        let top = written.get(key.name);
        let own = chosen.get(key.name);
        let value = match key.scope {
            Scope::Top => top,
            Scope::Inherited => own.or(top),
            Scope::Environment => own,
        };
        if key.scope == Scope::Environment && own.is_none() && top.is_some() {
            let message = format!(
                "only the top level has it, and environments do not inherit it; repeat it in `env.{environment}` if it is needed there"
            );
            findings.warning(key.name, message);
        }
        effective.extend(value.map(|value| (key.name.to_string(), value.clone())));
    }
    let names_itself = chosen.contains_key("name");
    if let (false, Some(name)) = (names_itself, written.get("name").and_then(Value::as_str)) {
        effective.insert("name".to_string(), format!("{name}-{environment}").into());
    }
    effective
}

/// Finds fault with keys that do not exist, or not here, or that cfc cannot honour.
fn check_keys(config: &Map<String, Value>, prefix: &str, place: Scope, findings: &Findings) {
    let in_environment = place == Scope::Environment;
    for (name, value) in config {
        let field = format!("{prefix}{name}");
        let Some(key) = keys::find(name) else {
            let similar = keys::similar(name, KEYS.iter().map(|key| key.name));
            let hint = similar
                .map_or("remove it: wrangler has no such key".to_string(), |key| format!("did you mean `{key}`?"));
            findings.problem(field, "there is no such key", hint);
            continue;
        };
        if in_environment && key.scope == Scope::Top {
            findings.problem(field, "an environment cannot have it", "move it to the top level");
            continue;
        }
        match key.used {
            Use::Refused(hint) if !is_empty(value) => findings.problem(field, "cfc does not support it", hint),
            Use::Ignored(reason) if !reason.is_empty() && !is_empty(value) => {
                findings.warning(&field, format!("has no effect: {reason}"));
            }
            _ => {}
        }
    }
}

/// A value that asks for nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}
