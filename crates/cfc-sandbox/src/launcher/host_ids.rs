//! [`HostIds`]: which of the machine's ids sandboxes get.
//!
//! The machine's root gives a sandbox the ids of its spec, or a [range](super::ranges) of its own, and maps those of the mounts to them. In the user namespace of
//! an ordinary user there are only the ids it was given, and mounts cannot be mapped: sandboxes use them as they are.

use std::borrow::Cow;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceType, Mount, Spec};

use crate::config::{Root, SandboxConfig};
use crate::error::ErrorKind;
use crate::rootless::{self, SANDBOX_IDS};
use crate::step::Step;

/// Where the ids of sandboxes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostIds {
    /// The whole machine's are there to choose from.
    All,
    /// Those of our own user namespace: a sandbox's ids are these.
    Own { uids: Vec<LinuxIdMapping>, gids: Vec<LinuxIdMapping>, has_groups: bool },
}

impl HostIds {
    pub(crate) fn detect() -> HostIds {
        if rootless::is_in_initial_namespace() {
            return HostIds::All;
        }
        let read = |file: &str| fs::read_to_string(Path::new("/proc/self").join(file)).unwrap_or_default();
        HostIds::Own {
            uids: identity(&read("uid_map")),
            gids: identity(&read("gid_map")),
            has_groups: read("setgroups").trim() != "deny",
        }
    }

    /// Whether mounts can be given a sandbox's ids.
    pub(crate) fn can_map_mounts(&self) -> bool {
        *self == HostIds::All
    }

    /// How many users a sandbox can have.
    pub(crate) fn count(&self) -> u32 {
        match self {
            HostIds::All => SANDBOX_IDS,
            HostIds::Own { uids, .. } => uids.iter().map(LinuxIdMapping::size).sum(),
        }
    }

    /// `config` with what these ids allow: the mappings, and nothing that names an id which does not exist here.
    pub(crate) fn fit<'c>(&self, config: &'c SandboxConfig) -> Cow<'c, SandboxConfig> {
        let HostIds::Own { uids, gids, has_groups } = self else { return Cow::Borrowed(config) };
        let mut config = config.clone();
        if let Some(linux) = config.spec.linux_mut()
            && has_user_namespace(linux)
        {
            linux.set_uid_mappings(Some(uids.clone())).set_gid_mappings(Some(gids.clone()));
            drop_ping_group_range(linux, gids);
        }
        if let Some(mounts) = config.spec.mounts_mut() {
            mounts.iter_mut().for_each(|mount| drop_unknown_gid(mount, gids));
        }
        if !has_groups {
            drop_groups(&mut config.spec);
        }
        Cow::Owned(config)
    }

    /// Makes the directories that an overlay writes to the sandbox's root's own, where their owner is nobody inside.
    pub(crate) fn hand_over(&self, root: &Root) -> Result<(), ErrorKind> {
        let (HostIds::Own { uids, .. }, Root::Overlay { upper, work, .. }) = (self, root) else { return Ok(()) };
        for path in [upper, work] {
            let owner = fs::metadata(path).step(|| format!("find {}", path.display()))?.uid();
            if !holds(uids, owner) {
                chown(path, Some(0), Some(0)).step(|| format!("give {} to the sandbox's root", path.display()))?;
            }
        }
        Ok(())
    }
}

fn has_user_namespace(linux: &Linux) -> bool {
    linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::User)
}

/// The ids of a `/proc/self/uid_map` that a sandbox may have, each as itself.
fn identity(map: &str) -> Vec<LinuxIdMapping> {
    let range = |line: &str| {
        let mut fields = line.split_whitespace().map(str::parse::<u32>);
        let (first, count) = (fields.next()?.ok()?, fields.nth(1)?.ok()?);
        let count = count.min(SANDBOX_IDS.saturating_sub(first));
        let mapping = LinuxIdMappingBuilder::default().container_id(first).host_id(first).size(count);
        mapping.build().ok().filter(|_| count > 0)
    };
    map.lines().filter_map(range).collect()
}

fn holds(ranges: &[LinuxIdMapping], id: u32) -> bool {
    ranges.iter().any(|range| id >= range.container_id() && id - range.container_id() < range.size())
}

/// The range ends with the last group, which must exist. Without it, ping needs CAP_NET_RAW.
fn drop_ping_group_range(linux: &mut Linux, gids: &[LinuxIdMapping]) {
    let Some(mut sysctl) = linux.sysctl().clone().filter(|_| !holds(gids, SANDBOX_IDS - 1)) else { return };
    sysctl.remove("net.ipv4.ping_group_range");
    linux.set_sysctl(Some(sysctl));
}

fn drop_unknown_gid(mount: &mut Mount, gids: &[LinuxIdMapping]) {
    let is_known = |option: &String| {
        let gid = option.strip_prefix("gid=").and_then(|gid| gid.parse().ok());
        gid.is_none_or(|gid| holds(gids, gid))
    };
    let Some(options) = mount.options().clone() else { return };
    mount.set_options(Some(options.into_iter().filter(is_known).collect()));
}

fn drop_groups(spec: &mut Spec) {
    let Some(process) = spec.process_mut() else { return };
    let mut user = process.user().clone();
    user.set_additional_gids(None);
    process.set_user(user);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::default_spec;

    fn fitted(map: &str) -> Spec {
        let ids = HostIds::Own { uids: identity(map), gids: identity(map), has_groups: map.lines().count() > 1 };
        let root = Root::Directory { path: "/".into() };
        let (network, stdio) = (crate::Network::Isolated, crate::Stdio::Files);
        let mut spec = default_spec();
        let process = spec.process_mut().as_mut().expect("has one");
        let mut user = process.user().clone();
        user.set_additional_gids(Some(vec![5]));
        process.set_user(user);
        ids.fit(&SandboxConfig { id: "x".into(), spec, root, network, stdio, runtime: None }).into_owned().spec
    }

    #[test]
    fn a_sandbox_has_the_ids_of_the_namespace_but_never_cfcs_own() {
        let spec = fitted("0 100000 65536\n65536 1000 1\n");
        let linux = spec.linux().as_ref().expect("has it");
        let uids = linux.uid_mappings().as_ref().expect("has them");
        assert_eq!(
            uids.iter().map(|r| (r.container_id(), r.host_id(), r.size())).collect::<Vec<_>>(),
            [(0, 0, 65_536)]
        );
        assert!(linux.sysctl().as_ref().expect("has them").contains_key("net.ipv4.ping_group_range"));
        let user = spec.process().as_ref().expect("has one").user();
        assert_eq!(user.additional_gids().as_deref(), Some(&[5][..]));
    }

    #[test]
    fn with_a_single_id_nothing_names_another() {
        let spec = fitted("0 1000 1\n");
        let linux = spec.linux().as_ref().expect("has it");
        assert!(!linux.sysctl().as_ref().expect("has them").contains_key("net.ipv4.ping_group_range"));
        let mut options = spec.mounts().iter().flatten().filter_map(|mount| mount.options().as_ref()).flatten();
        assert!(!options.any(|option| option.starts_with("gid=")));
        assert!(spec.process().as_ref().expect("has one").user().additional_gids().is_none());
    }
}
