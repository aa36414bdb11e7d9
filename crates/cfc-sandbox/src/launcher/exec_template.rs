//! [`ExecMeans`]: how a sandbox's further processes are made, and what they are given, kept from its start.

use std::ffi::CString;
use std::path::PathBuf;

use oci_spec::runtime::LinuxNamespaceType;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::blueprint::{Blueprint, UserPlan, c_strings};
use super::idmap::IdMappings;
use super::oci_exec::OciExec;
use super::shell::ShellKind;
use crate::child::capabilities::CapabilityMasks;
use crate::error::ErrorKind;
use crate::seccomp::Program;

/// How further processes of a sandbox are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum ExecMeans {
    Own(Box<ExecTemplate>),
    /// By the OCI runtime that runs it.
    Runtime(Box<OciExec>),
}

/// What a sandbox's own process was given, as far as further ones get it too. They never get more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExecTemplate {
    /// The namespaces to join, as `CLONE_NEW*`: all of the sandbox's but the pid namespace, which is given at birth.
    pub(crate) namespaces: u64,
    pub(crate) has_user_namespace: bool,
    pub(crate) rlimits: Vec<(u32, u64, u64)>,
    pub(crate) capabilities: CapabilityMasks,
    pub(crate) no_new_privileges: bool,
    #[serde(serialize_with = "as_slice", deserialize_with = "shared")]
    pub(crate) seccomp: Program,
    pub(crate) defaults: Defaults,
}

/// What the sandbox's own process has, and a further one unless something else is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Defaults {
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
            defaults: Defaults::new(blueprint, mappings)?,
        })
    }
}

impl Defaults {
    pub(crate) fn new(blueprint: &Blueprint, mappings: Option<&IdMappings>) -> Result<Defaults, ErrorKind> {
        Ok(Defaults {
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

fn as_slice<S: Serializer>(program: &Program, serializer: S) -> Result<S::Ok, S::Error> {
    program.as_ref().serialize(serializer)
}

fn shared<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Program, D::Error> {
    Vec::deserialize(deserializer).map(Program::from)
}
