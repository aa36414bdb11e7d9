//! [`Endpoint`]: where a reference's repository is served.

use std::net::IpAddr;
use std::path::PathBuf;

use cfc_oci::{Reference, RepositoryName};
use reqwest::Url;

use crate::protocol::Protocol;
use crate::{Options, TransferErrorKind};

/// Docker Hub's names, as people write them.
const DOCKER_HUB_NAMES: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// The host that serves Docker Hub's images.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// What Docker's configuration calls Docker Hub.
const DOCKER_HUB_LOGIN: &str = "https://index.docker.io/v1/";

/// The name by which everybody calls the registry: Docker Hub has several.
pub(crate) fn usual_name(host: &str) -> &str {
    if DOCKER_HUB_NAMES.contains(&host) { DOCKER_HUB_NAMES[0] } else { host }
}

/// A repository of a registry, by the names that the registry itself uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host and optional port.
    pub host: String,
    /// The repository; Docker Hub's official images are in `library/`.
    pub repository: RepositoryName,
    /// How the registry is spoken to.
    pub protocol: Protocol,
    /// Whether its certificate is taken whatever it is.
    pub accepts_any_certificate: bool,
    /// Certificates (PEM files) to trust besides the system's.
    pub certificates: Vec<PathBuf>,
}

impl Endpoint {
    /// The endpoint of `reference`. HTTP is used where `options` say so; without a word from them, this machine's own
    /// registries decide.
    pub fn of(reference: &Reference, options: &Options) -> Result<Endpoint, TransferErrorKind> {
        let registry = reference.registry.as_deref().ok_or(TransferErrorKind::NoRegistry)?;
        let settings = options.registries.of(registry).cloned();
        let settings = settings.unwrap_or_default();
        let protocol = match options.plain_http.or(settings.plain_http) {
            Some(true) => Protocol::Http,
            None if is_this_machine(registry) => Protocol::Either,
            _ => Protocol::Https,
        };
        let (host, repository) = match DOCKER_HUB_NAMES.contains(&registry) {
            true => (DOCKER_HUB_HOST, official(&reference.repository)?),
            false => (registry, reference.repository.clone()),
        };
        Ok(Endpoint {
            host: host.to_string(),
            repository,
            protocol,
            accepts_any_certificate: settings.accepts_any_certificate,
            certificates: [options.certificates.clone(), settings.certificates].concat(),
        })
    }

    /// The endpoint once it is known which protocol the server speaks.
    pub async fn settle(self) -> Endpoint {
        Endpoint { protocol: self.protocol.settle(&self.host).await, ..self }
    }

    /// The URL of the API's root, an HTTP one while it is not known what is spoken.
    pub fn root(&self) -> Result<Url, TransferErrorKind> {
        let scheme = if self.protocol == Protocol::Https { "https" } else { "http" };
        let text = format!("{scheme}://{}/v2/", self.host);
        Url::parse(&text).map_err(|error| TransferErrorKind::Malformed(format!("`{text}` is not a URL: {error}")))
    }

    /// The URL of something of the repository: `manifests/latest`.
    pub fn url(&self, rest: &str) -> Result<Url, TransferErrorKind> {
        let text = format!("{}{}/{rest}", self.root()?, self.repository);
        Url::parse(&text).map_err(|error| TransferErrorKind::Malformed(format!("`{text}` is not a URL: {error}")))
    }

    /// The names under which credentials for the registry may be kept, the likeliest first.
    pub fn login_names(&self) -> Vec<String> {
        let mut names = Vec::new();
        if self.host == DOCKER_HUB_HOST {
            names.push(DOCKER_HUB_LOGIN.to_string());
            names.extend(DOCKER_HUB_NAMES.map(str::to_string));
        } else {
            names.push(self.host.clone());
        }
        for name in names.clone() {
            if !name.contains("://") {
                names.extend([format!("https://{name}"), format!("http://{name}"), format!("https://{name}/v2/")]);
            }
        }
        names
    }
}

fn official(repository: &RepositoryName) -> Result<RepositoryName, TransferErrorKind> {
    if repository.as_str().contains('/') {
        return Ok(repository.clone());
    }
    format!("library/{repository}").parse().map_err(|error| TransferErrorKind::Malformed(format!("{error}")))
}

/// Whether `host` (with an optional port) can only be this machine.
pub(crate) fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let is_loopback = name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    is_loopback || name == "localhost" || name.ends_with(".localhost")
}

/// Whether the URL names this machine or a link-local address (where clouds keep their metadata).
pub(crate) fn is_inner(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().map(|a| a.to_canonical());
    let is_link_local = match address {
        Ok(IpAddr::V4(address)) => address.is_link_local() || address.is_unspecified(),
        Ok(IpAddr::V6(address)) => address.is_unicast_link_local() || address.is_unspecified(),
        Err(_) => false,
    };
    is_link_local || is_this_machine(url.authority())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(text: &str) -> String {
        let reference = Reference::parse(text).expect(text);
        let endpoint = Endpoint::of(&reference, &Options::default()).expect(text);
        endpoint.url("tags/list").expect(text).to_string()
    }

    #[test]
    fn this_machines_registries_may_speak_http() {
        assert_eq!(root("127.0.0.1:5000/a/b:x"), "http://127.0.0.1:5000/v2/a/b/tags/list");
        assert_eq!(root("localhost/a"), "http://localhost/v2/a/tags/list");
        assert_eq!(root("[::1]:5000/a"), "http://[::1]:5000/v2/a/tags/list");
        assert_eq!(root("registry.localhost:80/a"), "http://registry.localhost/v2/a/tags/list");
        assert_eq!(root("r.example/a"), "https://r.example/v2/a/tags/list");
        assert_eq!(root("10.0.0.1:5000/a"), "https://10.0.0.1:5000/v2/a/tags/list");
        assert_eq!(root("localhost.example/a"), "https://localhost.example/v2/a/tags/list");
    }

    #[test]
    fn what_the_configuration_says_of_a_host_counts() {
        let mut registries = crate::Registries::default();
        for (host, plain_http) in [("10.0.0.1:5000", true), ("localhost:443", false)] {
            let settings = crate::RegistrySettings { plain_http: Some(plain_http), ..Default::default() };
            registries.add(host, settings).expect(host);
        }
        registries.add("127.0.0.1:1", crate::RegistrySettings::default()).expect("a host");
        let options = Options { registries, ..Options::default() };
        for (text, url) in [
            ("10.0.0.1:5000/a", "http://10.0.0.1:5000/v2/"),
            ("localhost:443/a", "https://localhost/v2/"),
            ("127.0.0.1:1/a", "http://127.0.0.1:1/v2/"),
        ] {
            let endpoint = Endpoint::of(&Reference::parse(text).expect(text), &options).expect(text);
            assert_eq!(endpoint.root().expect(text).as_str(), url);
        }
    }

    #[test]
    fn docker_hub_has_one_name() {
        assert_eq!(root("docker.io/busybox"), "https://registry-1.docker.io/v2/library/busybox/tags/list");
        assert_eq!(root("index.docker.io/a/b"), "https://registry-1.docker.io/v2/a/b/tags/list");
    }

    #[test]
    fn a_reference_without_registry_is_not_guessed() {
        let reference = Reference::parse("busybox").expect("well-formed");
        assert!(matches!(Endpoint::of(&reference, &Options::default()), Err(TransferErrorKind::NoRegistry)));
    }

    #[test]
    fn inner_addresses_are_known() {
        for text in
            ["http://127.0.0.1/", "http://169.254.169.254/x", "https://[::ffff:127.0.0.1]/", "https://localhost:1/"]
        {
            assert!(is_inner(&Url::parse(text).expect(text)), "{text}");
        }
        assert!(!is_inner(&Url::parse("https://r.example/").expect("well-formed")));
    }
}
