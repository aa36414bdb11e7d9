//! How many files this process may have open, and how many connections that is enough for. Both servers ask at their start.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a connection takes: a socket, and a file or another socket behind it.
const A_CONNECTION: u64 = 2;

/// What a registry that runs alone has open beside its connections.
const RESERVED: u64 = 64;

/// So many a process usually may have. What is less than wanted there is nothing that an operator must know.
const USUAL: u64 = 20_000;

/// With fewer places there is no server.
const FEWEST: u64 = 8;

/// What accepts connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// `cfc registry serve`: all that there is.
    RegistryAlone,
    /// The registry within `cfc serve`: an eighth. What containers send out has a quarter, and instances, Workers and the
    /// control API have the last eighth.
    Registry,
    /// The gateway: one half.
    Gateway,
}

/// Lets this process have as many files open as it may ask for; what it starts later, too. How many that is.
pub fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let now = if raised.is_ok() { limit.maximum } else { limit.current };
    now.unwrap_or(u64::MAX)
}

/// How many connections a server has at once, `wanted` if there are descriptors enough. Further ones wait. Tells the log
/// where there are not.
pub fn connections(server: Server, wanted: usize) -> usize {
    let limit = raise();
    let places = server.places(limit);
    if places < wanted {
        let what = format!(
            "{} takes {places} connections at once, not {wanted}; further ones wait. It may have {limit} files open: raise the \
             hard limit (ulimit -Hn, LimitNOFILE=)",
            server.name()
        );
        match limit < USUAL {
            true => tracing::warn!("{what}"),
            false => tracing::info!("{what}"),
        }
    }
    places.min(wanted)
}

impl Server {
    /// Connections for which there is room among `limit` open files.
    fn places(self, limit: u64) -> usize {
        let share = match self {
            Server::RegistryAlone => limit.saturating_sub(RESERVED),
            Server::Registry => limit / 8,
            Server::Gateway => limit / 2,
        };
        usize::try_from((share / A_CONNECTION).max(FEWEST)).unwrap_or(usize::MAX)
    }

    fn name(self) -> &'static str {
        match self {
            Server::RegistryAlone | Server::Registry => "the registry",
            Server::Gateway => "the gateway",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_room_for_what_they_accept() {
        let places = |limit| [Server::RegistryAlone, Server::Registry, Server::Gateway].map(|s| s.places(limit));
        assert_eq!(places(1024), [480, 64, 256]);
        assert_eq!(places(20_000), [9_968, 1_250, 5_000]);
        assert_eq!(places(10), [8, 8, 8]);
        assert_eq!(places(u64::MAX)[1], usize::try_from(u64::MAX / 16).expect("64 bits"));
    }
}
