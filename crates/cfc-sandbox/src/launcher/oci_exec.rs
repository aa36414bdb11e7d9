//! [`OciExec`]: what further processes of a sandbox need that an OCI runtime runs, kept from its start.

use std::path::PathBuf;

use oci_spec::runtime::{BoxBuilder, LinuxNamespaceType, Process, UserBuilder};
use serde::{Deserialize, Serialize};

use super::blueprint::UserPlan;
use super::exec_template::Defaults;
use super::idmap::IdMappings;
use super::oci_bundle::Bundle;
use crate::error::ErrorKind;
use crate::exec::ExecConfig;
use crate::oci_runtime::OciRuntime;

/// How the runtime is told of a further process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OciExec {
    pub(crate) runtime: OciRuntime,
    /// As in the [`Bundle`].
    pub(crate) scratch: PathBuf,
    /// The container's name for the runtime.
    pub(crate) id: String,
    /// The namespaces in which the runtime was started, as `CLONE_NEW*`: all but the pid namespace, which is given at birth.
    pub(crate) namespaces: u64,
    pub(crate) defaults: Defaults,
    /// The container's own, with all its restrictions.
    process: Process,
}

impl OciExec {
    /// `flags` are those with which the runtime's process was made.
    pub(crate) fn new(bundle: &Bundle, mappings: Option<&IdMappings>, flags: u64) -> Result<OciExec, ErrorKind> {
        Ok(OciExec {
            runtime: bundle.runtime.clone(),
            scratch: bundle.scratch.clone(),
            id: bundle.id.clone(),
            namespaces: flags & !(LinuxNamespaceType::Pid as u64),
            defaults: Defaults::new(&bundle.blueprint, mappings)?,
            process: bundle.process.clone(),
        })
    }

    /// Whether the runtime is root in a user namespace only: the container's.
    pub(crate) fn has_user_namespace(&self) -> bool {
        self.namespaces & LinuxNamespaceType::User as u64 != 0
    }

    /// The `process.json` of a command: the container's own, and what is asked for in its place.
    pub(crate) fn process(&self, config: &ExecConfig, user: &UserPlan, environment: Vec<String>) -> Process {
        let mut process = self.process.clone();
        process
            .set_args(Some(config.arguments.clone()))
            .set_env(Some(environment))
            .set_cwd(config.cwd.clone().unwrap_or_else(|| self.defaults.cwd.clone()))
            .set_terminal(Some(config.terminal.is_some()))
            .set_console_size(config.terminal.and_then(|size| {
                BoxBuilder::default().height(u64::from(size.rows)).width(u64::from(size.columns)).build().ok()
            }));
        let asked = UserBuilder::default().uid(user.uid).gid(user.gid).umask(user.umask);
        if let Ok(asked) = asked.additional_gids(user.groups.clone()).build() {
            process.set_user(asked);
        }
        process
    }
}
