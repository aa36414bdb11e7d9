//! [`Furniture`]: what of a sandbox's root depends on its spec alone, so that a shell can have it before its root exists.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Linux, Mount, Spec};

use super::blueprint::{is_new, plan_sysctl};
use super::mount_options::MountOptions;
use crate::error::ErrorKind;

/// The new filesystems of a spec, and what is done to what they show.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Furniture {
    /// In the order of the spec.
    pub(crate) pieces: Vec<Piece>,
    /// Names with slashes. Of what else the spec says a start takes care.
    pub(crate) sysctl: Vec<(String, String)>,
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) masked_paths: Vec<String>,
}

/// A new filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Which of the spec's mounts it is.
    pub(crate) index: usize,
    pub(crate) target: PathBuf,
    pub(crate) filesystem: String,
    pub(crate) options: MountOptions,
    /// Which of the spec's mounts it is mounted in already: a piece too, above it.
    pub(crate) within: Option<usize>,
}

impl Furniture {
    /// What `spec` says. A sandbox that shares the host's network (`shares_network`) has the host's sysfs.
    pub(crate) fn of(
        spec: &Spec,
        linux: &Linux,
        shares_network: bool,
        owns_network: bool,
    ) -> Result<Furniture, ErrorKind> {
        let mounts = spec.mounts().as_deref().unwrap_or_default();
        let mut furniture = Furniture::default();
        for (index, mount) in mounts.iter().enumerate() {
            if !is_new(mount, shares_network) {
                continue;
            }
            let within = furniture.home(mount.destination(), &mounts[..index], shares_network);
            furniture.pieces.push(Piece {
                index,
                target: mount.destination().clone(),
                filesystem: mount.typ().clone().unwrap_or_default(),
                options: MountOptions::parse(mount.options().as_deref().unwrap_or_default()),
                within,
            });
        }
        let is_shown = |path: &str| furniture.home(Path::new(path), mounts, shares_network).is_some();
        let shown = |paths: &Option<Vec<String>>| -> Vec<String> {
            paths.iter().flatten().filter(|path| is_shown(path)).cloned().collect()
        };
        let (readonly_paths, masked_paths) = (shown(linux.readonly_paths()), shown(linux.masked_paths()));
        let sysctl = if is_shown("/proc/sys") { plan_sysctl(linux, owns_network)? } else { Vec::new() };
        Ok(Furniture { sysctl, readonly_paths, masked_paths, ..furniture })
    }

    /// The mount below which `path` is, when that is a piece and nothing of the host is among the `mounts` below it.
    fn home(&self, path: &Path, mounts: &[Mount], shares_network: bool) -> Option<usize> {
        if !is_plain(path) {
            return None;
        }
        let holds = |piece: &&Piece| piece.within.is_none() && is_below(path, &piece.target);
        let piece = self.pieces.iter().rev().find(holds)?;
        let is_intruder = |mount: &Mount| {
            let target = mount.destination();
            !is_new(mount, shares_network) && (target.starts_with(&piece.target) || !is_plain(target))
        };
        (is_plain(&piece.target) && !mounts.iter().any(is_intruder)).then_some(piece.index)
    }

    /// The piece that is the mount with this index.
    pub(crate) fn piece(&self, index: usize) -> Option<&Piece> {
        self.pieces.iter().find(|piece| piece.index == index)
    }

    /// The piece that shows `path` and is mounted in no other, and `path` as seen from its root.
    pub(crate) fn shows<'p>(&self, path: &'p Path) -> Option<(&Piece, &'p Path)> {
        let outer = self.pieces.iter().rev().filter(|piece| piece.within.is_none());
        outer.filter_map(|piece| Some((piece, path.strip_prefix(&piece.target).ok()?))).next()
    }
}

fn is_below(path: &Path, ancestor: &Path) -> bool {
    path != ancestor && path.starts_with(ancestor)
}

/// Whether the path says by itself where it leads to, links aside.
fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn furniture(mounts: serde_json::Value) -> Furniture {
        let linux = json!({
            "maskedPaths": ["/proc/kcore", "/opt/secret"],
            "readonlyPaths": ["/proc/sys"],
            "sysctl": {"net.ipv4.ping_group_range": "0 1"},
        });
        let spec: Spec =
            serde_json::from_value(json!({"ociVersion": "1.2.0", "mounts": mounts, "linux": linux})).expect("a spec");
        let linux = spec.linux().clone().expect("has one");
        Furniture::of(&spec, &linux, false, true).expect("valid")
    }

    fn within(furniture: &Furniture) -> Vec<(usize, Option<usize>)> {
        furniture.pieces.iter().map(|piece| (piece.index, piece.within)).collect()
    }

    fn mount(target: &str, kind: &str) -> serde_json::Value {
        json!({"destination": target, "type": kind, "source": "/tmp"})
    }

    #[test]
    fn what_is_mounted_in_a_new_filesystem_comes_with_it() {
        let found = furniture(json!([
            mount("/proc", "proc"),
            mount("/dev", "tmpfs"),
            mount("/dev/shm", "tmpfs"),
            mount("/etc/hosts", "bind"),
        ]));
        assert_eq!(within(&found), [(0, None), (1, None), (2, Some(1))]);
        assert_eq!(found.masked_paths, ["/proc/kcore"]);
        assert_eq!(found.readonly_paths, ["/proc/sys"]);
        assert_eq!(found.sysctl, [("net/ipv4/ping_group_range".to_owned(), "0 1".to_owned())]);
        assert_eq!(
            found.shows(Path::new("/proc/kcore")).map(|(piece, rest)| (piece.index, rest)),
            Some((0, Path::new("kcore")))
        );
    }

    #[test]
    fn where_the_host_shows_between_new_filesystems_the_order_of_the_spec_decides() {
        let found = furniture(json!([
            mount("/proc", "proc"),
            mount("/proc/kcore", "bind"),
            mount("/dev", "tmpfs"),
            mount("/dev/a", "bind"),
            mount("/dev/shm", "tmpfs"),
        ]));
        assert_eq!(within(&found), [(0, None), (2, None), (4, None)]);
        assert!(found.masked_paths.is_empty() && found.readonly_paths.is_empty() && found.sysctl.is_empty());
    }

    #[test]
    fn a_path_that_goes_back_is_left_to_the_start() {
        let found = furniture(json!([mount("/dev", "tmpfs"), mount("/dev/../x", "bind"), mount("/dev/shm", "tmpfs")]));
        assert_eq!(within(&found), [(0, None), (2, None)]);
        assert!(found.sysctl.is_empty(), "no proc");
    }
}
