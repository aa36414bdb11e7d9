//! The top of the v2 tree where that is not the machine's own: a container's.
//!
//! A cgroup that has processes can give its children nothing (cgroup-v2.rst, "No Internal Process Constraint"), but for the
//! machine's topmost. In a container the top of the tree is the container's cgroup, with all its processes in it. They move
//! to a child then, as the Docker engine's image for containers has it, and systemd wherever it runs.

use std::fs;
use std::path::Path;

use super::{Failure, enable, failure, make, write};
use crate::error::ErrorKind;

/// The child that gets them, called as others who do this call it.
const LEAF: &str = "init";

/// How often it is looked whether new processes came, made by those that had not moved yet.
const ROUNDS: usize = 100;

/// Lets the children of the tree's `top` have `controller`.
pub(super) fn enable_at(top: &Path, controller: &str) -> Result<(), Failure> {
    // The machine's own top has no type. Controllers of threads (cpu, pids) could be given in spite of processes, but then
    // the children are of no use: their type is `domain invalid`.
    if top.join("cgroup.type").exists() {
        evacuate(top)?;
    }
    enable(top, controller)
}

fn evacuate(top: &Path) -> Result<(), Failure> {
    let (inhabitants, leaf) = (top.join("cgroup.procs"), top.join(LEAF));
    let entrance = leaf.join("cgroup.procs");
    for _ in 0..ROUNDS {
        let pids = fs::read_to_string(&inhabitants).map_err(|error| failure("read", &inhabitants, &error))?;
        if pids.is_empty() {
            return Ok(());
        }
        make(&leaf)?;
        for pid in pids.lines() {
            // So the kernel names those that are in no pid namespace of ours.
            if pid == "0" {
                return Err(stays(top, "processes that cannot be seen from here"));
            }
            match write(&entrance, pid) {
                // It has ended.
                Err(ErrorKind::Step { errno: libc::ESRCH, .. }) => {}
                result => result?,
            }
        }
    }
    Err(stays(top, "processes that keep making new ones"))
}

fn stays(top: &Path, who: &str) -> Failure {
    ErrorKind::Unavailable(format!(
        "no limits can be set: {} is the top of the cgroup tree here and has {who}; start cfc in a container of its own, or \
         with the host's cgroup namespace",
        top.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::{Child, Command};

    use super::*;

    /// A cgroup with a process in it, as the top of a container's tree is, which has `hugetlb` or another controller.
    struct Top(PathBuf, Child, String);

    impl Top {
        fn make(name: &str) -> Option<Top> {
            let tree = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter().map(Path::new);
            let tree = tree.into_iter().find(|tree| tree.join("cgroup.controllers").exists())?;
            let controllers = fs::read_to_string(tree.join("cgroup.controllers")).ok()?;
            let controller =
                controllers.split_whitespace().find(|name| ["hugetlb", "memory"].contains(name))?.to_owned();
            enable(tree, &controller).ok()?;
            let top = tree.join(format!("cfc-test-{name}-{}", std::process::id()));
            fs::create_dir(&top).ok()?;
            let child = Command::new("sleep").arg("1000").spawn().expect("starts");
            fs::write(top.join("cgroup.procs"), child.id().to_string()).expect("moves");
            Some(Top(top, child, controller))
        }
    }

    impl Drop for Top {
        fn drop(&mut self) {
            let _ = self.1.kill();
            let _ = self.1.wait();
            let _ = fs::remove_dir(self.0.join(LEAF));
            fs::remove_dir(&self.0).expect("is empty");
        }
    }

    #[test]
    fn processes_at_the_top_of_a_containers_tree_make_room() {
        let Some(top) = Top::make("top") else {
            eprintln!("skipped: needs root and a v2 tree with hugetlb or memory");
            return;
        };
        let Top(directory, child, controller) = &top;
        assert!(matches!(enable(directory, controller), Err(ErrorKind::Step { errno: libc::EBUSY, .. })));
        enable_at(directory, controller).expect("makes room");
        let read = |file: &str| fs::read_to_string(directory.join(file)).expect("reads");
        assert_eq!(read("cgroup.subtree_control").trim_end(), controller);
        assert_eq!((read("cgroup.procs"), read("init/cgroup.procs")), (String::new(), format!("{}\n", child.id())));
        enable_at(directory, controller).expect("is as it should be");
    }
}
