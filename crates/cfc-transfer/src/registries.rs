//! [`Registries`]: what is special about some registries: mirrors, and how to speak to a host.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cfc_oci::{Reference, RepositoryName};

use crate::TransferErrorKind;
use crate::endpoint::usual_name;

/// What is special about registries, by host and port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registries(BTreeMap<String, RegistrySettings>);

/// What is special about one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistrySettings {
    /// Where images are looked for first, in this order: `host[:port][/path]`.
    pub mirrors: Vec<String>,
    /// HTTP instead of HTTPS; without a word it is for those of this machine that do not speak TLS.
    pub plain_http: Option<bool>,
    /// Whether its certificate is taken whatever it is.
    pub accepts_any_certificate: bool,
    /// Certificates (PEM files) to trust besides the system's.
    pub certificates: Vec<PathBuf>,
}

impl Registries {
    /// Adds what is special about `host`. Docker Hub goes by any of its names.
    ///
    /// # Errors
    /// When the host or a mirror is none.
    pub fn add(&mut self, host: &str, settings: RegistrySettings) -> Result<(), TransferErrorKind> {
        let is_host =
            Reference::parse(&format!("{host}/x")).is_ok_and(|parsed| parsed.registry.as_deref() == Some(host));
        if !is_host {
            return Err(TransferErrorKind::Malformed(format!("`{host}` is not the host of a registry")));
        }
        let example = "x".parse::<RepositoryName>().expect("it is a name");
        settings.mirrors.iter().try_for_each(|mirror| mirrored(mirror, &example).map(drop))?;
        self.0.insert(usual_name(host).to_string(), settings);
        Ok(())
    }

    /// What is special about `host`.
    pub(crate) fn of(&self, host: &str) -> Option<&RegistrySettings> {
        self.0.get(usual_name(host))
    }

    /// What `reference` is called by the mirrors of its registry, `repository` being what that calls the repository.
    pub(crate) fn mirrored(
        &self,
        reference: &Reference,
        repository: &RepositoryName,
    ) -> Result<Vec<Reference>, TransferErrorKind> {
        let settings = reference.registry.as_deref().and_then(|host| self.of(host));
        let mirrors = settings.map_or(&[][..], |settings| &settings.mirrors);
        let named = |mirror: &String| {
            let (registry, repository) = mirrored(mirror, repository)?;
            Ok(Reference { registry: Some(registry), repository, ..reference.clone() })
        };
        mirrors.iter().map(named).collect()
    }
}

/// The host of a mirror, and what it calls `repository`: what stands behind the host goes in front.
fn mirrored(mirror: &str, repository: &RepositoryName) -> Result<(String, RepositoryName), TransferErrorKind> {
    let malformed = || TransferErrorKind::Malformed(format!("the mirror `{mirror}` is not `host[:port][/path]`"));
    let (host, path) = mirror.trim_end_matches('/').split_once('/').unwrap_or((mirror.trim_end_matches('/'), ""));
    let name = if path.is_empty() { repository.to_string() } else { format!("{path}/{repository}") };
    let parsed = Reference::parse(&format!("{host}/{name}")).map_err(|_| malformed())?;
    match parsed.registry {
        Some(registry) if parsed.tag.is_none() => Ok((registry, parsed.repository)),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_keep_the_repository_below_their_path() {
        let mut registries = Registries::default();
        let mirrors = ["m.example:5000", "cache.example/hub/"].map(str::to_string).to_vec();
        registries.add("docker.io", RegistrySettings { mirrors, ..RegistrySettings::default() }).expect("well-formed");
        let reference = Reference::parse("index.docker.io/busybox:1").expect("well-formed");
        let official = "library/busybox".parse().expect("well-formed");
        let named = registries.mirrored(&reference, &official).expect("well-formed");
        let named: Vec<String> = named.iter().map(ToString::to_string).collect();
        assert_eq!(named, ["m.example:5000/library/busybox:1", "cache.example/hub/library/busybox:1"]);
        let elsewhere = Reference::parse("r.example/a").expect("well-formed");
        assert!(registries.mirrored(&elsewhere, &elsewhere.repository).expect("none").is_empty());
    }

    #[test]
    fn what_is_no_host_is_refused() {
        let add = |host: &str, mirror: &str| {
            let settings = RegistrySettings { mirrors: vec![mirror.to_string()], ..RegistrySettings::default() };
            Registries::default().add(host, settings).map_err(|error| error.to_string())
        };
        assert!(add("r.example", "m.example").is_ok());
        assert!(add("https://r.example", "m.example").is_err());
        assert!(add("r.example/path", "m.example").is_err());
        for mirror in ["", "https://m.example", "mirror", "m.example/A", "m.example/a:1"] {
            let error = add("r.example", mirror).expect_err(mirror);
            assert!(error.contains(mirror), "{error}");
        }
    }
}
