//! [`Address`]: where a BuildKit daemon listens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Docker's own socket, which `docker://` means.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";
/// What every client takes when nothing else is said.
const BUILDKIT_SOCKET: &str = "/run/buildkit/buildkitd.sock";

/// Where a BuildKit daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The daemon's own socket: `unix:///run/buildkit/buildkitd.sock`.
    Unix(PathBuf),
    /// The daemon's own port: `tcp://HOST:PORT`.
    Tcp(String),
    /// The BuildKit inside of a Docker engine, on the engine's socket: `docker://`, `docker:///var/run/docker.sock`.
    DockerUnix(PathBuf),
    /// The same on the engine's port: `docker://HOST:PORT`.
    DockerTcp(String),
}

impl Address {
    /// The address that a daemon of this machine has unless it was told otherwise.
    pub fn usual() -> Address {
        Address::Unix(PathBuf::from(BUILDKIT_SOCKET))
    }

    /// The name by which a server at this address shows itself in TLS; none where there is no TLS.
    pub(crate) fn host(&self) -> Option<&str> {
        match self {
            Address::Tcp(place) | Address::DockerTcp(place) => {
                let host = place.rsplit_once(':').map_or(place.as_str(), |(host, _)| host);
                Some(host.trim_start_matches('[').trim_end_matches(']'))
            }
            Address::Unix(_) | Address::DockerUnix(_) => None,
        }
    }

    /// Whether Docker's engine is what answers there.
    pub(crate) fn is_engine(&self) -> bool {
        matches!(self, Address::DockerUnix(_) | Address::DockerTcp(_))
    }
}

/// Why a text is no address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no address of a BuildKit daemon: {reason}")]
pub struct AddressError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let bad = |reason| AddressError { text: text.to_string(), reason };
        let (scheme, place) = text.split_once("://").ok_or_else(|| bad("it has no scheme"))?;
        let port = |place: &str| {
            let port = place.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            let is_number = port.is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            if is_number { Ok(place.to_string()) } else { Err(bad("it is not HOST:PORT")) }
        };
        match scheme {
            "unix" if place.starts_with('/') => Ok(Address::Unix(PathBuf::from(place))),
            "unix" => Err(bad("a socket is named by its whole path")),
            "tcp" => port(place).map(Address::Tcp),
            "docker" | "docker-container" if place.is_empty() => Ok(Address::DockerUnix(PathBuf::from(DOCKER_SOCKET))),
            "docker" if place.starts_with('/') => Ok(Address::DockerUnix(PathBuf::from(place))),
            "docker" => port(place).map(Address::DockerTcp),
            "docker-container" => Err(bad(
                "a daemon in a container is reached by a port or socket of its own: publish one, or use `docker://`",
            )),
            _ => Err(bad("there are unix://, tcp:// and docker://")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Tcp(place) => write!(f, "tcp://{place}"),
            Address::DockerUnix(path) => write!(f, "docker://{}", path.display()),
            Address::DockerTcp(place) => write!(f, "docker://{place}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["unix:///run/x.sock", "tcp://host:1234", "tcp://[::1]:1234", "docker:///x", "docker://host:2376"] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()).as_deref(), Ok(text));
        }
        let engine = Address::DockerUnix(PathBuf::from(DOCKER_SOCKET));
        assert_eq!("docker://".parse(), Ok(engine));
        assert_eq!("tcp://[::1]:1234".parse::<Address>().expect("one").host(), Some("::1"));
        for bad in
            ["", "/run/x", "unix://x", "tcp://host", "tcp://:1", "http://x", "docker://host", "docker-container://x"]
        {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
