//! Containers in a list, as `GET /containers/json` tells them, and the filters that a client may ask for.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cfc_oci::ContainerConfig;
use cfc_runtime::{InstanceView, Phase};
use serde_json::{Value, json};

use super::{IMAGE_LABEL, status};
use crate::container::id_of;
use crate::worker::object_id;

/// One container. `disk_bytes` is what it has written, where that was asked for and is known.
pub(crate) fn entry(view: &InstanceView, image: Option<&ContainerConfig>, disk_bytes: Option<u64>) -> Value {
    let words = image.map(|image| view.spec.command_in(image)).unwrap_or_default();
    let created = view.created.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut entry = json!({
        "Id": id_of(&view.spec.name),
        "Names": [format!("/{}", view.spec.name)],
        "Image": image_name(view),
        "ImageID": view.spec.image.digest.to_string(),
        "Command": words.join(" "),
        "Created": created,
        "Ports": [],
        "Labels": view.spec.labels,
        "State": status(&view.phase),
        "Status": since(view),
        "HostConfig": { "NetworkMode": "none" },
        "NetworkSettings": { "Networks": {} },
        "Mounts": [],
    });
    if let Some(bytes) = disk_bytes {
        entry["SizeRw"] = json!(bytes);
        entry["SizeRootFs"] = json!(bytes);
    }
    entry
}

fn image_name(view: &InstanceView) -> &str {
    view.spec.labels.get(IMAGE_LABEL).map_or("", String::as_str)
}

/// `Up 5 minutes`, `Exited (3) 2 hours ago`, `Created`.
fn since(view: &InstanceView) -> String {
    // A clock that was set back makes it no time at all.
    let ago = |time: SystemTime| in_words(time.elapsed().unwrap_or_default());
    match &view.phase {
        Phase::Created | Phase::Starting => "Created".to_string(),
        Phase::Stopped(report) => format!("Exited ({}) {} ago", report.code, ago(view.since)),
        Phase::Removed(_) => "Dead".to_string(),
        _ => format!("Up {}", ago(view.started.unwrap_or(view.since))),
    }
}

/// As Docker's client says durations.
fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds, seconds / 60, seconds / 3_600) {
        (0, ..) => "Less than a second".to_string(),
        (1, ..) => "1 second".to_string(),
        (2..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_string(),
        (_, minutes @ 2..60, _) => format!("{minutes} minutes"),
        (_, _, 1) => "About an hour".to_string(),
        (_, _, hours @ 2..48) => format!("{hours} hours"),
        (_, _, hours) => format!("{} days", hours / 24),
    }
}

/// What a list is to be cut down to: for each filter the values, one of which must fit (of labels all).
#[derive(Debug, Default)]
pub(crate) struct Filters {
    wanted: BTreeMap<String, Vec<String>>,
}

/// Why a list cannot be cut down so.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FilterProblem {
    Malformed(String),
    NotThere(String),
}

const KNOWN: [&str; 9] = ["id", "name", "label", "status", "ancestor", "exited", "before", "since", "health"];

impl Filters {
    /// Reads `{"status": ["running"]}`, or its older form `{"status": {"running": true}}`.
    pub fn parse(text: &str) -> Result<Filters, FilterProblem> {
        let malformed = |problem: String| FilterProblem::Malformed(format!("malformed filters: {problem}"));
        let read: BTreeMap<String, Value> = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        let mut wanted = BTreeMap::new();
        for (key, values) in read {
            let values: Vec<String> = match values {
                Value::Array(values) => values.iter().filter_map(|value| value.as_str().map(str::to_string)).collect(),
                Value::Object(values) => {
                    values.into_iter().filter(|(_, is_on)| *is_on == json!(true)).map(|(v, _)| v).collect()
                }
                other => return Err(malformed(format!("expected a list for `{key}`, found {other}"))),
            };
            if !KNOWN.contains(&key.as_str()) {
                return Err(FilterProblem::NotThere(format!("the filter `{key}` of lists")));
            }
            if key == "name" && values.iter().any(|value| !is_plain(value)) {
                return Err(FilterProblem::NotThere(
                    "regular expressions as the filter `name` (`^` and `$` aside)".to_string(),
                ));
            }
            if key == "exited" && values.iter().any(|value| value.parse::<i32>().is_err()) {
                return Err(malformed("expected exit codes for `exited`".to_string()));
            }
            wanted.insert(key, values);
        }
        Ok(Filters { wanted })
    }

    /// Whether they say something about containers that do not run.
    pub fn are_about_state(&self) -> bool {
        self.wanted.contains_key("status")
    }

    /// Whether `view`, one of `all`, is wanted.
    pub fn fit(&self, view: &InstanceView, all: &[InstanceView]) -> bool {
        self.wanted.iter().all(|(key, values)| {
            let fits = |value: &String| fits(key, value, view, all);
            // A filter without values asks for nothing.
            values.is_empty() || if key == "label" { values.iter().all(fits) } else { values.iter().any(fits) }
        })
    }
}

fn fits(key: &str, value: &str, view: &InstanceView, all: &[InstanceView]) -> bool {
    let name = &view.spec.name;
    let of = |other: &InstanceView| id_of(&other.spec.name).starts_with(value) || other.spec.name == value;
    let created = all.iter().find(|other| of(other)).map(|other| other.created);
    match key {
        "id" => id_of(name).starts_with(value) || object_id(name).starts_with(value),
        "name" => fits_name(name, value),
        "label" => match value.split_once('=') {
            Some((key, value)) => view.spec.labels.get(key).is_some_and(|found| found == value),
            None => view.spec.labels.contains_key(value),
        },
        "status" => status(&view.phase) == value,
        "ancestor" => is_ancestor(value, image_name(view), &view.spec.image.digest.to_string()),
        "exited" => view.phase.exit().is_some_and(|exit| exit.code.to_string() == value),
        "before" => created.is_some_and(|created| view.created < created),
        "since" => created.is_some_and(|created| view.created > created),
        "health" => value == "none",
        _ => false,
    }
}

/// Whether a name has this text in it; at its beginning after `^`, at its end before `$`.
fn fits_name(name: &str, text: &str) -> bool {
    let (from_start, text) = text.strip_prefix('^').map_or((false, text), |text| (true, text));
    let (to_end, text) = text.strip_suffix('$').map_or((false, text), |text| (true, text));
    let text = text.strip_prefix('/').unwrap_or(text);
    match (from_start, to_end) {
        (true, true) => name == text,
        (true, false) => name.starts_with(text),
        (false, true) => name.ends_with(text),
        (false, false) => name.contains(text),
    }
}

fn is_plain(pattern: &str) -> bool {
    !pattern.contains(['*', '+', '?', '(', ')', '[', ']', '{', '}', '|', '\\'])
}

/// Whether an image is meant by `value`: its name, that without tag and digest, or the beginning of its digest.
fn is_ancestor(value: &str, name: &str, digest: &str) -> bool {
    let without_digest = name.split('@').next().unwrap_or(name);
    let last_slash = without_digest.rfind('/').map_or(0, |index| index + 1);
    let tag = without_digest[last_slash..].find(':').map(|index| last_slash + index);
    let repository = tag.map_or(without_digest, |index| &without_digest[..index]);
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    let begins = value.len() >= 12 && (hex.starts_with(value) || digest.starts_with(value));
    value == name || value == without_digest || value == repository || begins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_said_as_dockers_client_says_them() {
        let words = [0, 1, 59, 60, 119, 120, 3_599, 3_600, 7_200, 172_800].map(|s| in_words(Duration::from_secs(s)));
        let expected = [
            "Less than a second",
            "1 second",
            "59 seconds",
            "About a minute",
            "About a minute",
            "2 minutes",
            "59 minutes",
            "About an hour",
            "2 hours",
            "2 days",
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn both_forms_of_filters_are_read_and_unknown_ones_named() {
        assert!(Filters::parse(r#"{"status":["running"],"label":{"a=b":true}}"#).is_ok());
        let problem = Filters::parse(r#"{"network":["x"]}"#).expect_err("there are no networks");
        assert_eq!(problem, FilterProblem::NotThere("the filter `network` of lists".to_string()));
        assert!(matches!(Filters::parse(r#"{"name":["a.*"]}"#), Err(FilterProblem::NotThere(_))));
        for malformed in ["", "[]", r#"{"status":"running"}"#, r#"{"exited":["x"]}"#] {
            assert!(matches!(Filters::parse(malformed), Err(FilterProblem::Malformed(_))), "{malformed}");
        }
    }

    #[test]
    fn names_fit_in_part_and_anchored() {
        let name = "workerd-app-C-0af3";
        for text in ["app", "^workerd", "0af3$", "^/workerd-app-C-0af3$", "/workerd"] {
            assert!(fits_name(name, text), "{text}");
        }
        for text in ["^app", "app$", "other"] {
            assert!(!fits_name(name, text), "{text}");
        }
    }

    #[test]
    fn an_image_has_several_names() {
        let digest = "sha256:0123456789abcdef";
        for value in [
            "reg.example:5000/app:1@sha256:0123",
            "reg.example:5000/app:1",
            "reg.example:5000/app",
            digest,
            "0123456789ab",
        ] {
            assert!(is_ancestor(value, "reg.example:5000/app:1@sha256:0123", digest), "{value}");
        }
        assert!(!is_ancestor("app", "reg.example:5000/app:1", digest) && !is_ancestor("0123", "app", digest));
    }
}
