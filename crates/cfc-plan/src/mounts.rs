//! `RUN --mount`.

use cfc_dockerfile::{Instruction, MountError, MountKind as Kind, Sharing, Span, Spanned};

use crate::stage::StageLowering;
use crate::{CopySource, FileOwner, Mount, MountKind, NodeId, Op, PlanError, SecretVariable, path};

/// Namespaces caches, as BuildKit has it, by a build argument.
const CACHE_NAMESPACE: &str = "BUILDKIT_CACHE_MOUNT_NS";
const SECRETS: &str = "/run/secrets";
const SSH_SOCKETS: &str = "/run/buildkit/ssh_agent";
const SSH_VARIABLE: &str = "SSH_AUTH_SOCK";

/// What the flags of a `RUN` ask for.
#[derive(Default)]
pub(crate) struct Mounts {
    pub(crate) mounts: Vec<Mount>,
    pub(crate) secret_variables: Vec<SecretVariable>,
}

impl StageLowering<'_, '_> {
    pub(crate) fn mounts(
        &mut self,
        run: &cfc_dockerfile::Run,
        instruction: &Spanned<Instruction>,
    ) -> Result<Mounts, PlanError> {
        let mut mounts = Mounts::default();
        for text in run.flags_named("mount") {
            let mount = self.parse_mount(text, instruction.span)?;
            match mount.kind {
                Kind::Bind => mounts.mounts.push(self.bind(&mount, text, instruction)?),
                Kind::Cache => mounts.mounts.push(self.cache(&mount, text, instruction)?),
                Kind::Tmpfs => {
                    let target = self.target(&mount, text, instruction.span)?;
                    mounts.mounts.push(Mount { target, kind: MountKind::Tmpfs { size: mount.size } });
                }
                Kind::Secret => self.secret(&mount, &mut mounts, instruction.span),
                Kind::Ssh => self.ssh(&mount, &mut mounts, instruction.span),
            }
        }
        Ok(mounts)
    }

    fn parse_mount(&self, text: &str, span: Span) -> Result<cfc_dockerfile::Mount, PlanError> {
        let environment = &self.state.environment;
        let env = |name: &str| environment.get(name).map(str::to_string);
        let escape = self.dockerfile().directives.escape;
        let expand = |value: &str| cfc_dockerfile::expand(value, escape, &env);
        cfc_dockerfile::Mount::parse(text, &expand).map_err(|MountError { message, hint }| {
            let mut error = self.error(span, format!("`--mount={text}`: {message}"));
            error.hint = hint;
            error
        })
    }

    fn bind(
        &mut self,
        mount: &cfc_dockerfile::Mount,
        text: &str,
        instruction: &Spanned<Instruction>,
    ) -> Result<Mount, PlanError> {
        let target = self.target(mount, text, instruction.span)?;
        let path = source_path(mount);
        let node = match &mount.from {
            Some(from) => self.mounted(from, &path, instruction)?,
            None => self.aside(Op::Context { name: None, path: path.clone() }, instruction),
        };
        Ok(Mount { target, kind: MountKind::Bind { node, path, is_writable: !mount.read_only } })
    }

    fn cache(
        &mut self,
        mount: &cfc_dockerfile::Mount,
        text: &str,
        instruction: &Spanned<Instruction>,
    ) -> Result<Mount, PlanError> {
        let target = self.target(mount, text, instruction.span)?;
        let from = mount.from.as_deref().filter(|from| *from != "scratch");
        let path = source_path(mount);
        let node: Option<NodeId> = from.map(|from| self.mounted(from, &path, instruction)).transpose()?;
        let namespace = self.lowering.request.build_args.get(CACHE_NAMESPACE).map_or("", String::as_str);
        let id = mount.id.clone().unwrap_or_else(|| target.clone());
        let kind = MountKind::Cache {
            id: format!("{namespace}/{id}"),
            sharing: mount.sharing.unwrap_or(Sharing::Shared),
            node,
            path,
            is_read_only: mount.read_only,
            owner: owner(mount, 0o755),
        };
        Ok(Mount { target, kind })
    }

    /// The node that has `path` of what `from` names.
    fn mounted(&mut self, from: &str, path: &str, instruction: &Spanned<Instruction>) -> Result<NodeId, PlanError> {
        Ok(match self.copy_source(from, instruction)? {
            CopySource::Node(node) => node,
            CopySource::Named(name) => {
                self.aside(Op::Context { name: Some(name), path: path.to_string() }, instruction)
            }
            CopySource::Context => self.aside(Op::Context { name: None, path: path.to_string() }, instruction),
        })
    }

    fn secret(&mut self, mount: &cfc_dockerfile::Mount, mounts: &mut Mounts, span: Span) {
        let named = mount.source.clone().or_else(|| mount.id.clone());
        let of_target = || mount.target.as_deref().map(|target| last_part(target).to_string());
        let id = named.or_else(of_target).or_else(|| mount.env.clone()).unwrap_or_default();
        let is_required = mount.required;
        self.lowering.capture.secret(&id, is_required, span);
        if let Some(name) = &mount.env {
            mounts.secret_variables.push(SecretVariable { id: id.clone(), name: name.clone(), is_required });
        }
        if mount.env.is_none() || mount.target.is_some() {
            let target = mount.target.clone().unwrap_or_else(|| format!("{SECRETS}/{}", last_part(&id)));
            let target = path::join(&self.state.config.config.working_dir, &target);
            let kind = MountKind::Secret { id, owner: owner(mount, 0o400), is_required };
            mounts.mounts.push(Mount { target, kind });
        }
    }

    fn ssh(&mut self, mount: &cfc_dockerfile::Mount, mounts: &mut Mounts, span: Span) {
        let is_ssh = |mount: &&Mount| matches!(mount.kind, MountKind::Ssh { .. });
        let number = mounts.mounts.iter().filter(is_ssh).count();
        let target = mount.target.clone().unwrap_or_else(|| format!("{SSH_SOCKETS}.{number}"));
        let id = mount.id.clone().unwrap_or_else(|| "default".to_string());
        self.lowering.capture.ssh(&id, mount.required, span);
        let kind = MountKind::Ssh { id, owner: owner(mount, 0o600), is_required: mount.required };
        mounts.mounts.push(Mount { target: path::join(&self.state.config.config.working_dir, &target), kind });
    }

    /// Where `mount` goes: relative to the working directory, and never the root.
    fn target(&self, mount: &cfc_dockerfile::Mount, text: &str, span: Span) -> Result<String, PlanError> {
        let named = mount.target.as_deref().unwrap_or_default();
        let target = path::join(&self.state.config.config.working_dir, named);
        if target == "/" {
            let error = self.error(span, format!("`--mount={text}`: invalid mount target `/`"));
            return Err(error.with_hint("name a directory below the root: `target=/src`, or set a WORKDIR"));
        }
        Ok(target)
    }
}

impl crate::Run {
    /// The variable that tells programs where the ssh agent is, when there is one; a variable of the same name that the
    /// Dockerfile sets wins.
    pub fn ssh_variable(&self) -> Option<(&'static str, &str)> {
        let socket = self.mounts.iter().find(|mount| matches!(mount.kind, MountKind::Ssh { .. }))?;
        Some((SSH_VARIABLE, &socket.target))
    }
}

fn source_path(mount: &cfc_dockerfile::Mount) -> String {
    path::clean(mount.source.as_deref().unwrap_or_default())
}

fn owner(mount: &cfc_dockerfile::Mount, mode: u32) -> FileOwner {
    FileOwner { uid: mount.uid.unwrap_or(0), gid: mount.gid.unwrap_or(0), mode: mount.mode.unwrap_or(mode) }
}

fn last_part(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}
