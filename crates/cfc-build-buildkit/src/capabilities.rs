//! [`Capabilities`]: what a daemon says it can do. It is asked, not guessed from a version.

use std::collections::BTreeSet;

use bollard_buildkit_proto::moby::buildkit::v1::frontend::PongResponse;
use bollard_buildkit_proto::pb;

use crate::failure::{Failure, Result};

/// Copies that leave something out, or take only what matches.
pub(crate) const COPY_PATTERNS: &str = "file.copy.includeexcludepatterns";
/// Changes of permission bits in letters.
pub(crate) const COPY_MODE_TEXT: &str = "file.copy.modestring";
/// Paths that a pattern must find.
pub(crate) const COPY_REQUIRED: &str = "file.copy.requiredpaths";
/// Filesystems laid over each other.
pub(crate) const MERGE: &str = "mergeop";
/// The difference of two filesystems.
pub(crate) const DIFF: &str = "diffop";
/// Images out of the client's content store.
pub(crate) const LAYOUT: &str = "source.ocilayout";
/// Only some of a context's paths.
pub(crate) const FOLLOW_PATHS: &str = "source.local.followpaths";
/// Limits of processes.
pub(crate) const ULIMITS: &str = "exec.meta.ulimit";
/// The network of a program.
pub(crate) const NETWORK: &str = "exec.meta.network";
/// Programs that may do nearly everything.
pub(crate) const SECURITY: &str = "exec.meta.security";
/// A size of memory that is mounted.
pub(crate) const TMPFS_SIZE: &str = "exec.mount.tmpfs.size";
/// Secrets as variables.
pub(crate) const SECRET_VARIABLES: &str = "exec.secretenv";
/// Secrets as files.
pub(crate) const SECRETS: &str = "exec.mount.secret";
/// Sockets of ssh agents.
pub(crate) const SSH: &str = "exec.mount.ssh";
/// What a file of the network must be.
pub(crate) const HTTP_CHECKSUM: &str = "source.http.checksum";
/// What a commit must be.
pub(crate) const GIT_CHECKSUM: &str = "source.git.checksum";
/// Submodules left out.
pub(crate) const GIT_SUBMODULES: &str = "source.git.skipsubmodules";

/// What a daemon can do, and for which platforms.
#[derive(Clone, Debug, Default)]
pub(crate) struct Capabilities {
    names: BTreeSet<String>,
    version: Option<String>,
    platforms: Vec<pb::Platform>,
}

impl Capabilities {
    pub(crate) fn of(pong: PongResponse) -> Capabilities {
        tracing::debug!(capabilities = ?pong.llb_caps.iter().map(|capability| &capability.id).collect::<Vec<_>>(), "the daemon can do this");
        let enabled = pong.llb_caps.into_iter().filter(|capability| capability.enabled);
        let versions = pong.workers.iter().filter_map(|worker| worker.buildkit_version.as_ref());
        Capabilities {
            names: enabled.map(|capability| capability.id).collect(),
            version: versions.map(|version| version.version.clone()).find(|version| !version.is_empty()),
            platforms: pong.workers.into_iter().flat_map(|worker| worker.platforms).collect(),
        }
    }

    /// Whether the daemon can do what `name` stands for.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Fails where the daemon cannot do what `what` needs.
    pub(crate) fn need(&self, name: &str, what: &str) -> Result<()> {
        if self.has(name) {
            return Ok(());
        }
        let daemon = self.daemon();
        Err(Failure::new(format!("{daemon} does not know `{what}` (it has no `{name}`)"))
            .hint("use a newer BuildKit daemon, or build without `--builder buildkit`"))
    }

    /// Fails where the daemon runs nothing for `platform`.
    pub(crate) fn need_platform(&self, platform: &cfc_oci::Platform) -> Result<()> {
        let is_it = |known: &&pb::Platform| known.os == platform.os && known.architecture == platform.architecture;
        if self.platforms.is_empty() || self.platforms.iter().any(|known| is_it(&known)) {
            return Ok(());
        }
        let known: BTreeSet<String> =
            self.platforms.iter().map(|known| format!("{}/{}", known.os, known.architecture)).collect();
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        Err(Failure::new(format!("{} runs no programs for {platform}, only for {known}", self.daemon()))
            .hint("give its machine an emulator (binfmt_misc), or use a daemon on such a machine"))
    }

    /// As whom errors speak of it.
    fn daemon(&self) -> String {
        match &self.version {
            Some(version) => format!("this BuildKit daemon ({version})"),
            None => "this BuildKit daemon".to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let capabilities = Capabilities { version: Some("v0.8".to_string()), ..Capabilities::default() };
        let failure = capabilities.need(ULIMITS, "--ulimit").expect_err("it has none");
        let expected = "this BuildKit daemon (v0.8) does not know `--ulimit` (it has no `exec.meta.ulimit`)";
        assert_eq!(failure.message, expected);
        let amd64 = pb::Platform { os: "linux".into(), architecture: "amd64".into(), ..pb::Platform::default() };
        let capabilities = Capabilities { platforms: vec![amd64], ..Capabilities::default() };
        assert!(capabilities.need_platform(&cfc_oci::Platform::new("linux", "amd64")).is_ok());
        let failure = capabilities.need_platform(&cfc_oci::Platform::new("linux", "arm64")).expect_err("it is foreign");
        assert!(failure.message.ends_with("runs no programs for linux/arm64, only for linux/amd64"), "{failure:?}");
    }
}
