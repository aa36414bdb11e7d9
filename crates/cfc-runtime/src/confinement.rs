//! [`Confinement`]: what an instance's process may do, as the kernel itself says.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::thread::CapabilitySet;

use crate::runtime::{Runtime, blocking};

/// What the kernel lets an instance's process do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// Which users of the machine its users are.
    pub user_ids: Vec<IdRange>,
    /// Which groups of the machine its groups are.
    pub group_ids: Vec<IdRange>,
    /// The capabilities that it, or a program that it executes, can have: `CAP_CHOWN`. They count within its user namespace.
    pub capabilities: Vec<String>,
    /// Whether a filter refuses system calls.
    pub has_seccomp: bool,
    /// Whether set-user-id programs give it nothing.
    pub no_new_privileges: bool,
}

/// Ids that follow each other, inside and outside of a user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first of them inside.
    pub inside: u32,
    /// The same one, as cfc's own user namespace numbers it.
    pub outside: u32,
    /// How many there are.
    pub count: u32,
}

impl Runtime {
    /// What the kernel lets the instance's process do now. `None` when it does not run, and of a container of another runtime
    /// than cfc's own sandbox: its processes are the runtime's affair.
    pub async fn confinement(&self, name: &str) -> Option<Confinement> {
        let view = self.inspect(name)?;
        let pid = view.phase.pid()?;
        if view.isolation.is_some_and(|isolation| isolation.runtime.is_some()) {
            return None;
        }
        let confinement = blocking(move || read(pid)).await?;
        // Else another process may have had the number meanwhile.
        (self.inspect(name)?.phase.pid() == Some(pid)).then_some(confinement)
    }
}

/// Of the application: process 1 of a sandbox only reaps for it, and nothing filters its calls.
fn read(pid: i32) -> Option<Confinement> {
    let first = PathBuf::from(format!("/proc/{pid}"));
    let children = fs::read_to_string(first.join(format!("task/{pid}/children"))).ok()?;
    // In the order of their making.
    let application = children.split_whitespace().next()?;
    let directory = Path::new("/proc").join(application);
    let status = fs::read_to_string(directory.join("status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let bits = u64::from_str_radix(field("CapBnd")?, 16).ok()?;
    Some(Confinement {
        user_ids: ranges(&fs::read_to_string(directory.join("uid_map")).ok()?),
        group_ids: ranges(&fs::read_to_string(directory.join("gid_map")).ok()?),
        capabilities: capabilities(bits),
        has_seccomp: field("Seccomp")? == "2",
        no_new_privileges: field("NoNewPrivs")? == "1",
    })
}

fn ranges(map: &str) -> Vec<IdRange> {
    let range = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
        Some(IdRange { inside: numbers.next()??, outside: numbers.next()??, count: numbers.next()?? })
    };
    map.lines().filter_map(range).collect()
}

fn capabilities(bits: u64) -> Vec<String> {
    CapabilitySet::from_bits_truncate(bits).iter_names().map(|(name, _)| format!("CAP_{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_understood() {
        let map = "         0     100000      65536\n     65536          0          1\n";
        let range = |inside, outside, count| IdRange { inside, outside, count };
        assert_eq!(ranges(map), [range(0, 100_000, 65_536), range(65_536, 0, 1)]);
        assert_eq!(capabilities(0x21), ["CAP_CHOWN", "CAP_KILL"]);
    }
}
