//! [`Obstacle`]: what on this machine keeps an ordinary user from a user namespace.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Why an ordinary user gets no user namespace here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Obstacle {
    /// `user.max_user_namespaces` is zero, or so many exist already.
    TooMany {
        /// Its value.
        limit: u64,
    },
    /// `kernel.unprivileged_userns_clone` is 0 (Debian's kernels before 11).
    SwitchedOff,
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1 (Ubuntu since 23.10).
    AppArmor,
    /// The kernel has none.
    NotBuilt,
    /// Something else: in a container, mostly its seccomp profile.
    Refused {
        /// What was tried.
        step: String,
        /// Why it failed.
        reason: String,
    },
}

impl Obstacle {
    /// Finds out why `step` failed with `error`.
    pub(super) fn find(step: &str, error: &io::Error) -> Obstacle {
        Obstacle::find_below(Path::new("/proc/sys"), step, error)
    }

    fn find_below(sysctls: &Path, step: &str, error: &io::Error) -> Obstacle {
        let read = |name: &str| fs::read_to_string(sysctls.join(name)).ok()?.trim().parse::<u64>().ok();
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let Some(limit) = read("user/max_user_namespaces") else { return Obstacle::NotBuilt };
        let is_refused = matches!(errno, libc::EPERM | libc::EACCES);
        match errno {
            libc::ENOSPC => Obstacle::TooMany { limit },
            _ if is_refused && read("kernel/unprivileged_userns_clone") == Some(0) => Obstacle::SwitchedOff,
            _ if is_refused && read("kernel/apparmor_restrict_unprivileged_userns") == Some(1) => Obstacle::AppArmor,
            _ => Obstacle::Refused { step: step.to_owned(), reason: error.to_string() },
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Obstacle::TooMany { .. } => "as root: sysctl -w user.max_user_namespaces=15000",
            Obstacle::SwitchedOff => "as root: sysctl -w kernel.unprivileged_userns_clone=1",
            Obstacle::AppArmor => {
                "as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give the cfc binary an AppArmor \
                 profile that allows `userns`"
            }
            Obstacle::NotBuilt => "use a kernel built with CONFIG_USER_NS, or run cfc as root",
            Obstacle::Refused { .. } => {
                "in a container, allow it the system calls unshare and mount (Docker and Podman: --security-opt \
                 seccomp=unconfined; cfc: --grant nested); else run cfc as root"
            }
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this machine gives an ordinary user no user namespace: ")?;
        match self {
            Obstacle::TooMany { limit } => write!(f, "there are as many as `user.max_user_namespaces` allows, {limit}"),
            Obstacle::SwitchedOff => f.write_str("`kernel.unprivileged_userns_clone` is 0"),
            Obstacle::AppArmor => f.write_str("`kernel.apparmor_restrict_unprivileged_userns` is 1"),
            Obstacle::NotBuilt => f.write_str("its kernel has none"),
            Obstacle::Refused { step, reason } => write!(f, "cannot {step}: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(settings: &[(&str, &str)], errno: i32) -> Obstacle {
        let sysctls = tempfile::tempdir().expect("a directory");
        for (name, value) in settings {
            let path = sysctls.path().join(name);
            fs::create_dir_all(path.parent().expect("has one")).expect("makes");
            fs::write(path, value).expect("writes");
        }
        Obstacle::find_below(sysctls.path(), "make a user namespace", &io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn the_setting_that_is_in_the_way_is_named() {
        let free = ("user/max_user_namespaces", "15000\n");
        let apparmor = ("kernel/apparmor_restrict_unprivileged_userns", "1\n");
        assert_eq!(found(&[("user/max_user_namespaces", "0\n")], libc::ENOSPC), Obstacle::TooMany { limit: 0 });
        assert_eq!(found(&[free, ("kernel/unprivileged_userns_clone", "0\n")], libc::EPERM), Obstacle::SwitchedOff);
        assert_eq!(found(&[free, apparmor], libc::EPERM), Obstacle::AppArmor);
        assert_eq!(found(&[free, apparmor], libc::EACCES), Obstacle::AppArmor);
        assert_eq!(found(&[], libc::ENOSYS), Obstacle::NotBuilt);
        let other = found(&[free, ("kernel/unprivileged_userns_clone", "1\n")], libc::EPERM);
        assert!(matches!(&other, Obstacle::Refused { step, .. } if step == "make a user namespace"), "{other}");
    }
}
