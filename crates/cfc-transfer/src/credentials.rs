//! Who we are to a registry: what `docker login` left behind (`config.json`, credential helpers).

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cfc_oci::Reference;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::endpoint::Endpoint;
use crate::{Credentials, Options, TransferErrorKind};

/// A helper may ask a person to unlock a key ring, but not forever.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);
/// The user name under which helpers keep a token instead of a password.
const TOKEN_USER: &str = "<token>";

/// Credentials for one registry, and where they are from.
#[derive(Clone)]
pub(crate) struct Login {
    pub secret: Secret,
    /// For messages: "from `/root/.docker/config.json`".
    pub from: String,
}

/// What proves who we are.
#[derive(Clone)]
pub(crate) enum Secret {
    Nobody,
    Password {
        username: String,
        password: String,
    },
    /// To be exchanged for an access token at the registry's token service.
    IdentityToken(String),
    /// To be sent as it is.
    Bearer(String),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigFile {
    #[serde(default)]
    auths: HashMap<String, Auth>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl Login {
    /// The credentials for `endpoint` that `wanted` leads to.
    pub async fn find(wanted: &Credentials, endpoint: &Endpoint) -> Result<Login, TransferErrorKind> {
        let given = |secret| Login { secret, from: "as given".to_string() };
        match wanted {
            Credentials::Anonymous => Ok(Login::nobody("none, as wanted")),
            Credentials::Password { username, password } => {
                Ok(given(Secret::Password { username: username.clone(), password: password.clone() }))
            }
            Credentials::Token(token) => Ok(given(Secret::Bearer(token.clone()))),
            Credentials::DockerConfig => match config_path() {
                Some(path) => Login::from_config(&path, endpoint).await,
                None => Ok(Login::nobody("none: there is no home directory")),
            },
        }
    }

    async fn from_config(path: &Path, endpoint: &Endpoint) -> Result<Login, TransferErrorKind> {
        let malformed =
            |cause: String| TransferErrorKind::Malformed(format!("cannot read `{}`: {cause}", path.display()));
        let bytes = match tokio::fs::read(path).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Login::nobody(&format!("none: there is no `{}`", path.display())));
            }
            Err(error) => return Err(malformed(error.to_string())),
        };
        let config: ConfigFile = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        let names = endpoint.login_names();
        let own_helper = names.iter().find_map(|name| config.cred_helpers.get(name).map(|helper| (helper, name)));
        if let Some((helper, name)) = own_helper {
            let found = ask_helper(helper, name).await?;
            return Ok(found.unwrap_or_else(|| Login::nobody(&format!("none: `docker-credential-{helper}` has none"))));
        }
        if let Some(helper) = config.creds_store.filter(|helper| !helper.is_empty())
            && let Some(login) = ask_helper(&helper, &names[0]).await?
        {
            return Ok(login);
        }
        // Under whatever path of the host: what `docker login` wrote, it wrote in several ways.
        let of_host = || config.auths.iter().find(|(name, _)| host_of(name) == endpoint.host).map(|(_, auth)| auth);
        let auth = names.iter().find_map(|name| config.auths.get(name)).or_else(of_host);
        let secret = auth.map(Auth::secret).transpose().map_err(malformed)?.flatten();
        let from = format!("from `{}`", path.display());
        Ok(match secret {
            Some(secret) => Login { secret, from },
            None => Login::nobody(&format!("none: `{}` has none for {}", path.display(), endpoint.host)),
        })
    }

    fn nobody(why: &str) -> Login {
        Login { secret: Secret::Nobody, from: why.to_string() }
    }
}

/// Name and password for the registry `host`, for somebody who speaks to it in our place. An identity token has no name. None
/// where nobody logged in, or has a token that only goes into requests.
///
/// # Errors
/// When what `docker login` left behind cannot be read, or a credential helper fails.
pub async fn login(host: &str, options: &Options) -> Result<Option<(String, String)>, TransferErrorKind> {
    // Credentials belong to a host, whatever is asked of it.
    let reference = format!("{host}/any/thing");
    let reference = Reference::parse(&reference)
        .map_err(|error| TransferErrorKind::Malformed(format!("`{host}` is no registry: {error}")))?;
    let login = Login::find(&options.credentials, &Endpoint::of(&reference, options)?).await?;
    Ok(match login.secret {
        Secret::Password { username, password } => Some((username, password)),
        Secret::IdentityToken(token) => Some((String::new(), token)),
        Secret::Nobody | Secret::Bearer(_) => None,
    })
}

/// The host, with its port, of the address or host that credentials are kept for.
fn host_of(name: &str) -> &str {
    let rest = name.split_once("://").map_or(name, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

impl Auth {
    /// `None` for the empty entry that says "ask the credential store".
    fn secret(&self) -> Result<Option<Secret>, String> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Secret::Bearer(self.registrytoken.clone())));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Secret::IdentityToken(self.identitytoken.clone())));
        }
        if !self.auth.is_empty() {
            let decoded = cfc_oci::base64::decode(self.auth.trim()).and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = decoded.ok_or("an `auth` is not base64")?;
            let (username, password) = pair.split_once(':').ok_or("an `auth` is not `user:password`")?;
            // Some versions of Docker padded the password with NULs.
            let password = password.trim_end_matches('\0').to_string();
            return Ok(Some(Secret::Password { username: username.to_string(), password }));
        }
        let (username, password) = (self.username.clone(), self.password.clone());
        Ok((!username.is_empty()).then_some(Secret::Password { username, password }))
    }
}

/// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
fn config_path() -> Option<PathBuf> {
    let directory = std::env::var_os("DOCKER_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = directory.or_else(|| std::env::home_dir().map(|home| home.join(".docker")))?;
    Some(directory.join("config.json"))
}

/// Asks `docker-credential-<helper>` for the credentials of `name`; `None` when it has none.
async fn ask_helper(helper: &str, name: &str) -> Result<Option<Login>, TransferErrorKind> {
    let program = format!("docker-credential-{helper}");
    let failed =
        |cause: String| TransferErrorKind::Malformed(format!("cannot get credentials from `{program}`: {cause}"));
    let is_word = helper.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if !is_word {
        return Err(failed("it is not the name of a program".to_string()));
    }
    let output = tokio::time::timeout(HELPER_TIMEOUT, run_helper(&program, name)).await;
    let output = output.map_err(|_| failed(format!("no answer for {} s", HELPER_TIMEOUT.as_secs())))?;
    let output = output.map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // The protocol's words for "I have none".
        let has_none = text.contains("credentials not found");
        return if has_none { Ok(None) } else { Err(failed(text.trim().to_string())) };
    }
    let answer: HelperAnswer =
        serde_json::from_str(&text).map_err(|_| failed("its answer is malformed".to_string()))?;
    let secret = match answer.username == TOKEN_USER {
        true => Secret::IdentityToken(answer.secret),
        false => Secret::Password { username: answer.username, password: answer.secret },
    };
    Ok(Some(Login { secret, from: format!("from `{program}`") }))
}

async fn run_helper(program: &str, name: &str) -> io::Result<std::process::Output> {
    let mut command = Command::new(program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(name.as_bytes()).await?;
    }
    child.wait_with_output().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(host: &str) -> Endpoint {
        let repository = "a".parse().expect("well-formed");
        Endpoint {
            host: host.to_string(),
            repository,
            protocol: crate::protocol::Protocol::Https,
            accepts_any_certificate: false,
            certificates: Vec::new(),
        }
    }

    async fn login(config: &str, host: &str) -> String {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.json");
        std::fs::write(&path, config).expect("written");
        match Login::from_config(&path, &endpoint(host)).await {
            Ok(Login { secret: Secret::Password { username, password }, .. }) => format!("{username}:{password}"),
            Ok(Login { secret: Secret::IdentityToken(token), .. }) => format!("identity {token}"),
            Ok(Login { secret: Secret::Bearer(token), .. }) => format!("bearer {token}"),
            Ok(Login { secret: Secret::Nobody, .. }) => "nobody".to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn logins_are_found_by_host() {
        let config = r#"{"auths": {
            "r.example:5000": {"auth": "dXNlcjpwYXNz"},
            "https://index.docker.io/v1/": {"auth": "aHViOnA6dw=="},
            "https://plain.example": {"username": "u", "password": "p"},
            "token.example": {"identitytoken": "t"},
            "https://old.example:8443/v1/": {"auth": "dXNlcjpwYXNz"},
            "empty.example": {}
        }}"#;
        assert_eq!(login(config, "r.example:5000").await, "user:pass");
        assert_eq!(login(config, "registry-1.docker.io").await, "hub:p:w");
        assert_eq!(login(config, "plain.example").await, "u:p");
        assert_eq!(login(config, "token.example").await, "identity t");
        assert_eq!(login(config, "old.example:8443").await, "user:pass");
        assert_eq!(login(config, "old.example").await, "nobody");
        assert_eq!(login(config, "empty.example").await, "nobody");
        assert_eq!(login(config, "other.example").await, "nobody");
    }

    #[tokio::test]
    async fn damage_is_named() {
        assert!(login("{", "r.example").await.contains("config.json"));
        assert!(login(r#"{"auths":{"r.example":{"auth":"!"}}}"#, "r.example").await.contains("not base64"));
        let missing = login(r#"{"credsStore":"cfc-test-no-such-helper"}"#, "r.example").await;
        assert!(missing.contains("docker-credential-cfc-test-no-such-helper"), "{missing}");
        assert!(login(r#"{"credsStore":"../../bin/sh"}"#, "r.example").await.contains("not the name"));
    }
}
