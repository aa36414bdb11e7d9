//! What a Dockerfile says of itself: `cfc build --check` and `--call`, in BuildKit's text and JSON.

use cfc_build_native::{ImageRequest, KnownImages, StoreImages, describe_image, read_dockerfile};
use cfc_dockerfile::{Dockerfile, Span};
use cfc_plan::{BuildRequest, Checked, Outline};
use cfc_store::Store;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::images::build::image_failure;
use crate::images::paint::paint;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Check,
    Outline,
    Targets,
}

/// A question about a Dockerfile.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    method: Method,
    is_json: bool,
}

/// The answer.
pub struct Answer {
    /// To be printed.
    pub text: String,
    /// Whether a check found nothing.
    pub is_good: bool,
}

impl Call {
    /// `outline`, `targets,format=json`, …
    pub fn parse(text: &str) -> Result<Call, Failure> {
        let (method, option) = text.split_once(',').map_or((text, None), |(method, option)| (method, Some(option)));
        let hint = "write check, lint, outline or targets, and `,format=json` for JSON";
        let method = match method {
            "check" | "lint" => Method::Check,
            "outline" => Method::Outline,
            "targets" => Method::Targets,
            _ => return Err(Failure::new(format!("--call `{text}`: there is no such method")).hint(hint)),
        };
        let is_json = match option {
            None | Some("format=text") => false,
            Some("format=json") => true,
            Some(_) => return Err(Failure::new(format!("--call `{text}`: there is no such format")).hint(hint)),
        };
        Ok(Call { method, is_json })
    }

    /// `--check`.
    pub fn check() -> Call {
        Call { method: Method::Check, is_json: false }
    }

    /// Asks it of the Dockerfile of `request`. Nothing is built, and nothing is downloaded.
    pub fn ask(self, store: &Store, request: &ImageRequest) -> Result<Answer, Failure> {
        let text = read_dockerfile(request).map_err(image_failure)?;
        let described = describe_image(request).map_err(image_failure)?;
        let bases = KnownImages(StoreImages::new(store.clone()));
        let source = Source { text: String::from_utf8_lossy(&text).into_owned(), request: &described };
        let (json, shown, is_good) = match self.method {
            Method::Check => {
                let checked = cfc_plan::check(&described, &bases);
                let is_good = checked.warnings.is_empty() && checked.error.is_none();
                (source.checked_json(&checked), source.checked_text(&checked), is_good)
            }
            Method::Outline => {
                let outline = cfc_plan::outline(&described, &bases)?;
                (source.outline_json(&outline), outline_text(&outline), true)
            }
            Method::Targets => (source.targets_json(), targets_text(&described.dockerfile), true),
        };
        let text = if self.is_json { serde_json::to_string_pretty(&json).unwrap_or_default() } else { shown };
        Ok(Answer { text: text.trim_end().to_string(), is_good })
    }
}

/// The Dockerfile.
struct Source<'a> {
    text: String,
    request: &'a BuildRequest,
}

impl Source<'_> {
    fn file(&self) -> String {
        self.request.dockerfile_path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn checked_text(&self, checked: &Checked) -> String {
        let mut text = match checked.warnings.len() {
            0 if checked.error.is_none() => return "Check complete, no warnings found.\n".to_string(),
            0 => String::new(),
            1 => "Check complete, 1 warning has been found!\n".to_string(),
            n => format!("Check complete, {n} warnings have been found!\n"),
        };
        for warning in &checked.warnings {
            let url = if warning.rule.url.is_empty() { String::new() } else { format!(" - {}", warning.rule.url) };
            text += &format!("\nWARNING: {}{url}\n{}\n", warning.rule.name, warning.message);
            text += &paint(&self.file(), &self.text, warning.span);
        }
        if let Some(error) = &checked.error {
            text += &format!("\nERROR: {}\n", error.message);
            let span = error.line.map(Span::line);
            text += &span.map(|span| paint(&self.file(), &self.text, span)).unwrap_or_default();
        }
        text
    }

    fn checked_json(&self, checked: &Checked) -> Value {
        let warnings = checked.warnings.iter().map(|warning| {
            let mut value = json!({
                "ruleName": warning.rule.name,
                "description": warning.rule.description,
                "detail": warning.message,
                "location": location(warning.span),
            });
            if !warning.rule.url.is_empty() {
                value["url"] = json!(warning.rule.url);
            }
            value
        });
        let mut value = json!({
            "warnings": warnings.collect::<Vec<_>>(),
            "sources": [{"filename": self.file(), "language": "Dockerfile", "data": cfc_oci::base64::encode(self.text.as_bytes())}],
        });
        if let Some(error) = &checked.error {
            value["buildError"] = json!({
                "message": error.message,
                "location": error.line.map(|line| location(Span::line(line))),
            });
        }
        value
    }

    fn outline_json(&self, outline: &Outline) -> Value {
        let mount = |mount: &cfc_plan::OutlineMount| {
            let mut value = json!({"name": mount.name, "location": location(mount.span)});
            if mount.is_required {
                value["required"] = json!(true);
            }
            value
        };
        let arguments = outline.arguments.iter().map(|argument| {
            let mut value = json!({"name": argument.name, "location": location(argument.span)});
            set(&mut value, "description", &argument.description);
            set(&mut value, "value", &argument.value);
            value
        });
        let mut value = json!({"sources": [cfc_oci::base64::encode(self.text.as_bytes())]});
        set(&mut value, "name", &outline.name);
        set(&mut value, "description", &outline.description);
        let lists = [
            ("args", arguments.collect::<Vec<_>>()),
            ("secrets", outline.secrets.iter().map(mount).collect()),
            ("ssh", outline.ssh.iter().map(mount).collect()),
        ];
        for (name, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            value[name] = json!(list);
        }
        value
    }

    fn targets_json(&self) -> Value {
        let dockerfile = &self.request.dockerfile;
        let last = dockerfile.stages.len().saturating_sub(1);
        let targets = dockerfile.stages.iter().enumerate().map(|(index, stage)| {
            let mut value = json!({"location": location(stage.span)});
            let name = stage.name.as_deref().unwrap_or_default();
            set(&mut value, "name", name);
            if index == last {
                value["default"] = json!(true);
            }
            set(&mut value, "description", &described(&stage.comments, name));
            set(&mut value, "base", &stage.base);
            set(&mut value, "platform", stage.platform.as_deref().unwrap_or_default());
            value
        });
        json!({"targets": targets.collect::<Vec<_>>(), "sources": [cfc_oci::base64::encode(self.text.as_bytes())]})
    }
}

fn targets_text(dockerfile: &Dockerfile) -> String {
    let last = dockerfile.stages.len().saturating_sub(1);
    let mut rows = vec![vec!["TARGET".to_string(), "DESCRIPTION".to_string()]];
    for (index, stage) in dockerfile.stages.iter().enumerate() {
        let name = stage.name.clone().unwrap_or_default();
        let shown = match (name.as_str(), index == last) {
            ("", true) => "(default)".to_string(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_string(),
        };
        rows.push(vec![shown, described(&stage.comments, &name)]);
    }
    columns(&rows, 1)
}

fn outline_text(outline: &Outline) -> String {
    let mut text = String::new();
    if !outline.name.is_empty() || !outline.description.is_empty() {
        let name = if outline.name.is_empty() { "(default)" } else { &outline.name };
        let mut rows = vec![vec!["TARGET:".to_string(), name.to_string()]];
        if !outline.description.is_empty() {
            rows.push(vec!["DESCRIPTION:".to_string(), outline.description.clone()]);
        }
        text += &(columns(&rows, 1) + "\n");
    }
    if !outline.arguments.is_empty() {
        let mut rows = vec![["BUILD ARG", "VALUE", "DESCRIPTION"].map(str::to_string).to_vec()];
        rows.extend(outline.arguments.iter().map(|it| vec![it.name.clone(), it.value.clone(), it.description.clone()]));
        text += &(columns(&rows, 3) + "\n");
    }
    for (title, mounts) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if mounts.is_empty() {
            continue;
        }
        let mut rows = vec![vec![title.to_string(), "REQUIRED".to_string()]];
        let required = |is_required: bool| if is_required { "true".to_string() } else { String::new() };
        rows.extend(mounts.iter().map(|mount| vec![mount.name.clone(), required(mount.is_required)]));
        text += &(columns(&rows, 3) + "\n");
    }
    text
}

fn described(comments: &[String], name: &str) -> String {
    let named = comments.iter().filter(|_| !name.is_empty());
    let found = named.filter_map(|comment| comment.strip_prefix(name)?.strip_prefix(' '));
    found.map(str::to_string).next().unwrap_or_default()
}

/// Rows as Go's tabwriter sets them: each column as wide as its widest cell and `padding`, the last one as it is.
fn columns(rows: &[Vec<String>], padding: usize) -> String {
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..n_columns).map(|column| width(column).unwrap_or(0) + padding).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().enumerate().map(|(column, cell)| match column + 1 == row.len() {
            true => cell.clone(),
            false => format!("{cell:<width$}", width = widths[column]),
        });
        text += &(cells.collect::<String>() + "\n");
    }
    text
}

fn set(value: &mut Value, key: &str, text: &str) {
    if !text.is_empty() {
        value[key] = json!(text);
    }
}

fn location(span: Span) -> Value {
    json!({"ranges": [{"start": {"line": span.start_line}, "end": {"line": span.end_line}}]})
}
