//! A plan lowered to LLB. What an instruction means was decided by the plan; here it is only said in BuildKit's words, and
//! what the daemon has no words for is an error.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use bollard_buildkit_proto::pb;
use cfc_oci::{Platform, Reference};
use cfc_plan::{
    Context, ContextFiles, ContextName, Copy, CopySource, FileOwner, ModeChange, Mount, MountKind, Node, NodeId, Op,
    Plan, Run, RunNetwork, Source,
};

use crate::capabilities::{self as can, Capabilities};
use crate::failure::{Failure, Result};
use crate::llb::{
    About, Access, Action, Cache, Chown, CopyFiles, Exec, ExecMount, FileOp, Graph, MountSource, Source as From, State,
};
use crate::session::{CONTENT_STORE, links_on};

/// What the build's own context is called in the session.
pub(crate) const CONTEXT: &str = "context";
/// What a context at an address consists of, as BuildKit calls it.
const FETCHED_FILE: &str = "context";
/// Where a cache begins that is somebody's.
const CACHE_DIRECTORY: &str = "/cache";
/// As a cache is when nothing is said.
const USUAL_OWNER: FileOwner = FileOwner { uid: 0, gid: 0, mode: 0o755 };

/// Where the daemon finds a base image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BaseSource {
    /// In the content store of our session.
    Session,
    /// In the daemon's own images, by this name.
    Daemon(String),
    /// In the registry that the reference names.
    Registry(Reference),
}

/// A base image for the daemon.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub(crate) source: BaseSource,
    pub(crate) platform: Platform,
}

/// What a plan is lowered with.
pub(crate) struct Lowering<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) context: &'a Context,
    pub(crate) bases: &'a BTreeMap<NodeId, Base>,
    pub(crate) capabilities: &'a Capabilities,
    /// The image's.
    pub(crate) platform: &'a Platform,
    /// The session's id.
    pub(crate) session: &'a str,
    /// For which contexts' files the daemon may keep what it was sent, by their names there.
    pub(crate) hints: &'a BTreeMap<String, String>,
    /// Whether no earlier result is used.
    pub(crate) no_cache: bool,
    /// Whether the layers of the base image may be left out of what comes back.
    pub(crate) leaves_base_out: bool,
}

/// A plan in BuildKit's words.
pub(crate) struct Lowered {
    pub(crate) definition: pb::Definition,
    /// Which node an operation belongs to, by the operation's digest.
    pub(crate) nodes: HashMap<String, NodeId>,
    /// The operation that ends a node, by the node.
    pub(crate) ends: Vec<State>,
    /// What the last operation of each node is called, and only that.
    pub(crate) names: Vec<String>,
    /// Nodes by the progress groups of their operations.
    pub(crate) groups: HashMap<String, NodeId>,
    /// The base image whose layers are not sent, since we have them.
    pub(crate) left_out: Option<NodeId>,
}

struct Lower<'a> {
    with: &'a Lowering<'a>,
    graph: Graph,
    states: Vec<State>,
    nodes: HashMap<String, NodeId>,
    /// Which paths of the contexts are needed, by the contexts' names; all where there is no set.
    paths: BTreeMap<String, Option<BTreeSet<String>>>,
}

impl Lowering<'_> {
    /// The same plan as LLB.
    ///
    /// # Errors
    /// With the node that the daemon cannot carry out, and why.
    pub(crate) fn lower(&self) -> std::result::Result<Lowered, (NodeId, Failure)> {
        let mut lower = Lower {
            with: self,
            graph: Graph::default(),
            states: Vec::new(),
            nodes: HashMap::new(),
            paths: paths(self.plan),
        };
        for (index, node) in self.plan.nodes.iter().enumerate() {
            let id = NodeId(index);
            let state = lower.node(id, node).map_err(|failure| (id, failure))?;
            lower.note(id, &state);
            lower.states.push(state);
        }
        let (target, left_out) = lower.exported();
        let definition = lower.graph.definition(&target);
        let nodes = || self.plan.nodes.iter().enumerate();
        let groups = nodes().map(|(index, node)| (node.key.to_string(), NodeId(index))).collect();
        let names = nodes().map(|(_, node)| name(node)).collect();
        Ok(Lowered { definition, nodes: lower.nodes, ends: lower.states, names, groups, left_out })
    }
}

impl<'a> Lower<'a> {
    fn state(&self, id: NodeId) -> State {
        self.states[id.0].clone()
    }

    /// The first that has an operation is whose it is: whoever does the same later waits for it.
    fn note(&mut self, id: NodeId, state: &State) {
        if let Some(digest) = state.digest() {
            self.nodes.entry(digest.to_string()).or_insert(id);
        }
    }

    fn about(&self, id: NodeId, node: &Node) -> About<'a> {
        About {
            name: name(node),
            // Newer daemons speak of operations by digests of their own making, and of groups by our ids.
            group: Some((node.key.to_string(), name(node))),
            is_fresh: self.with.no_cache || node.is_fresh,
            platform: self.platform(id),
        }
    }

    /// That of the image a node is built on; the image's own where there is none.
    fn platform(&self, id: NodeId) -> &'a Platform {
        match (self.with.bases.get(&id), self.with.plan.node(id).base) {
            (Some(base), _) => &base.platform,
            (None, Some(below)) => self.platform(below),
            (None, None) => self.with.platform,
        }
    }

    /// What the exporter gets, and which base image that leaves out.
    fn exported(&mut self) -> (State, Option<NodeId>) {
        let target = self.with.plan.target;
        let mut lowest = target;
        while let Some(base) = self.with.plan.node(lowest).base {
            lowest = base;
        }
        let is_image = matches!(self.with.plan.node(lowest).op, Op::Image { .. });
        let can = self.with.leaves_base_out && self.with.capabilities.has(can::DIFF);
        if !can || !is_image || lowest == target {
            return (self.state(target), None);
        }
        let about = About {
            group: None,
            name: "[internal] leave out the base image".to_string(),
            ..self.about(target, self.with.plan.node(target))
        };
        let (lower, upper) = (self.state(lowest), self.state(target));
        (self.graph.diff(&lower, &upper, &about), Some(lowest))
    }

    fn node(&mut self, id: NodeId, node: &Node) -> Result<State> {
        let about = self.about(id, node);
        let base = node.base.map_or(State::SCRATCH, |base| self.state(base));
        match &node.op {
            Op::Scratch => Ok(State::SCRATCH),
            Op::Image { manifest, .. } => {
                let base = self.with.bases.get(&id).ok_or_else(|| Failure::new("the base image was not found"))?;
                let source = match &base.source {
                    BaseSource::Session => {
                        From::layout(&format!("cfc/base@{}", manifest.digest), self.with.session, CONTENT_STORE)
                    }
                    BaseSource::Daemon(name) => From::image(name, true),
                    BaseSource::Registry(reference) => From::image(&reference.to_string(), false),
                };
                Ok(self.graph.source(&source, &about))
            }
            Op::Context { name, .. } => self.context_files(id, name.as_ref(), &about),
            Op::MakeDirectory { path, user } => {
                let owner = (!user.is_empty()).then(|| Chown::parse(user, &base));
                let actions = vec![Action::MakeDirectory { path: path.clone(), mode: 0o755, owner }];
                Ok(self.graph.file(&FileOp { base, actions }, &about))
            }
            Op::Copy(copy) => self.copy(id, copy, base, &about),
            Op::Run(run) => self.run(id, run, base, &about),
        }
    }

    /// All that a context has of what is needed, as its own root.
    fn context_files(&mut self, id: NodeId, name: Option<&ContextName>, about: &About<'_>) -> Result<State> {
        let (source, directory) = match name {
            None => (self.local(CONTEXT)?, None),
            Some(name) => self.named_files(name)?,
        };
        let about =
            &About { name: format!("[context {}] load", name.map_or(CONTEXT, |name| name.as_str())), ..about.clone() };
        let state = self.graph.source(&source, about);
        self.note(id, &state);
        Ok(match directory {
            None => state,
            Some(directory) => {
                let copy = CopyFiles { from: state, ..CopyFiles::of(&directory, "/") };
                self.graph.file(&FileOp { base: State::SCRATCH, actions: vec![Action::Copy(copy)] }, about)
            }
        })
    }

    /// Where the files of a named context come from, and which directory of that they are, where they are not all of it.
    fn named_files(&self, name: &ContextName) -> Result<(From, Option<String>)> {
        let missing = || Failure::new(format!("there is no build context `{name}`"));
        let named = self.with.context.named.get(name).ok_or_else(missing)?;
        Ok(match &named.files {
            ContextFiles::Directory(_) => (self.local(name.as_str())?, None),
            ContextFiles::Url(url) => {
                self.check_url(url.checksum.is_some())?;
                (From::http(url, FETCHED_FILE), None)
            }
            ContextFiles::Git(git) => {
                self.check_git(git)?;
                let directory = (!git.subdirectory.is_empty()).then(|| format!("/{}", git.subdirectory));
                (From::git(git), directory)
            }
        })
    }

    fn local(&self, name: &str) -> Result<From> {
        let all = BTreeSet::new();
        let paths = self.paths.get(name).and_then(Option::as_ref).unwrap_or(&all);
        let paths: Vec<String> = match self.with.capabilities.has(can::FOLLOW_PATHS) {
            true => paths.iter().cloned().collect(),
            false => Vec::new(),
        };
        let hint = self.with.hints.get(name).map_or(name, String::as_str);
        Ok(From::local(name, self.with.session, &paths, hint))
    }

    fn check_url(&self, has_checksum: bool) -> Result<()> {
        if has_checksum { self.with.capabilities.need(can::HTTP_CHECKSUM, "ADD --checksum") } else { Ok(()) }
    }

    fn check_git(&self, git: &cfc_plan::GitSource) -> Result<()> {
        let capabilities = self.with.capabilities;
        if git.checksum.is_some() {
            capabilities.need(can::GIT_CHECKSUM, "a checksum of a Git repository")?;
        }
        if git.skips_submodules {
            capabilities.need(can::GIT_SUBMODULES, "submodules=false")?;
        }
        Ok(())
    }

    fn copy(&mut self, id: NodeId, copy: &Copy, base: State, about: &About<'_>) -> Result<State> {
        // Laid over, nothing of the base is looked at; a daemon that cannot do so copies into the base.
        let is_laid_over = copy.is_linked && base != State::SCRATCH && self.with.capabilities.has(can::MERGE);
        let owner = copy.owner.as_ref().map(|owner| Chown::parse(owner, &base));
        let below = if is_laid_over { State::SCRATCH } else { base.clone() };
        let template = self.template(copy, owner)?;
        let mut actions = Vec::new();
        let directory = copy.destination.trim_end_matches('/');
        if copy.mode.is_some() && directory.len() < copy.destination.len() && !directory.is_empty() {
            // Newer daemons would give a directory that they make for files the bits of these.
            let owner = template.owner.clone();
            actions.push(Action::MakeDirectory { path: directory.to_string(), mode: 0o755, owner });
        }
        for source in &copy.sources {
            actions.push(Action::Copy(self.source(id, copy, source, &template, about)?));
        }
        let file = FileOp { base: below, actions };
        if !is_laid_over {
            return Ok(self.graph.file(&file, about));
        }
        let copied = self.graph.file(&file, &part_of(about));
        self.note(id, &copied);
        Ok(self.graph.merge(&base, &copied, about))
    }

    /// What all sources of an instruction have in common.
    fn template(&self, copy: &Copy, owner: Option<Chown>) -> Result<CopyFiles> {
        let capabilities = self.with.capabilities;
        if !copy.exclude.is_empty() {
            capabilities.need(can::COPY_PATTERNS, "COPY --exclude")?;
        }
        let (mode, mode_text) = match &copy.mode {
            None => (None, None),
            Some(ModeChange::Bits(bits)) if *bits <= 0o777 => (Some(*bits), None),
            Some(change) => {
                capabilities.need(can::COPY_MODE_TEXT, "COPY --chmod with letters or more than nine bits")?;
                (None, Some(change.to_string()))
            }
        };
        let exclude = copy.exclude.clone();
        Ok(CopyFiles { owner, mode, mode_text, exclude, ..CopyFiles::of("/", &copy.destination) })
    }

    fn source(
        &mut self,
        id: NodeId,
        copy: &Copy,
        source: &Source,
        template: &CopyFiles,
        about: &About<'_>,
    ) -> Result<CopyFiles> {
        let template = template.clone();
        match source {
            Source::Path { path, parents, unpack } => {
                let (from, directory) = self.copied_from(id, copy, about)?;
                let below =
                    |path: &str| directory.as_ref().map_or(path.to_string(), |directory| format!("{directory}{path}"));
                let copied = CopyFiles { from, source: below(path), has_wildcards: true, unpacks: *unpack, ..template };
                let last = path.rsplit('/').next().unwrap_or_default();
                if parents.is_none() && !copied.exclude.is_empty() && last.contains(['*', '?', '[']) {
                    // Patterns are seen from what matched, where a file has no name any more.
                    return Err(Failure::new(format!("`--exclude` does nothing to files that match `{last}` on a BuildKit daemon"))
                        .hint("copy their directory, and exclude what you do not want of it; or build without `--builder buildkit`"));
                }
                let Some(parents) = parents else { return Ok(copied) };
                self.with.capabilities.need(can::COPY_PATTERNS, "COPY --parents")?;
                let pattern = parents.pattern.trim_start_matches('/').to_string();
                self.check_parents(copy, &parents.pivot, &pattern)?;
                let is_required = !pattern.contains(['*', '?', '[']) && self.with.capabilities.has(can::COPY_REQUIRED);
                let required = if is_required { vec![pattern.clone()] } else { Vec::new() };
                Ok(CopyFiles { source: below(&parents.pivot), include: vec![pattern], required, ..copied })
            }
            Source::File { name, content } => {
                let path = format!("/{name}");
                let content = content.clone().into_bytes();
                let actions = vec![Action::MakeFile { path: path.clone(), mode: 0o644, content }];
                let from = self.graph.file(&FileOp { base: State::SCRATCH, actions }, &part_of(about));
                self.note(id, &from);
                Ok(CopyFiles { from, source: path, exclude: Vec::new(), ..template })
            }
            Source::Url { source: url, unpack } => {
                self.check_url(url.checksum.is_some())?;
                let from = self.graph.source(&From::http(url, &url.name), &part_of(about));
                self.note(id, &from);
                Ok(CopyFiles {
                    from,
                    source: format!("/{}", url.name),
                    unpacks: *unpack,
                    exclude: Vec::new(),
                    ..template
                })
            }
            Source::Git(git) => {
                self.check_git(git)?;
                let from = self.graph.source(&From::git(git), &part_of(about));
                self.note(id, &from);
                Ok(CopyFiles { from, source: format!("/{}", git.subdirectory), ..template })
            }
        }
    }

    /// Fails where a path of a context, without wildcards, is not there: most daemons copy nothing then, and say nothing.
    fn check_parents(&self, copy: &Copy, pivot: &str, pattern: &str) -> Result<()> {
        let directory = match &copy.from {
            CopySource::Context => Some(&self.with.context.directory),
            CopySource::Named(name) => match self.with.context.named.get(name).map(|named| &named.files) {
                Some(ContextFiles::Directory(directory)) => Some(directory),
                _ => None,
            },
            CopySource::Node(_) => None,
        };
        let Some(directory) = directory else { return Ok(()) };
        let path = format!("{}/{pattern}", pivot.trim_matches('/'));
        let path = path.trim_start_matches('/');
        if path.contains(['*', '?', '[', '\\']) || is_in(directory, path) {
            return Ok(());
        }
        Err(Failure::new(format!("there is no `{path}` in the build context `{}`", directory.display()))
            .hint("sources are relative to the build context, not to the Dockerfile"))
    }

    /// The filesystem that paths of `copy` are in, and below which directory of it.
    fn copied_from(&mut self, id: NodeId, copy: &Copy, about: &About<'_>) -> Result<(State, Option<String>)> {
        let (source, directory) = match &copy.from {
            CopySource::Node(node) => return Ok((self.state(*node), None)),
            CopySource::Context => (self.local(CONTEXT)?, None),
            CopySource::Named(name) => self.named_files(name)?,
        };
        let name = match &copy.from {
            CopySource::Named(name) => format!("[context {name}] load"),
            _ => "[internal] load build context".to_string(),
        };
        // A context is nobody's step; where it fails, the step that wants it does.
        let state = self.graph.source(&source, &About { name, group: None, ..about.clone() });
        self.note(id, &state);
        Ok((state, directory))
    }

    fn run(&mut self, id: NodeId, run: &Run, base: State, about: &About<'_>) -> Result<State> {
        let capabilities = self.with.capabilities;
        capabilities.need_platform(about.platform)?;
        if !run.ulimits.is_empty() {
            capabilities.need(can::ULIMITS, "--ulimit")?;
        }
        if run.network != RunNetwork::Default {
            capabilities.need(can::NETWORK, "RUN --network")?;
        }
        if run.is_insecure {
            capabilities.need(can::SECURITY, "RUN --security=insecure")?;
        }
        if !run.secret_variables.is_empty() {
            capabilities.need(can::SECRET_VARIABLES, "RUN --mount=type=secret,env=")?;
        }
        run.secret_variables.iter().try_for_each(|variable| self.check_secret(&variable.id, variable.is_required))?;
        let mut mounts = Vec::new();
        for mount in &run.mounts {
            mounts.extend(self.mount(id, mount, about)?);
        }
        if let Some(size) = run.shm_size {
            capabilities.need(can::TMPFS_SIZE, "--shm-size")?;
            mounts.push(ExecMount { target: "/dev/shm".to_string(), source: MountSource::Tmpfs { size: Some(size) } });
        }
        let mut env = run.env.clone();
        if let Some((name, socket)) = run.ssh_variable()
            && !env.iter().any(|(known, _)| known == name)
        {
            env.push((name.to_string(), socket.to_string()));
        }
        let exec = Exec {
            args: run.args.clone(),
            env,
            proxies: run.unkeyed_env.clone(),
            working_directory: if run.working_directory.is_empty() {
                "/".to_string()
            } else {
                run.working_directory.clone()
            },
            user: run.user.clone(),
            mounts,
            secret_variables: run.secret_variables.clone(),
            network: run.network,
            is_insecure: run.is_insecure,
            hosts: run.hosts.clone(),
            ulimits: run.ulimits.clone(),
            ..Exec::on(base)
        };
        Ok(self.graph.exec(&exec, about))
    }

    fn mount(&mut self, id: NodeId, mount: &Mount, about: &About<'_>) -> Result<Option<ExecMount>> {
        let capabilities = self.with.capabilities;
        let target = mount.target.clone();
        let source = match &mount.kind {
            MountKind::Bind { node, path, is_writable } => MountSource::Bind {
                state: self.state(*node),
                path: path.clone(),
                access: if *is_writable { Access::Write } else { Access::Read },
            },
            MountKind::Cache { id: cache, sharing, node, path, is_read_only, owner } => {
                let (state, path) = match node {
                    Some(node) => (self.state(*node), path.clone()),
                    None => self.empty_cache(id, *owner, about),
                };
                let access = if *is_read_only { Access::Read } else { Access::Write };
                MountSource::Cache(Cache { id: cache.clone(), sharing: *sharing, state, path, access })
            }
            MountKind::Tmpfs { size } => {
                if size.is_some() {
                    capabilities.need(can::TMPFS_SIZE, "RUN --mount=type=tmpfs,size=")?;
                }
                MountSource::Tmpfs { size: *size }
            }
            MountKind::Secret { id, owner, is_required } => {
                capabilities.need(can::SECRETS, "RUN --mount=type=secret")?;
                self.check_secret(id, *is_required)?;
                MountSource::Secret { id: id.clone(), owner: *owner, is_required: *is_required }
            }
            MountKind::Ssh { id, owner, is_required } => {
                capabilities.need(can::SSH, "RUN --mount=type=ssh")?;
                if *is_required && !self.with.context.ssh.contains_key(id) {
                    return Err(Failure::new(format!("there is no ssh agent `{id}`, which is required"))
                        .hint("give it with `--ssh default` or `--ssh ID=SOCKET`"));
                }
                MountSource::Ssh { id: id.clone(), owner: *owner, is_required: *is_required }
            }
            MountKind::Script { content } => return Ok(Some(self.script(id, &target, content, about))),
        };
        Ok(Some(ExecMount { target, source }))
    }

    fn check_secret(&self, id: &str, is_required: bool) -> Result<()> {
        if !is_required || self.with.context.secrets.contains_key(id) {
            return Ok(());
        }
        Err(Failure::new(format!("there is no secret `{id}`, which is required"))
            .hint(format!("give it with `--secret id={id},src=FILE` or `--secret id={id},env=NAME`")))
    }

    /// What a cache begins with that begins with nothing: a directory that is its owner's.
    fn empty_cache(&mut self, id: NodeId, owner: FileOwner, about: &About<'_>) -> (State, String) {
        if owner == USUAL_OWNER {
            return (State::SCRATCH, "/".to_string());
        }
        let chown = Chown::parse(&format!("{}:{}", owner.uid, owner.gid), &State::SCRATCH);
        let path = CACHE_DIRECTORY.to_string();
        let actions = vec![Action::MakeDirectory { path: path.clone(), mode: owner.mode, owner: Some(chown) }];
        let state = self.graph.file(&FileOp { base: State::SCRATCH, actions }, &part_of(about));
        self.note(id, &state);
        (state, path)
    }

    /// The directory of a script, mounted: a file alone cannot be put into `/dev`.
    fn script(&mut self, id: NodeId, target: &str, content: &str, about: &About<'_>) -> ExecMount {
        let (directory, name) = target.rsplit_once('/').unwrap_or(("", target));
        let content = content.as_bytes().to_vec();
        let actions = vec![Action::MakeFile { path: format!("/{name}"), mode: 0o755, content }];
        let state = self.graph.file(&FileOp { base: State::SCRATCH, actions }, &part_of(about));
        self.note(id, &state);
        let source = MountSource::Bind { state, path: "/".to_string(), access: Access::Read };
        ExecMount { target: directory.to_string(), source }
    }
}

/// What people know a node by.
fn name(node: &Node) -> String {
    format!("[{}] {}", node.stage, node.display)
}

/// What an instruction needs besides its last operation, shown with it.
fn part_of<'p>(about: &About<'p>) -> About<'p> {
    About { name: format!("{} (a part)", about.name), ..about.clone() }
}

/// Which paths of which contexts a plan needs.
fn paths(plan: &Plan) -> BTreeMap<String, Option<BTreeSet<String>>> {
    let mut paths: BTreeMap<String, Option<BTreeSet<String>>> = BTreeMap::new();
    let mut need = |name: &str, path: Option<&str>| {
        let known = paths.entry(name.to_string()).or_insert_with(|| Some(BTreeSet::new()));
        match path.filter(|path| *path != "/") {
            Some(path) => drop(known.as_mut().map(|known| known.insert(path.trim_start_matches('/').to_string()))),
            None => *known = None,
        }
    };
    for node in &plan.nodes {
        match &node.op {
            Op::Context { name, path } => need(name.as_ref().map_or(CONTEXT, |name| name.as_str()), Some(path)),
            Op::Copy(copy) => {
                let name = match &copy.from {
                    CopySource::Context => CONTEXT,
                    CopySource::Named(name) => name.as_str(),
                    CopySource::Node(_) => continue,
                };
                for source in &copy.sources {
                    match source {
                        Source::Path { path, parents: None, .. } => need(name, Some(path)),
                        Source::Path { parents: Some(_), .. } => need(name, None),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    paths
}

/// Whether there is a `path` in the context `directory`, out of which no link leads.
fn is_in(directory: &Path, path: &str) -> bool {
    let path = Path::new(path);
    let (links, above) = links_on(directory, path.parent().unwrap_or(Path::new("")));
    let path = path.file_name().map_or(above.clone(), |name| above.join(name));
    // Links in a circle end at one of them.
    !links.contains(&above) && directory.join(path).symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_a_context_are_not_looked_for_on_this_machine() {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(home.path().join("tmp")).expect("writable");
        std::fs::write(home.path().join("tmp/f"), "").expect("writable");
        for (link, target) in [("etc", "/etc"), ("up", "../../../../etc"), ("in", "/tmp"), ("dangling", "nowhere")] {
            std::os::unix::fs::symlink(target, home.path().join(link)).expect("a link");
        }
        let found = |path| is_in(home.path(), path);
        assert!(found("tmp/f") && found("in/f") && found("dangling"));
        assert!(!found("etc/passwd") && !found("up/passwd") && !found("in/g"));
    }
}
