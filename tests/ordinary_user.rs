//! [`OrdinaryUser`]: somebody who is not root, made for one test. The machine's own files of users stay as they are: each
//! command sees others, in a mount namespace of its own.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::{can_sandbox, has_program, skipped};

/// Where the test's users begin; no machine has so many.
const FIRST_USER: u32 = 1_900_000_000;
const FIRST_SUBORDINATE_ID: u32 = 2_000_000_000;

/// How many ids the user was given besides the own one.
pub const SUBORDINATE_IDS: u32 = 65_536;

/// Becomes the user `$2` at home in `$1`, in the cgroups `$3`, and does the rest of the arguments.
const SCRIPT: &str = r#"
set -e
home=$1 user=$2 cgroups=$3
shift 3
for cgroup in $cgroups; do echo $$ >"$cgroup/cgroup.procs"; done
for file in passwd subuid subgid; do mount --bind "$home/etc/$file" "/etc/$file"; done
mount --bind "$CFC_OF_TEST" "$home/cfc"
if [ -n "${CFC_TOOLS_OF_TEST:-}" ]; then mount --bind "$CFC_TOOLS_OF_TEST" "$home/tools"; fi
program=$home/cfc
if [ -e "$home/next-cfc" ]; then program=$home/next-cfc; fi
program=${PROGRAM_OF_TEST:-$program}
unset CFC_OF_TEST CFC_TOOLS_OF_TEST PROGRAM_OF_TEST
exec setpriv --reuid "$user" --regid "$user" --clear-groups -- "$program" "$@"
"#;

pub struct OrdinaryUser {
    pub uid: u32,
    /// The first subordinate id.
    pub subordinate: Option<u32>,
    /// Those that the user's processes are in, removed with the user.
    cgroups: Vec<PathBuf>,
}

impl OrdinaryUser {
    /// A user whom the machine's administrator gave subordinate ids. `None`, with the reason, where that cannot be.
    pub fn new() -> Option<OrdinaryUser> {
        let mut user = OrdinaryUser::with_a_single_id()?;
        // No two have ids in common.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        user.subordinate = Some(FIRST_SUBORDINATE_ID + SUBORDINATE_IDS * NEXT.fetch_add(1, Ordering::Relaxed));
        (has_program("newuidmap") && has_program("newgidmap")).then_some(user)
    }

    /// A user who has no other ids. `None`, with the reason, where that cannot be.
    pub fn with_a_single_id() -> Option<OrdinaryUser> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let has_files = ["/etc/subuid", "/etc/subgid"].iter().all(|file| Path::new(file).exists());
        if !has_files {
            skipped("there is no /etc/subuid (on Debian: apt-get install passwd)");
            return None;
        }
        let uid = FIRST_USER + std::process::id() % 100_000 * 100 + NEXT.fetch_add(1, Ordering::Relaxed);
        (can_sandbox() && has_program("setpriv") && has_program("unshare")).then_some(OrdinaryUser {
            uid,
            subordinate: None,
            cgroups: Vec::new(),
        })
    }

    /// Gives the user a cgroup that can hold limits of `controller` alone. `None`, with the reason, where none can be made.
    pub fn delegate(mut self, controller: &str) -> Option<OrdinaryUser> {
        let (tree, name) = (Path::new("/sys/fs/cgroup"), format!("cfc-user-{}", self.uid));
        let hierarchy = tree.join(controller);
        let cgroup = match hierarchy.exists() {
            true => v1_cgroup(self.uid, hierarchy.join(name)),
            false => v2_cgroup(self.uid, tree, &name, controller),
        };
        match cgroup {
            Ok(cgroup) => self.cgroups.push(cgroup),
            Err(error) => {
                skipped(&format!("no cgroup can be made for limits of `{controller}`: {error}"));
                return None;
            }
        }
        Some(self)
    }

    /// Makes `home` the user's, with what the script wants there.
    pub fn move_in(&self, home: &Path) {
        for directory in ["etc", "tools", "run"] {
            std::fs::create_dir(home.join(directory)).expect("writable");
        }
        let users = std::fs::read_to_string("/etc/passwd").expect("readable");
        let uid = self.uid;
        let entry = format!("cfc-user:x:{uid}:{uid}::/nonexistent:/bin/sh\n");
        std::fs::write(home.join("etc/passwd"), users + &entry).expect("writable");
        let ids = self.subordinate.map(|first| format!("cfc-user:{first}:{SUBORDINATE_IDS}\n")).unwrap_or_default();
        for file in ["etc/subuid", "etc/subgid"] {
            std::fs::write(home.join(file), &ids).expect("writable");
        }
        std::fs::write(home.join("cfc"), "").expect("writable");
        give(self.uid, home);
    }

    /// `cfc`, run by the user at home in `home`.
    pub fn command(&self, home: &Path) -> Command {
        let cgroups: Vec<_> = self.cgroups.iter().map(|path| path.display().to_string()).collect();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT, "cfc-user"]);
        command.arg(home).arg(self.uid.to_string()).arg(cgroups.join(" "));
        command
    }

    /// Changes the environment of such a command to what the user can reach.
    pub fn set_environment(&self, command: &mut Command, home: &Path) {
        let tools = command.get_envs().find_map(|(key, value)| value.filter(|_| key == "CFC_TOOLS_DIR"));
        if let Some(tools) = tools.map(PathBuf::from) {
            command.env("CFC_TOOLS_OF_TEST", tools);
        }
        command.env("CFC_OF_TEST", env!("CARGO_BIN_EXE_cfc")).env("CFC_TOOLS_DIR", home.join("tools"));
        command.env("HOME", home).env("USER", "cfc-user");
        // As at a login, as somewhere else, as under cron.
        let runtime = ["other-run", "run"].map(|name| home.join(name)).into_iter().find(|path| path.exists());
        match runtime {
            Some(runtime) => command.env("XDG_RUNTIME_DIR", runtime),
            None => command.env_remove("XDG_RUNTIME_DIR"),
        };
    }
}

impl Drop for OrdinaryUser {
    fn drop(&mut self) {
        let is_ours = |directory: &&Path| directory.to_string_lossy().contains("/cfc-user-");
        for directory in self.cgroups.iter().flat_map(|cgroup| cgroup.ancestors().take_while(is_ours)) {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

fn v1_cgroup(uid: u32, cgroup: PathBuf) -> io::Result<PathBuf> {
    std::fs::create_dir(&cgroup)?;
    give_cgroup(uid, &cgroup, &["tasks", "cgroup.procs"])?;
    Ok(cgroup)
}

/// As systemd does it: the user's processes are below the cgroup that the user was given, which has none itself.
///
/// ```text
/// <tree>/<name>/          gives `controller` and no other
/// <tree>/<name>/given/    the user's
/// <tree>/<name>/given/own the user's, with the processes
/// ```
fn v2_cgroup(uid: u32, tree: &Path, name: &str, controller: &str) -> io::Result<PathBuf> {
    let outer = tree.join(name);
    let (given, own) = (outer.join("given"), outer.join("given/own"));
    std::fs::write(tree.join("cgroup.subtree_control"), format!("+{controller}"))?;
    std::fs::create_dir(&outer)?;
    std::fs::write(outer.join("cgroup.subtree_control"), format!("+{controller}"))?;
    for cgroup in [given, own.clone()] {
        std::fs::create_dir(&cgroup)?;
        give_cgroup(uid, &cgroup, &["cgroup.procs", "cgroup.subtree_control"])?;
    }
    Ok(own)
}

fn give_cgroup(uid: u32, cgroup: &Path, files: &[&str]) -> io::Result<()> {
    let paths = std::iter::once(cgroup.to_owned()).chain(files.iter().map(|file| cgroup.join(file)));
    paths.into_iter().try_for_each(|path| std::os::unix::fs::chown(path, Some(uid), Some(uid)))
}

/// Gives `path`, with all that is in it, to the user `uid`.
pub fn give(uid: u32, path: &Path) {
    let status = Command::new("chown").args(["-R", &format!("{uid}:{uid}")]).arg(path).status().expect("chown runs");
    assert!(status.success(), "cannot give {} away", path.display());
}

/// The command lines of the processes of the user `uid`.
pub fn processes_of(uid: u32) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").expect("readable").flatten().map(|entry| entry.path());
    let theirs = entries.filter(|path| uid_of(path) == Some(uid));
    let lines = theirs.filter_map(|path| std::fs::read(path.join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).collect()
}

/// The user that a process of `/proc` has on the machine.
pub fn uid_of(process: &Path) -> Option<u32> {
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok())
}
