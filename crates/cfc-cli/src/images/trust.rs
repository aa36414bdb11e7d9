//! What a build is trusted with: `--secret`, `--ssh` and `--allow`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use cfc_plan::{Entitlement, SecretSource};

use crate::args::Build;
use crate::failure::Failure;

/// Secrets, agents and entitlements of a build.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Secrets by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// Sockets of ssh agents by id.
    pub ssh: BTreeMap<String, PathBuf>,
    /// What the Dockerfile may do.
    pub allowed: BTreeSet<Entitlement>,
}

impl Trust {
    /// What the command line says.
    pub fn parse(arguments: &Build) -> Result<Trust, Failure> {
        let mut trust = Trust::default();
        for text in &arguments.secrets {
            let (id, source) = secret(text)?;
            trust.secrets.insert(id, source);
        }
        for text in &arguments.ssh {
            let (id, socket) = agent(text)?;
            trust.ssh.insert(id, socket);
        }
        for text in &arguments.allow {
            trust.allowed.insert(entitlement(text)?);
        }
        // As with buildx: whoever asks for this machine's network for all steps allows it.
        if arguments.network.as_deref() == Some("host") {
            trust.allowed.insert(Entitlement::NetworkHost);
        }
        Ok(trust)
    }
}

/// `id=ID,src=FILE`, `id=ID,env=NAME`, or `id=ID` for the variable or else the file of that name, as Docker reads it.
fn secret(text: &str) -> Result<(String, SecretSource), Failure> {
    let bad = |what: String| {
        Failure::new(format!("--secret `{text}`: {what}")).hint("write `id=ID,src=FILE` or `id=ID,env=NAME`")
    };
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    for field in text.split(',') {
        let (key, value) = field.split_once('=').ok_or_else(|| bad(format!("`{field}` is not KEY=VALUE")))?;
        match key.to_ascii_lowercase().as_str() {
            "id" => id = Some(value.to_string()),
            "src" | "source" => file = Some(value.to_string()),
            "env" => variable = Some(value.to_string()),
            "type" if matches!(value, "file" | "env") => kind = Some(value.to_string()),
            "type" => return Err(bad(format!("there is no type `{value}`, only file and env"))),
            _ => return Err(bad(format!("there is no key `{key}`"))),
        }
    }
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| bad("it has no id".to_string()))?;
    let is_variable = kind.as_deref() == Some("env");
    let source = match (file, variable) {
        (Some(_), Some(_)) => return Err(bad("it has both a file and a variable".to_string())),
        (Some(name), None) if is_variable => SecretSource::Variable(name),
        (Some(file), None) => SecretSource::File(PathBuf::from(file)),
        (None, Some(name)) => SecretSource::Variable(name),
        (None, None) if is_variable || std::env::var_os(&id).is_some() => SecretSource::Variable(id.clone()),
        (None, None) => SecretSource::File(PathBuf::from(&id)),
    };
    match &source {
        SecretSource::File(path) if !path.is_file() => Err(bad(format!("there is no file `{}`", path.display()))),
        SecretSource::Variable(name) if std::env::var_os(name).is_none() => {
            Err(bad(format!("the variable `{name}` is not set")))
        }
        _ => Ok((id, source)),
    }
}

/// `default`, or `ID=SOCKET`.
fn agent(text: &str) -> Result<(String, PathBuf), Failure> {
    let (id, socket) = match text.split_once('=') {
        Some((id, socket)) => (id, PathBuf::from(socket)),
        None => {
            let socket = std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from).ok_or_else(|| {
                Failure::new(format!("--ssh `{text}`: SSH_AUTH_SOCK is not set"))
                    .hint("start an agent: `eval $(ssh-agent)`, `ssh-add`; or name its socket: `--ssh default=SOCKET`")
            })?;
            (text, socket)
        }
    };
    if is_socket(&socket) {
        return Ok((id.to_string(), socket));
    }
    Err(Failure::new(format!("--ssh `{text}`: `{}` is not the socket of an agent", socket.display()))
        .hint("keys are given to an agent: `ssh-agent`, `ssh-add KEY`"))
}

fn is_socket(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.file_type().is_socket())
}

fn entitlement(text: &str) -> Result<Entitlement, Failure> {
    let found = Entitlement::ALL.into_iter().find(|entitlement| entitlement.name() == text);
    found.ok_or_else(|| {
        let names = Entitlement::ALL.map(Entitlement::name).join(", ");
        Failure::new(format!("--allow `{text}`: there is no such entitlement")).hint(format!("there are {names}"))
    })
}
