//! The part of the cgroup hierarchies that an ordinary user was given.
//!
//! In v1 that is the user's own cgroup, when it may be written to. In v2 a cgroup that has children with controllers may
//! have no processes, so it is the nearest cgroup above the process, itself included, that may be written to and has none:
//! below systemd's `user@UID.service`, or a unit with `Delegate=yes` and `DelegateSubgroup=`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

use super::Hierarchies;

/// What is asked of the cgroup filesystems.
pub(super) trait Machine {
    fn is_writable(&self, directory: &Path) -> bool;
    fn has_processes(&self, directory: &Path) -> bool;
    /// What its children have already, and what they could be given.
    fn controllers(&self, directory: &Path) -> [BTreeSet<String>; 2];
}

/// The machine we run on.
pub(super) struct Kernel;

impl Machine for Kernel {
    fn is_writable(&self, directory: &Path) -> bool {
        let may = |path: &Path| rustix::fs::accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok();
        may(directory) && may(&directory.join("cgroup.procs"))
    }

    fn has_processes(&self, directory: &Path) -> bool {
        fs::read(directory.join("cgroup.procs")).map_or(true, |text| !text.is_empty())
    }

    fn controllers(&self, directory: &Path) -> [BTreeSet<String>; 2] {
        ["cgroup.subtree_control", "cgroup.controllers"].map(|file| {
            let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
            text.split_whitespace().map(str::to_owned).collect()
        })
    }
}

/// What of `all` a process may use whose `/proc/self/cgroup` is `own`.
pub(super) fn restrict(all: Hierarchies, own: &str, machine: &impl Machine) -> Hierarchies {
    let own = own_paths(own);
    let below = |point: &Path, controller: &str| {
        let path = own.get(controller)?;
        Some(point.join(path.trim_start_matches('/')))
    };
    let v1 = all.v1.into_iter().filter_map(|(controller, point)| {
        let directory = below(&point, &controller)?;
        machine.is_writable(&directory).then_some((controller, directory))
    });
    let v2 = all.v2.and_then(|(point, _)| v2_base(&point, &below(&point, "")?, machine));
    Hierarchies { v1: v1.collect(), v2, is_lenient: true, is_read_only: all.is_read_only }
}

fn v2_base(point: &Path, own: &Path, machine: &impl Machine) -> Option<(PathBuf, BTreeSet<String>)> {
    let ancestors = own.ancestors().take_while(|directory| directory.starts_with(point));
    for directory in ancestors.take_while(|directory| machine.is_writable(directory)) {
        let [given, possible] = machine.controllers(directory);
        let is_free = !machine.has_processes(directory);
        if is_free || !given.is_empty() {
            return Some((directory.to_owned(), if is_free { possible } else { given }));
        }
    }
    None
}

/// Controller to path, from lines like `4:cpu,cpuacct:/path`; v2 is the empty name.
fn own_paths(text: &str) -> BTreeMap<String, &str> {
    let mut paths = BTreeMap::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        paths.extend(controllers.split(',').map(|controller| (controller.to_owned(), path)));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writable directories, each with whether it has processes and what its children are given.
    struct Fake(BTreeMap<&'static str, (bool, &'static str)>);

    impl Machine for Fake {
        fn is_writable(&self, directory: &Path) -> bool {
            self.0.contains_key(directory.to_str().expect("text"))
        }

        fn has_processes(&self, directory: &Path) -> bool {
            self.0.get(directory.to_str().expect("text")).is_none_or(|(has, _)| *has)
        }

        fn controllers(&self, directory: &Path) -> [BTreeSet<String>; 2] {
            let given = self.0.get(directory.to_str().expect("text")).map_or("", |(_, given)| *given);
            [given, "memory pids"].map(|text| text.split_whitespace().map(str::to_owned).collect())
        }
    }

    fn v2(own: &str, writable: &[(&'static str, (bool, &'static str))]) -> Option<(String, usize)> {
        let all = Hierarchies { v2: Some(("/cg".into(), BTreeSet::new())), ..Hierarchies::default() };
        let found = restrict(all, own, &Fake(writable.iter().copied().collect()));
        found.v2.map(|(base, controllers)| (base.display().to_string(), controllers.len()))
    }

    #[test]
    fn v2_is_used_from_the_nearest_own_cgroup_without_processes() {
        let own = "0::/user.slice/user@7.service/app.slice/shell.scope\n";
        let service = ("/cg/user.slice/user@7.service", (false, "memory pids"));
        let slice = ("/cg/user.slice/user@7.service/app.slice", (false, "memory"));
        let scope = ("/cg/user.slice/user@7.service/app.slice/shell.scope", (true, ""));
        assert_eq!(v2(own, &[service, slice, scope]), Some((slice.0.to_owned(), 2)));
        assert_eq!(v2(own, &[scope]), None, "only a cgroup with processes is its own");
        assert_eq!(v2(own, &[service, slice]), None, "it may not leave the cgroup that it is in");
        assert_eq!(v2(own, &[]), None);
    }

    #[test]
    fn v1_is_used_from_the_own_cgroup_where_it_may_be_written() {
        let v1 = ["cpu", "memory", "pids"].map(|name| (name.to_owned(), PathBuf::from("/cg").join(name)));
        let all = Hierarchies { v1: v1.into(), ..Hierarchies::default() };
        let own = "3:cpu,cpuacct:/\n2:memory:/u\n1:pids:/u\n";
        let fake = Fake([("/cg/memory/u", (true, "")), ("/cg/pids", (true, ""))].into());
        let found = restrict(all, own, &fake);
        assert_eq!(found.v1, [("memory".to_owned(), PathBuf::from("/cg/memory/u"))].into());
    }
}
