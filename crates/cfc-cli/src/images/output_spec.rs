//! [`Output`]: where an image goes, as `--output` says it. Text alone: nothing is opened here, and the fuzz targets take in
//! this very file (`fuzz/targets.rs`).

use std::path::PathBuf;

use cfc_store::ArchiveKind;

/// What becomes of an image besides its place in the store.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// A tar of the image for other tools.
    Archive(ArchiveKind, Destination),
    /// An OCI layout as a directory.
    Layout(PathBuf),
    /// The root filesystem as a tar.
    Tar(Destination),
    /// The root filesystem as a directory.
    Local(PathBuf),
    /// The registry that the image's names say.
    Registry,
}

/// Where a single file goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Destination {
    Stdout,
    File(PathBuf),
}

/// `type=TYPE[,dest=PATH]`, a directory alone, or `-` for a tar on stdout, as Docker reads it: fields with a comma stand in
/// quotes. The text says what is wrong.
pub fn parse(text: &str) -> Result<Output, String> {
    if text == "-" {
        return Ok(Output::Tar(Destination::Stdout));
    }
    if !text.contains('=') {
        return if text.is_empty() { Err("it is empty".to_string()) } else { Ok(Output::Local(PathBuf::from(text))) };
    }
    let (mut kind, mut dest, mut is_archive, mut pushes) = (None, None, true, false);
    for field in fields(text)? {
        let (key, value) = field.split_once('=').ok_or_else(|| format!("`{field}` is not KEY=VALUE"))?;
        match (key, value) {
            ("type", value) => kind = Some(value.to_string()),
            ("dest", value) => dest = Some(value.to_string()),
            ("tar", "true" | "false") => is_archive = value == "true",
            ("push", "true") => pushes = true,
            _ => return Err(format!("`{field}` is not supported")),
        }
    }
    let kind = kind.ok_or("it has no `type`")?;
    if !is_archive && kind != "oci" {
        return Err("only `type=oci` can be without `tar`".to_string());
    }
    if pushes && !matches!(kind.as_str(), "image" | "registry") {
        return Err("`push=true` is not supported".to_string());
    }
    match kind.as_str() {
        "oci" if !is_archive => Ok(Output::Layout(directory(dest)?)),
        "oci" => Ok(Output::Archive(ArchiveKind::Oci, destination(dest)?)),
        "docker" => Ok(Output::Archive(ArchiveKind::Docker, destination(dest)?)),
        "tar" => Ok(Output::Tar(destination(dest)?)),
        "local" => Ok(Output::Local(directory(dest)?)),
        "registry" | "image" if dest.is_some() => Err("a registry has no `dest`".to_string()),
        "registry" => Ok(Output::Registry),
        "image" if pushes => Ok(Output::Registry),
        "image" => Err("the image is in cfc's store in any case; `push=true` also pushes it".to_string()),
        other => Err(format!("there is no type `{other}`")),
    }
}

fn destination(dest: Option<String>) -> Result<Destination, String> {
    match dest.as_deref() {
        None => Err("it has no `dest`".to_string()),
        Some("") => Err("its `dest` is empty".to_string()),
        Some("-") => Ok(Destination::Stdout),
        Some(path) => Ok(Destination::File(PathBuf::from(path))),
    }
}

fn directory(dest: Option<String>) -> Result<PathBuf, String> {
    match destination(dest)? {
        Destination::Stdout => Err("a directory cannot go to stdout".to_string()),
        Destination::File(path) => Ok(path),
    }
}

/// The fields of a line of CSV: one that begins with a quote goes up to the next, and two of them are one.
fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => unquoted(quoted)?,
            None => {
                let (field, _) = rest.split_once(',').unwrap_or((rest, ""));
                (field.to_string(), &rest[field.len()..])
            }
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err(format!("after a field in quotes comes a comma, not `{after}`")),
        }
    }
}

/// What is in quotes, and what comes behind them.
fn unquoted(text: &str) -> Result<(String, &str), String> {
    let mut field = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('"') {
        field += before;
        match after.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None => return Ok((field, after)),
        }
    }
    Err("a quote has no end".to_string())
}
