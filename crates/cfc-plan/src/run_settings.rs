//! [`RunSettings`]: what holds for all `RUN` steps of a build, as whoever builds says it.

use std::net::IpAddr;
use std::str::FromStr;

use serde::Serialize;

use crate::RunNetwork;

/// What holds for all `RUN` steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunSettings {
    /// The network of those that ask for none.
    pub network: RunNetwork,
    /// Further names in `/etc/hosts`.
    pub hosts: Vec<ExtraHost>,
    /// How much `/dev/shm` holds, in bytes; 64 MiB when nothing is said.
    pub shm_size: Option<u64>,
    /// Limits of their processes.
    pub ulimits: Vec<Ulimit>,
}

/// A host by name. As with BuildKit, only the name tells one run from another: an address is the network's affair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExtraHost {
    /// Its name.
    pub name: String,
    /// Its address.
    #[serde(skip)]
    pub address: IpAddr,
}

impl ExtraHost {
    /// Reads `NAME:ADDRESS` or `NAME=ADDRESS`, an IPv6 address with or without brackets; `gateway` is what `host-gateway`
    /// stands for.
    pub fn parse(text: &str, gateway: impl FnOnce() -> Option<IpAddr>) -> Result<ExtraHost, String> {
        let (name, address) = text.split_once(['=', ':']).ok_or("it is not NAME:ADDRESS")?;
        let is_name = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '#');
        if !is_name {
            return Err(format!("`{name}` is not the name of a host"));
        }
        let address = match address {
            "host-gateway" => gateway().ok_or("this machine has no address that others reach it by")?,
            address => {
                let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
                bare.parse().map_err(|_| format!("`{address}` is not an IP address"))?
            }
        };
        Ok(ExtraHost { name: name.to_string(), address })
    }
}

/// A limit of processes (`setrlimit(2)`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ulimit {
    /// Which, as `ulimit` of Docker calls it: `nofile`.
    pub name: &'static str,
    /// What holds until a process raises it; [`u64::MAX`] is no limit.
    pub soft: u64,
    /// What it can be raised to.
    pub hard: u64,
}

const LIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

impl FromStr for Ulimit {
    type Err = String;

    /// Reads `NAME=SOFT[:HARD]`; -1 is no limit.
    fn from_str(text: &str) -> Result<Ulimit, String> {
        let (name, values) = text.split_once('=').ok_or("it is not NAME=SOFT[:HARD]")?;
        let known = LIMITS.into_iter().find(|known| *known == name);
        let name = known.ok_or_else(|| format!("there is no limit `{name}`; there are {}", LIMITS.join(", ")))?;
        let value = |text: &str| match text {
            "-1" => Ok(u64::MAX),
            text => text.parse::<u64>().map_err(|_| format!("`{text}` is not a number")),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard) = (value(soft)?, value(hard)?);
        if soft > hard {
            return Err(format!("the soft limit {soft} is above the hard limit {hard}"));
        }
        Ok(Ulimit { name, soft, hard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_in_all_forms() {
        let gateway = || Some(IpAddr::from([10, 0, 0, 1]));
        let parsed = |text: &str| ExtraHost::parse(text, gateway).map(|host| format!("{} {}", host.name, host.address));
        assert_eq!(parsed("db:10.0.0.2").as_deref(), Ok("db 10.0.0.2"));
        assert_eq!(parsed("db=10.0.0.2").as_deref(), Ok("db 10.0.0.2"));
        assert_eq!(parsed("six:fd00::1").as_deref(), Ok("six fd00::1"));
        assert_eq!(parsed("six=[fd00::1]").as_deref(), Ok("six fd00::1"));
        assert_eq!(parsed("me:host-gateway").as_deref(), Ok("me 10.0.0.1"));
        for bad in ["", "db", "db:", "db:x", ":1.1.1.1", "a b:1.1.1.1", "a\nb:1.1.1.1"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
        assert!(ExtraHost::parse("me:host-gateway", || None).is_err());
    }

    #[test]
    fn limits_are_read_as_docker_reads_them() {
        let parsed = |text: &str| text.parse::<Ulimit>().map(|limit| (limit.name, limit.soft, limit.hard));
        assert_eq!(parsed("nofile=1024"), Ok(("nofile", 1024, 1024)));
        assert_eq!(parsed("nofile=1024:2048"), Ok(("nofile", 1024, 2048)));
        assert_eq!(parsed("core=0:-1"), Ok(("core", 0, u64::MAX)));
        for bad in ["nofile", "files=1", "nofile=x", "nofile=2:1", "nofile=-1:5", "nofile=1:2:3"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
