//! [`Exec`]: a program that is run, with everything that is mounted for it.

use bollard_buildkit_proto::pb;
use cfc_dockerfile::Sharing;
use cfc_plan::{ExtraHost, FileOwner, RunNetwork, SecretVariable, Ulimit};

use super::{Inputs, State};

/// The result of a mount that nobody uses.
const NO_OUTPUT: i64 = -1;

/// A program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exec {
    /// Its root filesystem.
    pub(crate) root: State,
    /// It and its arguments.
    pub(crate) args: Vec<String>,
    /// Its environment.
    pub(crate) env: Vec<(String, String)>,
    /// Proxy settings, which do not tell one run from another.
    pub(crate) proxies: Vec<(String, String)>,
    /// Where it starts.
    pub(crate) working_directory: String,
    /// Who runs it.
    pub(crate) user: String,
    /// What is mounted.
    pub(crate) mounts: Vec<ExecMount>,
    /// Secrets among its variables.
    pub(crate) secret_variables: Vec<SecretVariable>,
    /// Its network.
    pub(crate) network: RunNetwork,
    /// Whether it may do nearly everything to the kernel.
    pub(crate) is_insecure: bool,
    /// Further names of hosts.
    pub(crate) hosts: Vec<ExtraHost>,
    /// Limits.
    pub(crate) ulimits: Vec<Ulimit>,
}

/// A mount.
#[derive(Clone, Debug)]
pub(crate) struct ExecMount {
    /// Where to.
    pub(crate) target: String,
    /// What.
    pub(crate) source: MountSource,
}

/// What is mounted.
#[derive(Clone, Debug)]
pub(crate) enum MountSource {
    /// A part of a filesystem; what is written is lost.
    Bind { state: State, path: String, access: Access },
    /// A directory that the daemon keeps.
    Cache(Cache),
    /// Memory, in bytes; the daemon's usual size when none is said.
    Tmpfs { size: Option<u64> },
    /// A secret as a file.
    Secret { id: String, owner: FileOwner, is_required: bool },
    /// The socket of an ssh agent.
    Ssh { id: String, owner: FileOwner, is_required: bool },
}

/// Whether a mount can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Only read.
    Read,
    /// Also written.
    Write,
}

/// A directory that outlives builds.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    /// Caches of one id are one.
    pub(crate) id: String,
    /// Who may use it at once.
    pub(crate) sharing: Sharing,
    /// What it begins with.
    pub(crate) state: State,
    /// The part of that.
    pub(crate) path: String,
    /// Whether it can be written to.
    pub(crate) access: Access,
}

impl Exec {
    /// Nothing yet, on the root filesystem `root`.
    pub(crate) fn on(root: State) -> Exec {
        Exec { root, ..Exec::default() }
    }

    pub(super) fn to_message(&self, inputs: &mut Inputs) -> pb::ExecOp {
        let root = pb::Mount { input: inputs.number(&self.root), dest: "/".to_string(), ..pb::Mount::default() };
        let others = self.mounts.iter().map(|mount| mount.to_message(inputs));
        let mounts = std::iter::once(root).chain(others).collect();
        let network = match self.network {
            RunNetwork::Default => pb::NetMode::Unset,
            RunNetwork::None => pb::NetMode::None,
            RunNetwork::Host => pb::NetMode::Host,
        };
        let security = if self.is_insecure { pb::SecurityMode::Insecure } else { pb::SecurityMode::Sandbox };
        let secretenv = self.secret_variables.iter().map(|variable| pb::SecretEnv {
            id: variable.id.clone(),
            name: variable.name.clone(),
            optional: !variable.is_required,
        });
        pb::ExecOp {
            meta: Some(self.meta()),
            mounts,
            network: network.into(),
            security: security.into(),
            secretenv: secretenv.collect(),
            cdi_devices: Vec::new(),
        }
    }

    fn meta(&self) -> pb::Meta {
        let limit = |value: u64| i64::try_from(value).unwrap_or(-1);
        pb::Meta {
            args: self.args.clone(),
            env: self.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            cwd: self.working_directory.clone(),
            user: self.user.clone(),
            proxy_env: proxies(&self.proxies),
            extra_hosts: (self.hosts.iter())
                .map(|host| pb::HostIp { host: host.name.clone(), ip: host.address.to_string() })
                .collect(),
            ulimit: (self.ulimits.iter())
                .map(|it| pb::Ulimit { name: it.name.to_string(), soft: limit(it.soft), hard: limit(it.hard) })
                .collect(),
            // What was made to mount something on is no part of the image. Old daemons do not know the word.
            remove_mount_stubs_recursive: true,
            ..pb::Meta::default()
        }
    }
}

/// BuildKit sets each in both cases of letters.
fn proxies(proxies: &[(String, String)]) -> Option<pb::ProxyEnv> {
    if proxies.is_empty() {
        return None;
    }
    let value = |name: &str| {
        let found = proxies.iter().find(|(variable, _)| variable.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    Some(pb::ProxyEnv {
        http_proxy: value("http_proxy"),
        https_proxy: value("https_proxy"),
        ftp_proxy: value("ftp_proxy"),
        no_proxy: value("no_proxy"),
        all_proxy: value("all_proxy"),
    })
}

impl ExecMount {
    fn to_message(&self, inputs: &mut Inputs) -> pb::Mount {
        let mut mount =
            pb::Mount { input: Inputs::NOTHING, dest: self.target.clone(), output: NO_OUTPUT, ..pb::Mount::default() };
        let kind = match &self.source {
            MountSource::Bind { state, path, access } => {
                mount.input = inputs.number(state);
                mount.selector = selector(path);
                mount.readonly = *access == Access::Read;
                pb::MountType::Bind
            }
            MountSource::Cache(cache) => {
                mount.input = inputs.number(&cache.state);
                mount.selector = selector(&cache.path);
                mount.readonly = cache.access == Access::Read;
                let sharing = match cache.sharing {
                    Sharing::Shared => pb::CacheSharingOpt::Shared,
                    Sharing::Private => pb::CacheSharingOpt::Private,
                    Sharing::Locked => pb::CacheSharingOpt::Locked,
                };
                mount.cache_opt = Some(pb::CacheOpt { id: cache.id.clone(), sharing: sharing.into() });
                pb::MountType::Cache
            }
            MountSource::Tmpfs { size } => {
                mount.tmpfs_opt = size.map(|size| pb::TmpfsOpt { size: i64::try_from(size).unwrap_or(i64::MAX) });
                pb::MountType::Tmpfs
            }
            MountSource::Secret { id, owner, is_required } => {
                let FileOwner { uid, gid, mode } = *owner;
                let (id, optional) = (id.clone(), !is_required);
                mount.secret_opt = Some(pb::SecretOpt { id, uid, gid, mode, optional });
                pb::MountType::Secret
            }
            MountSource::Ssh { id, owner, is_required } => {
                let FileOwner { uid, gid, mode } = *owner;
                let (id, optional) = (id.clone(), !is_required);
                mount.ssh_opt = Some(pb::SshOpt { id, uid, gid, mode, optional });
                pb::MountType::Ssh
            }
        };
        mount.mount_type = kind.into();
        mount
    }
}

/// The root is nothing that has to be selected.
fn selector(path: &str) -> String {
    if path == "/" { String::new() } else { path.to_string() }
}
