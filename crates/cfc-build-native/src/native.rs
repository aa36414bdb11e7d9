//! [`NativeBuilder`]: executes a plan on this machine, into the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cfc_oci::{Descriptor, Manifest, media_type};
use cfc_plan::{
    BuildError, BuildProgress, Builder, BuiltImage, Context, ContextName, Copy, CopySource, Downloads, Node, NodeId,
    NodeOutcome, Op, Plan, Run,
};
use cfc_sandbox::Launcher;
use cfc_store::{Compression, Encoding, KeyLock, SealedLayer, Store, StoreError, StoreErrorKind};

use crate::assemble::{Assembler, exclude_patterns};
use crate::cache::LayerCache;
use crate::contexts::{ContextFiles, Contexts};
use crate::copy::{self, Copier};
use crate::entry::{Entries, content_digest};
use crate::failure::{Failure, OnPath, Result, fail_at};
use crate::hash::fill_digests;
use crate::layer::{Layer, LayerIndex};
use crate::mount::Sources;
use crate::owner::{self, Owner};
use crate::publisher::Publisher;
use crate::run::{self, Runner, Running, sandbox_failure};
use crate::schedule::{Results, run_graph};
use crate::shared_cache::{CacheRecords, CacheSource, INLINE_ANNOTATION, SharedCache};
use crate::tree::Tree;
use crate::verify::{difference, own_layer};
use crate::view::View;
use crate::write::write_layer;

/// As many stages at once share the processors; more only wait for each other.
const MAX_THREADS: usize = 8;

/// How to build.
#[derive(Clone, Debug, Default)]
pub struct NativeOptions {
    /// Carries every operation out, even those whose result is known.
    pub no_cache: bool,
    /// Carries every operation out twice, and refuses an image that does not come out the same.
    pub verify: bool,
    /// How the layers are encoded that the build makes.
    pub encoding: Encoding,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// Whether the manifest also says which operations made its layers, so that it is a shared cache.
    pub inline_cache: bool,
}

/// Builds images into a store, with sandboxes for `RUN`.
pub struct NativeBuilder {
    store: Store,
    launcher: Arc<LauncherSource>,
    running: Arc<Running>,
    options: NativeOptions,
    downloads: Option<Box<dyn Downloads>>,
    shared: Arc<SharedCache>,
    /// The layers of the image that was built last.
    image: Vec<Layer>,
}

/// Ends a build from another thread.
#[derive(Clone)]
pub struct Stopper {
    launcher: Arc<LauncherSource>,
    running: Arc<Running>,
}

impl Stopper {
    /// Ends the programs that the build runs, and those to come. Returns when nothing of them is left.
    pub fn stop(&self) {
        self.running.stop_all();
        if let LauncherSource::Private { started, .. } = &*self.launcher
            && let Some(launcher) = started.get()
            && let Err(error) = launcher.shutdown()
        {
            tracing::debug!(%error, "cannot end the build's launcher");
        }
    }
}

/// Where sandboxes come from.
enum LauncherSource {
    Given(Launcher),
    /// Started from this program when the first `RUN` needs it: many builds have none.
    Private {
        program: PathBuf,
        started: OnceLock<Launcher>,
        starting: Mutex<()>,
    },
}

impl NativeBuilder {
    /// A builder that keeps everything in `store` and runs programs through `launcher`.
    pub fn new(store: Store, launcher: Launcher, options: NativeOptions) -> NativeBuilder {
        NativeBuilder::of(store, LauncherSource::Given(launcher), options)
    }

    fn of(store: Store, launcher: LauncherSource, options: NativeOptions) -> NativeBuilder {
        let (launcher, running) = (Arc::new(launcher), Arc::new(Running::default()));
        let (shared, image) = (Arc::default(), Vec::new());
        NativeBuilder { store, launcher, running, options, downloads: None, shared, image }
    }

    /// For whoever may have to end the build.
    pub fn stopper(&self) -> Stopper {
        Stopper { launcher: self.launcher.clone(), running: self.running.clone() }
    }

    /// The same builder, with a way to the network for `ADD`.
    pub fn with_downloads(mut self, downloads: Box<dyn Downloads>) -> NativeBuilder {
        self.downloads = Some(downloads);
        self
    }

    /// The same builder, which uses what `sources` have. With `exports`, [`NativeBuilder::records`] says what it learned.
    pub fn with_shared_cache(mut self, sources: Vec<Box<dyn CacheSource>>, exports: bool) -> NativeBuilder {
        self.shared = Arc::new(SharedCache::new(sources, exports || self.options.inline_cache));
        self
    }

    /// What others may use of the last build: of the image's own layers or, for `all`, of every step. The store has the
    /// blobs.
    ///
    /// # Errors
    /// When a layer that came from another cache cannot be brought any more.
    pub fn records(&self, all: bool) -> std::result::Result<CacheRecords, BuildError> {
        let records = self.shared.records((!all).then_some(&self.image));
        let brought = self.shared.fetch(&self.store, records.layers());
        brought.map_err(|failure| BuildError {
            hint: failure.hint,
            ..BuildError::new(Path::new("the build cache"), failure.message)
        })?;
        Ok(records)
    }

    /// A builder that keeps everything in `store`. The first `RUN` starts a launcher of its own from `program`, which
    /// ends with the builder.
    pub fn with_program(store: Store, program: &Path, options: NativeOptions) -> NativeBuilder {
        NativeBuilder::of(
            store,
            LauncherSource::Private {
                program: program.to_path_buf(),
                started: OnceLock::new(),
                starting: Mutex::new(()),
            },
            options,
        )
    }
}

impl LauncherSource {
    fn get(&self) -> Result<&Launcher> {
        let (program, started, starting) = match self {
            LauncherSource::Given(launcher) => return Ok(launcher),
            LauncherSource::Private { program, started, starting } => (program, started, starting),
        };
        let _alone = starting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(launcher) = started.get() {
            return Ok(launcher);
        }
        let launcher = Launcher::private(program).map_err(sandbox_failure)?;
        Ok(started.get_or_init(|| launcher))
    }

    fn is_started(&self) -> bool {
        match self {
            LauncherSource::Given(_) => true,
            LauncherSource::Private { started, .. } => started.get().is_some(),
        }
    }
}

impl Drop for LauncherSource {
    fn drop(&mut self) {
        if let LauncherSource::Private { started, .. } = self
            && let Some(launcher) = started.get()
            && let Err(error) = launcher.shutdown()
        {
            tracing::warn!(%error, "cannot end the build's launcher");
        }
    }
}

impl Builder for NativeBuilder {
    fn build(
        &mut self,
        plan: &Plan,
        context: &Context,
        progress: &dyn BuildProgress,
    ) -> std::result::Result<BuiltImage, BuildError> {
        progress.planned(plan);
        let outcome = match self.attempt(plan, context, progress) {
            Err(error) if self.shared.is_broken() => {
                progress.warned(&format!("{}; the build goes on without it", error.message));
                self.running.go_on();
                self.attempt(plan, context, progress)
            }
            outcome => outcome,
        };
        if outcome.is_err() {
            // One that failed has ended what else it ran; the next one may run again.
            self.running.go_on();
        }
        outcome
    }
}

impl NativeBuilder {
    fn attempt(
        &mut self,
        plan: &Plan,
        context: &Context,
        progress: &dyn BuildProgress,
    ) -> std::result::Result<BuiltImage, BuildError> {
        let reads = !self.options.no_cache && !self.options.verify;
        let session = Session {
            store: &self.store,
            launcher: &self.launcher,
            downloads: self.downloads.as_deref(),
            cache: LayerCache::new(self.store.clone(), reads, self.shared.clone()),
            inline_cache: self.options.inline_cache,
            encoding: self.options.encoding,
            annotations: &self.options.annotations,
            plan,
            contexts: Contexts::new(&self.store, self.downloads.as_deref(), context),
            context,
            running: &self.running,
            progress,
        };
        let layers = session.layers()?;
        if self.options.verify {
            session.refuse_differences(&layers, &session.layers()?)?;
        }
        let (built, image) = session.finish(&layers)?;
        self.image = image;
        Ok(built)
    }
}

/// What a `COPY` copies from.
#[derive(Clone, Copy)]
enum CopiedFrom<'a> {
    Context(&'a ContextFiles<'a>),
    Image(&'a View),
}

/// How a step ended.
#[derive(Clone, Copy)]
enum Ended {
    As(NodeOutcome),
    /// It did its work, and will have ended when the disk has what it made. That is told then: what was told to be done is
    /// not lost.
    Beside,
}

/// What goes on beside the steps of a build.
type Beside<'scope, 'env> = Publisher<'scope, 'env, BuildError>;

/// One build.
struct Session<'a> {
    store: &'a Store,
    launcher: &'a LauncherSource,
    downloads: Option<&'a dyn Downloads>,
    cache: LayerCache,
    inline_cache: bool,
    encoding: Encoding,
    annotations: &'a BTreeMap<String, String>,
    plan: &'a Plan,
    context: &'a Context,
    contexts: Contexts<'a>,
    running: &'a Running,
    progress: &'a dyn BuildProgress,
}

impl Session<'_> {
    /// Carries everything out. The layers up to each node.
    fn layers(&self) -> std::result::Result<Vec<Vec<Layer>>, BuildError> {
        let nodes = &self.plan.nodes;
        let inputs = |index: usize| nodes[index].inputs().map(|NodeId(input)| input).collect();
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from).clamp(2, MAX_THREADS);
        std::thread::scope(|scope| {
            let publisher = Publisher::new(scope, || self.running.stop_all());
            let layers = run_graph(
                nodes.len(),
                n_threads,
                inputs,
                |index, results| self.carry_out(index, results, &publisher),
                || self.running.stop_all(),
            );
            // What was finished before a failure is not lost by it.
            let published = publisher.finish();
            let layers = layers?;
            published.map(|()| layers)
        })
    }

    /// Fails for the first operation that made something else the second time.
    fn refuse_differences(&self, first: &[Vec<Layer>], second: &[Vec<Layer>]) -> std::result::Result<(), BuildError> {
        for (index, node) in self.plan.nodes.iter().enumerate() {
            let [one, other] = [first, second].map(|layers| own_layer(node, layers, index));
            if let (Some(one), Some(other)) = (one, other)
                && one.diff_id != other.diff_id
            {
                let failure = difference(self.store, one, other).unwrap_or_else(|failure| failure);
                return Err(failure.of_node(self.plan, node));
            }
        }
        Ok(())
    }

    /// The image, and its layers as another build can use them.
    fn finish(&self, layers: &[Vec<Layer>]) -> std::result::Result<(BuiltImage, Vec<Layer>), BuildError> {
        self.contexts.save_digests().map_err(|failure| failure.of_plan(self.plan))?;
        let NodeId(target) = self.plan.target;
        self.assemble(&layers[target]).map_err(|failure| failure.of_plan(self.plan))
    }

    fn carry_out<'s>(
        &'s self,
        index: usize,
        results: &Results<Vec<Layer>>,
        publisher: &Beside<'s, '_>,
    ) -> std::result::Result<Vec<Layer>, BuildError> {
        let node = &self.plan.nodes[index];
        if let Some(error) = publisher.take_failure() {
            return Err(error);
        }
        self.progress.started(node);
        let executed = self.execute(index, results, publisher);
        let executed = executed.map_err(|failure| self.failed(node, failure));
        // It was most likely stopped because of what failed before.
        let (layers, ended) = executed.map_err(|error| publisher.take_failure().unwrap_or(error))?;
        if let Ended::As(outcome) = ended {
            self.progress.finished(node, outcome);
            self.foresee(index, outcome, publisher);
        }
        Ok(layers)
    }

    fn failed(&self, node: &Node, failure: Failure) -> BuildError {
        self.progress.failed(node, &failure.message);
        failure.of_node(self.plan, node)
    }

    /// Starts the launcher beside the step `index`'s successors, when a program is sure to run on top of what that step made.
    fn foresee<'s>(&'s self, index: usize, outcome: NodeOutcome, publisher: &Beside<'s, '_>) {
        let is_new = match &self.plan.nodes[index].op {
            Op::Scratch | Op::Image { .. } | Op::Context { .. } => !self.cache.reads(),
            Op::Run(_) => false,
            _ => outcome == NodeOutcome::Built,
        };
        let Some(next) = self.next_run(index).filter(|_| is_new && !self.launcher.is_started()) else { return };
        let start = || {
            if let Ok(launcher) = self.launcher.get() {
                run::expect(launcher, next);
            }
            // The step meets what failed, and says it.
            Ok(())
        };
        if let Err(error) = publisher.begin(start) {
            tracing::debug!(%error, "the launcher is started later");
        }
    }

    /// The first program that runs on top of what the step `index` makes.
    fn next_run(&self, index: usize) -> Option<&Run> {
        let nodes = &self.plan.nodes;
        let is_above = |node: &Node| {
            let below = |base: &NodeId| nodes[base.0].base;
            std::iter::successors(node.base, below).any(|NodeId(base)| base == index)
        };
        nodes.iter().skip(index + 1).find_map(|node| match &node.op {
            Op::Run(run) if is_above(node) => Some(run),
            _ => None,
        })
    }

    /// The layers of the node `index`; `results` has those of its inputs.
    fn execute<'s>(
        &'s self,
        index: usize,
        results: &Results<Vec<Layer>>,
        publisher: &Beside<'s, '_>,
    ) -> Result<(Vec<Layer>, Ended)> {
        let node = &self.plan.nodes[index];
        let layers_of = |id: NodeId| -> &[Layer] { results[id.0].get().map_or(&[][..], Vec::as_slice) };
        let base = node.base.map_or(&[][..], layers_of);
        let (layer, outcome) = match &node.op {
            Op::Scratch => return Ok((Vec::new(), Ended::As(NodeOutcome::Built))),
            Op::Image { manifest, .. } => {
                return Ok((image_layers(self.store, manifest)?, Ended::As(NodeOutcome::Built)));
            }
            Op::Context { name, path } => self.part_of_context(node, name.as_ref(), path)?,
            Op::Run(run) => {
                let mounted = node.op.sources().map(|source| (source, layers_of(source))).collect();
                let (layer, ended) = self.run(index, run, base, mounted, publisher)?;
                return Ok(([base, &[layer]].concat(), ended));
            }
            Op::MakeDirectory { path, user } => self.make_directory(node, path, user, base)?,
            Op::Copy(copy) => match &copy.from {
                CopySource::Context => self.copy_from_context(node, None, copy, base)?,
                CopySource::Named(name) => self.copy_from_context(node, Some(name), copy, base)?,
                CopySource::Node(source) => self.copy_from_node(node, copy, base, layers_of(*source))?,
            },
        };
        // Also of what another machine made: a program with a cache of its own will ask.
        layer.note_copied(self.store)?;
        Ok(([base, &[layer]].concat(), Ended::As(outcome)))
    }

    fn run<'s>(
        &'s self,
        index: usize,
        run: &Run,
        base: &[Layer],
        mounted: BTreeMap<NodeId, &[Layer]>,
        publisher: &Beside<'s, '_>,
    ) -> Result<(Layer, Ended)> {
        let (node, mtime) = (&self.plan.nodes[index], self.plan.source_date_epoch);
        let in_order: Vec<&[Layer]> = node.op.sources().map(|source| mounted[&source]).collect();
        let needed: Vec<&Layer> = base.iter().chain(in_order.iter().copied().flatten()).collect();
        let key = LayerCache::run_key(run, base, &in_order, mtime);
        let (known, lock) = self.known_or_lock(node, &key)?;
        if let Some(layer) = known {
            self.cache.shared().learn(&key, &layer);
            return Ok((layer, Ended::As(NodeOutcome::Cached)));
        }
        self.cache.shared().fetch(self.store, needed)?;
        let launcher = self.launcher.get()?;
        let encoding = self.encoding.while_building();
        let next = self.next_run(index);
        let runner = Runner { store: self.store, launcher, running: self.running, mtime, encoding, next };
        let sources = Sources { context: self.context, layers: mounted };
        let sealed = runner.run(run, base, &sources, &|stream, bytes| self.progress.output(node, stream, bytes))?;
        let layer = Layer::made(sealed.layer().clone(), encoding);
        self.cache.shared().learn(&key, &layer);
        Ok((layer, self.publish(node, sealed, key, lock, publisher)?))
    }

    /// A part of a context as a layer for whoever looks at it from here: no image gets it as it is.
    fn part_of_context(&self, node: &Node, name: Option<&ContextName>, path: &str) -> Result<(Layer, NodeOutcome)> {
        let files = self.contexts.get(name)?;
        let mut entries = copy::part(&files.tree, Path::new(path))?;
        fill_digests(&mut entries, &[&files.tree], files.digests.as_ref())?;
        let mtime = self.plan.source_date_epoch;
        self.cached(node, LayerCache::internal_key(&content_digest(&entries, mtime), mtime), || {
            let output = self.store.layer_writer(Compression::None)?;
            let layer = write_layer(output, &entries, &[&files.tree], mtime, Compression::None.into())?;
            LayerIndex::of(&entries).save(self.store, &layer.diff_id)?;
            Ok(layer)
        })
    }

    fn make_directory(&self, node: &Node, path: &str, user: &str, base: &[Layer]) -> Result<(Layer, NodeOutcome)> {
        let key = LayerCache::operation_key(&node.op, base, &[], self.plan.source_date_epoch);
        self.shared_or(node, Some(key), || {
            let owner = self.owner(user, base)?;
            let view = self.lookup(base)?;
            self.layer(node, copy::make_directory(path, owner, &view)?, &[])
        })
    }

    /// The layer of a key that spares a look into layers which are elsewhere, or what `make` makes. Where no cache is shared,
    /// everything is here and the look costs nothing.
    fn shared_or(
        &self,
        node: &Node,
        key: Option<String>,
        make: impl FnOnce() -> Result<(Layer, NodeOutcome)>,
    ) -> Result<(Layer, NodeOutcome)> {
        match key.filter(|_| self.cache.shared().is_used()) {
            Some(key) => self.known_or(node, key, make),
            None => make(),
        }
    }

    /// The layer of a key above the one of its content, or what `make` makes.
    fn known_or(
        &self,
        node: &Node,
        key: String,
        make: impl FnOnce() -> Result<(Layer, NodeOutcome)>,
    ) -> Result<(Layer, NodeOutcome)> {
        let (layer, outcome) = match self.known(node, &key)? {
            Some(layer) => (layer, NodeOutcome::Cached),
            None => {
                let (layer, outcome) = make()?;
                // What only another's record says is not believed longer than this build, in which it is looked at when used.
                if outcome == NodeOutcome::Built || !self.cache.shared().is_doubtful(&layer) {
                    self.cache.put(&key, &layer)?;
                }
                (layer, outcome)
            }
        };
        self.cache.shared().learn(&key, &layer);
        Ok((layer, outcome))
    }

    /// A view of `layers` for looking names up.
    fn lookup(&self, layers: &[Layer]) -> Result<View> {
        self.cache.shared().fetch(self.store, layers)?;
        View::for_lookup(self.store, layers)
    }

    fn copy_from_context(
        &self,
        node: &Node,
        name: Option<&ContextName>,
        copy: &Copy,
        base: &[Layer],
    ) -> Result<(Layer, NodeOutcome)> {
        let files = self.contexts.get(name)?;
        self.copied(node, copy, CopiedFrom::Context(files), base)
    }

    fn copy_from_node(
        &self,
        node: &Node,
        copy: &Copy,
        base: &[Layer],
        source: &[Layer],
    ) -> Result<(Layer, NodeOutcome)> {
        let key = LayerCache::operation_key(&node.op, decisive(copy, base), source, self.plan.source_date_epoch);
        // First by what the layers are, which is known; only then by what the files are, which takes reading them.
        self.known_or(node, key, || {
            self.cache.shared().fetch(self.store, source)?;
            let view = View::for_reading(self.store, source)?;
            self.copied(node, copy, CopiedFrom::Image(&view), base)
        })
    }

    /// The layer that `copy` makes.
    fn copied(&self, node: &Node, copy: &Copy, from: CopiedFrom<'_>, base: &[Layer]) -> Result<(Layer, NodeOutcome)> {
        let (tree, digests): (&dyn Tree, _) = match from {
            CopiedFrom::Context(files) => (&files.tree, files.digests.as_ref()),
            CopiedFrom::Image(view) => (view, None),
        };
        let is_image = matches!(from, CopiedFrom::Image(_));
        let exclude = exclude_patterns(&copy.exclude)?;
        let workspace = self.store.temp_dir()?;
        let assembler = Assembler { store: self.store, downloads: self.downloads, workspace: workspace.path(), tree };
        let staged = assembler.stage(copy, is_image)?;
        let trees = staged.trees();
        let entries = |below: &View, owner: Option<Owner>| -> Result<Entries> {
            let copier = Copier::new(below, owner, copy.mode.as_ref(), &exclude);
            let mut entries = staged.copy(copier, &copy.destination)?;
            fill_digests(&mut entries, &trees, digests)?;
            Ok(entries)
        };
        let mtime = self.plan.source_date_epoch;
        let is_shared = self.cache.shared().is_used() && !is_image;
        let key = is_shared.then(|| -> Result<String> {
            let content = content_digest(&entries(&View::empty(), None)?, mtime);
            Ok(LayerCache::copy_key(&node.op, decisive(copy, base), &content, mtime))
        });
        self.shared_or(node, key.transpose()?, || {
            let owner = copy.owner.as_deref().map(|owner| self.owner(owner, base)).transpose()?;
            let below = if copy.is_linked { View::empty() } else { self.lookup(base)? };
            self.layer(node, entries(&below, owner)?, &trees)
        })
    }

    fn owner(&self, spec: &str, base: &[Layer]) -> Result<Owner> {
        match spec {
            "" => Ok(Owner::default()),
            spec => owner::find(spec, || {
                self.cache.shared().fetch(self.store, base)?;
                View::for_reading(self.store, base)
            }),
        }
    }

    /// The layer that consists of `entries`, their contents in `trees`.
    fn layer(&self, node: &Node, entries: Entries, trees: &[&dyn Tree]) -> Result<(Layer, NodeOutcome)> {
        let mtime = self.plan.source_date_epoch;
        self.cached(node, LayerCache::content_key(&content_digest(&entries, mtime), mtime), || {
            let encoding = self.encoding.while_building();
            let lineage = LayerCache::lineage_key(&node.op, &self.context.directory, encoding);
            let earlier = if node.is_fresh { None } else { self.cache.get_own(&lineage)? };
            let earlier = earlier.map(|layer| layer.blob.digest);
            let output = self.store.layer_writer_after(earlier.as_ref(), encoding)?;
            let layer = write_layer(output, &entries, trees, mtime, encoding)?;
            LayerIndex::of(&entries).save(self.store, &layer.diff_id)?;
            self.cache.put(&lineage, &layer)?;
            Ok(layer)
        })
    }

    /// The layer that an earlier build made for `key`, if `node` may use it.
    fn known(&self, node: &Node, key: &str) -> Result<Option<Layer>> {
        if node.is_fresh { Ok(None) } else { self.cache.get(key) }
    }

    fn cached(&self, node: &Node, key: String, make: impl FnOnce() -> Result<Layer>) -> Result<(Layer, NodeOutcome)> {
        let (known, _lock) = self.known_or_lock(node, &key)?;
        if let Some(layer) = known {
            return Ok((layer, NodeOutcome::Cached));
        }
        let layer = make()?;
        self.remember(&key, &layer)?;
        Ok((layer, NodeOutcome::Built))
    }

    fn known_or_lock(&self, node: &Node, key: &str) -> Result<(Option<Layer>, Option<KeyLock>)> {
        match node.is_fresh {
            true => Ok((None, None)),
            false => self.cache.get_or_lock(key, self.running),
        }
    }

    fn remember(&self, key: &str, layer: &Layer) -> Result<()> {
        fail_at("build.layer.made")?;
        self.cache.put(key, layer)?;
        fail_at("build.layer.remembered")
    }

    /// Publishes what `node` made and remembers it, beside the steps on top of it. Others who want the same wait for `lock`.
    fn publish<'s>(
        &'s self,
        node: &'s Node,
        sealed: SealedLayer,
        key: String,
        lock: Option<KeyLock>,
        publisher: &Beside<'s, '_>,
    ) -> Result<Ended> {
        let encoding = self.encoding.while_building();
        let work = move || {
            fail_at("build.layer.sealed")?;
            let layer = Layer::made(sealed.publish()?, encoding);
            self.remember(&key, &layer)?;
            drop(lock);
            Ok(())
        };
        // Who brings layers from elsewhere looks whether they are here.
        if self.cache.shared().is_used() {
            return work().map(|()| Ended::As(NodeOutcome::Built));
        }
        let told = move || {
            work().map_err(|failure| self.failed(node, failure))?;
            self.progress.finished(node, NodeOutcome::Built);
            Ok(())
        };
        publisher.begin(told).on("start a thread for the layer of", &self.context.directory)?;
        Ok(Ended::Beside)
    }

    /// The layer in this build's encoding: an earlier build may have made it in another.
    fn encoded(&self, layer: &Layer) -> Result<Layer> {
        if layer.encoding.is_none_or(|encoding| encoding == self.encoding) {
            return Ok(layer.clone());
        }
        let key = LayerCache::encoding_key(&layer.diff_id, self.encoding);
        if let Some(known) = self.cache.get_own(&key)? {
            return Ok(known);
        }
        let encoded = self.store.encode_layer(&layer.diff_id, &layer.blob, self.encoding);
        let encoded = Layer::made(encoded.map_err(damaged)?, self.encoding);
        self.cache.put(&key, &encoded)?;
        Ok(encoded)
    }

    /// Writes config and manifest. Gives also the layers, as another build can use them.
    fn assemble(&self, layers: &[Layer]) -> Result<(BuiltImage, Vec<Layer>)> {
        self.cache.shared().fetch(self.store, layers)?;
        let encoded = layers.iter().map(|layer| self.encoded(layer)).collect::<Result<Vec<_>>>()?;
        let made = layers.iter().zip(&encoded).map(|(layer, encoded)| as_made(layer, encoded).clone()).collect();
        let layers = encoded;
        let config = self.plan.finished_config(layers.iter().map(|layer| layer.diff_id.clone()).collect());
        let blobs = self.store.blobs();
        let config_bytes = config.to_bytes();
        fail_at("build.assemble.config")?;
        let config_blob = Descriptor::new(media_type::CONFIG, blobs.put(&config_bytes)?, config_bytes.len() as u64);
        let layer_blobs = layers.iter().map(|layer| layer.blob.clone()).collect();
        let mut annotations = self.annotations.clone();
        if self.inline_cache {
            let records = self.cache.shared().records(Some(&layers)).to_bytes();
            annotations.insert(INLINE_ANNOTATION.to_string(), String::from_utf8_lossy(&records).into_owned());
        }
        let manifest = Manifest { annotations, ..Manifest::new(config_blob, layer_blobs) };
        let manifest = manifest.to_bytes();
        fail_at("build.assemble.manifest")?;
        let descriptor = Descriptor::new(media_type::MANIFEST, blobs.put(&manifest)?, manifest.len() as u64);
        Ok((BuiltImage { manifest: descriptor, config }, made))
    }
}

/// The layers of `base` that decide what `copy` makes: a linked one is the same on any, unless its owner is looked up there.
fn decisive<'l>(copy: &Copy, base: &'l [Layer]) -> &'l [Layer] {
    let is_the_same = copy.is_linked && !copy.owner.as_deref().is_some_and(owner::has_name);
    if is_the_same { &[] } else { base }
}

/// A layer that the store does not give as it was written.
fn damaged(error: StoreError) -> Failure {
    match error.kind {
        StoreErrorKind::DigestMismatch { .. } => {
            Failure::from(error).hint("the store is damaged: build again with --no-cache")
        }
        _ => error.into(),
    }
}

/// What a shared cache names of a layer and its encoding in the image: the latter, so that the image's blobs are the cache's,
/// unless it is another layer (an eStargz has more in it), which no step has made.
fn as_made<'l>(layer: &'l Layer, encoded: &'l Layer) -> &'l Layer {
    if encoded.diff_id == layer.diff_id { encoded } else { layer }
}

/// The layers of an image in the store, lowest first.
pub(crate) fn image_layers(store: &Store, manifest: &Descriptor) -> Result<Vec<Layer>> {
    let image = store.images().load(manifest)?;
    let (blobs, diff_ids) = (image.manifest.layers, image.config.rootfs.diff_ids);
    if blobs.len() != diff_ids.len() {
        let (n_blobs, n_diff_ids) = (blobs.len(), diff_ids.len());
        let message = format!("the image's manifest has {n_blobs} layers, its config has {n_diff_ids}");
        return Err(Failure::new(message).hint("the image is damaged: pull or build it again"));
    }
    let layers = diff_ids.into_iter().zip(blobs);
    Ok(layers.map(|(diff_id, blob)| Layer { diff_id, blob: blob.in_oci_terms(), encoding: None }).collect())
}
