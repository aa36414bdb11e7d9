//! The mounts of a `RUN`: what they are made of here, held for as long as the program runs.

mod cache;
mod copy_tree;
mod secret;
mod ssh;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use cfc_plan::{Context, Mount, MountKind, NodeId, Run};
use cfc_sandbox::oci;
use cfc_store::Store;

use self::cache::{CacheLock, Caches};
use self::secret::Secret;
use self::ssh::SshProxy;
use crate::failure::{Failure, OnPath, Result};
use crate::layer::Layer;
use crate::renewal::renewed;
use crate::run::{Running, has_cache, make_upper};
use crate::tree::{Last, Lookup, resolve};
use crate::view::{View, unpacked};

/// What mounts are made from.
pub(crate) struct Sources<'a> {
    pub(crate) context: &'a Context,
    /// The layers of the nodes that are mounted.
    pub(crate) layers: BTreeMap<NodeId, &'a [Layer]>,
}

impl Sources<'_> {
    fn layers_of(&self, node: NodeId) -> &[Layer] {
        self.layers.get(&node).copied().unwrap_or_default()
    }
}

/// Everything that a program's mounts need while it runs.
#[derive(Default)]
pub(crate) struct Prepared {
    pub(crate) mounts: Vec<oci::Mount>,
    /// Variables that go with them: secrets, and where the ssh agent is.
    pub(crate) variables: Vec<(String, String)>,
    secrets: Vec<Secret>,
    _sockets: Vec<SshProxy>,
    _caches: Vec<CacheLock>,
}

impl Prepared {
    /// Makes ready what `run` wants mounted, below `workspace`. Waits for caches that others use.
    pub(crate) fn new(
        store: &Store,
        run: &Run,
        sources: &Sources<'_>,
        workspace: &Path,
        running: &Running,
    ) -> Result<Prepared> {
        let mut prepared = Prepared::default();
        let maker = Maker { store, sources, workspace, renews: has_cache(run) };
        let caches = Caches::take(store, &run.mounts, running, &|node, path| maker.seed(node, path))?;
        for (number, mount) in run.mounts.iter().enumerate() {
            match &mount.kind {
                MountKind::Bind { node, path, is_writable } => {
                    let options = maker.bind(number, mount, *node, path, *is_writable)?;
                    prepared.mounts.push(oci_mount("overlay", &mount.target, None, options));
                }
                MountKind::Cache { id, is_read_only, .. } => {
                    let access = if *is_read_only { "ro" } else { "rw" };
                    let options = ["bind", "nodev", access].map(str::to_string).to_vec();
                    prepared.mounts.push(oci_mount("bind", &mount.target, Some(caches.directory(id)), options));
                }
                MountKind::Tmpfs { size } => {
                    let size = size.map(|size| format!("size={size}"));
                    let options = ["nosuid".to_string()].into_iter().chain(size).collect();
                    prepared.mounts.push(oci_mount("tmpfs", &mount.target, None, options));
                }
                MountKind::Script { content } => {
                    let path = maker.script(number, content)?;
                    let options = vec!["bind".to_string(), "ro".to_string()];
                    prepared.mounts.push(oci_mount("bind", &mount.target, Some(path), options));
                }
                MountKind::Secret { id, owner, is_required } => {
                    let Some(secret) = Secret::open(sources.context, id, *is_required)? else { continue };
                    prepared.mounts.push(oci_mount(
                        "file",
                        &mount.target,
                        Some(secret.path()),
                        secret::options(*owner),
                    ));
                    prepared.secrets.push(secret);
                }
                MountKind::Ssh { id, owner, is_required } => {
                    let Some(proxy) = SshProxy::start(sources.context, id, *is_required, *owner, workspace, number)?
                    else {
                        continue;
                    };
                    let options = vec!["bind".to_string(), "ro".to_string()];
                    prepared.mounts.push(oci_mount("bind", &mount.target, Some(proxy.path().to_path_buf()), options));
                    if prepared._sockets.is_empty() {
                        let variable = run.ssh_variable().map(|(name, path)| (name.to_string(), path.to_string()));
                        prepared.variables.extend(variable);
                    }
                    prepared._sockets.push(proxy);
                }
            }
        }
        for variable in &run.secret_variables {
            let value = secret::variable(sources.context, &variable.id, variable.is_required)?;
            prepared.variables.extend(value.map(|value| (variable.name.clone(), value)));
        }
        prepared._caches = caches.into_locks();
        Ok(prepared)
    }
}

/// Makes what is mounted.
struct Maker<'a> {
    store: &'a Store,
    sources: &'a Sources<'a>,
    workspace: &'a Path,
    /// Whether copied files get the present time.
    renews: bool,
}

impl Maker<'_> {
    /// The options of an overlay that shows `path` of the filesystem of `node`.
    fn bind(&self, number: usize, mount: &Mount, node: NodeId, path: &str, is_writable: bool) -> Result<Vec<String>> {
        let layers = self.sources.layers_of(node);
        self.find(layers, path, &format!("is mounted at `{}`", mount.target))?;
        let mut lowers = match self.renews {
            true => renewed(self.store, layers, &self.directory(&format!("mount-{number}"))?)?,
            false => unpacked(self.store, layers)?,
        };
        // Without a directory to write to, an overlay has at least two.
        while lowers.is_empty() || (lowers.len() == 1 && !is_writable) {
            lowers.push(self.directory(&format!("nothing-{number}-{}", lowers.len()))?);
        }
        let mut options: Vec<String> = lowers.iter().map(|lower| format!("lowerdir={}", lower.display())).collect();
        options.push(format!("subpath={path}"));
        if !is_writable {
            options.push("ro".to_string());
            return Ok(options);
        }
        let changes = self.directory(&format!("changes-{number}"))?;
        let upper = make_upper(&changes, &lowers[0])?;
        options.push(format!("upperdir={}", upper.display()));
        let work = changes.join("work");
        fs::create_dir(&work).on("make the directory", &work)?;
        // As an ordinary user we are somebody else than the sandbox's root, who writes here.
        let owner = upper.metadata().on("look at", &upper)?;
        chown(&work, Some(owner.uid()), Some(owner.gid())).on("give away", &work)?;
        options.push(format!("workdir={}", work.display()));
        Ok(options)
    }

    /// Fails, naming it, when `path` is not in `layers`.
    fn find(&self, layers: &[Layer], path: &str, purpose: &str) -> Result<(View, PathBuf)> {
        let view = View::for_reading(self.store, layers)?;
        let resolved = resolve(&view, Path::new(path), Last::Followed)?;
        if view.lookup(&resolved)?.is_none() {
            return Err(Failure::new(format!("there is no `{path}` in what {purpose}"))
                .hint("`source=` is below the root of the stage, image or build context"));
        }
        Ok((view, resolved))
    }

    /// What a new cache begins with.
    fn seed(&self, node: NodeId, path: &str) -> Result<(View, PathBuf)> {
        self.find(self.sources.layers_of(node), path, "a cache begins with")
    }

    fn script(&self, number: usize, content: &str) -> Result<PathBuf> {
        let path = self.workspace.join(format!("script-{number}"));
        fs::write(&path, content).on("write", &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).on("open up", &path)?;
        Ok(path)
    }

    fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.workspace.join(name);
        fs::create_dir(&path).on("make the directory", &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).on("open up", &path)?;
        Ok(path)
    }
}

fn oci_mount(kind: &str, target: &str, source: Option<PathBuf>, options: Vec<String>) -> oci::Mount {
    let mut mount = oci::Mount::default();
    mount.set_destination(PathBuf::from(target));
    mount.set_typ(Some(kind.to_string()));
    mount.set_source(source);
    mount.set_options(Some(options));
    mount
}
