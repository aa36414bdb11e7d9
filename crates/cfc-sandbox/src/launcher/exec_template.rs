//! [`ExecTemplate`]: what a sandbox's further processes are given, kept from its start.

use std::ffi::CString;
use std::path::PathBuf;

use oci_spec::runtime::LinuxNamespaceType;

use super::blueprint::{Blueprint, UserPlan, c_strings};
use super::idmap::IdMappings;
use super::shell::ShellKind;
use crate::child::capabilities::CapabilityMasks;
use crate::error::ErrorKind;
use crate::seccomp::Program;

/// What a sandbox's own process was given, as far as further ones get it too. They never get more.
pub(crate) struct ExecTemplate {
    /// The namespaces to join, as `CLONE_NEW*`: all of the sandbox's but the pid namespace, which is given at birth.
    pub(crate) namespaces: u64,
    pub(crate) has_user_namespace: bool,
    pub(crate) rlimits: Vec<(u32, u64, u64)>,
    pub(crate) capabilities: CapabilityMasks,
    pub(crate) no_new_privileges: bool,
    pub(crate) seccomp: Program,
    pub(crate) user: UserPlan,
    pub(crate) environment: Vec<CString>,
    pub(crate) cwd: PathBuf,
    pub(crate) oom_score_adj: Option<i32>,
    mappings: Option<IdMappings>,
}

impl ExecTemplate {
    pub(crate) fn new(
        blueprint: &Blueprint,
        kind: &ShellKind,
        mappings: Option<&IdMappings>,
    ) -> Result<ExecTemplate, ErrorKind> {
        let cgroup = if kind.has_cgroup_namespace { LinuxNamespaceType::Cgroup as u64 } else { 0 };
        Ok(ExecTemplate {
            namespaces: (kind.clone_flags | cgroup) & !(LinuxNamespaceType::Pid as u64),
            has_user_namespace: blueprint.has_user_namespace,
            rlimits: blueprint.rlimits.clone(),
            capabilities: blueprint.capabilities,
            no_new_privileges: blueprint.no_new_privileges,
            seccomp: kind.seccomp.clone(),
            user: blueprint.user.clone(),
            environment: c_strings(&blueprint.environment, "process.env")?,
            cwd: blueprint.cwd.clone(),
            oom_score_adj: blueprint.oom_score_adj,
            mappings: mappings.cloned(),
        })
    }

    /// The host's ids of a user and group of the sandbox; `None` when it has no such ids.
    pub(crate) fn on_host(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        self.mappings.as_ref().map_or(Some((uid, gid)), |mappings| mappings.on_host(uid, gid))
    }
}
