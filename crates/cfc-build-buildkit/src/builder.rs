//! [`BuildkitBuilder`]: executes a plan on a BuildKit daemon, into the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use cfc_oci::{Descriptor, ImageConfig, Manifest, media_type};
use cfc_plan::{BuildError, BuildProgress, Builder, BuiltImage, Context, ContextFiles, NodeId, Op, Plan};
use cfc_store::{Compression, Encoding, Store};
use serde::Serialize;
use tokio::sync::watch;

use crate::archive::{Intake, Layer, Taken, base_layers};
use crate::cache::CacheEntry;
use crate::connect::{Connector, TlsFiles};
use crate::failure::{Failure, Result};
use crate::lent::{self, Lent};
use crate::solve::{Exporter, Outcome, Solve};
use crate::watch::Watch;
use crate::{Address, session};

/// How to build.
#[derive(Clone, Debug)]
pub struct BuildkitOptions {
    /// Where the daemon is.
    pub address: Address,
    /// How its port is spoken to with TLS.
    pub tls: Option<TlsFiles>,
    /// Carries every operation out, even those whose result is known.
    pub no_cache: bool,
    /// How the layers are encoded that the build makes.
    pub encoding: Encoding,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// Caches that the daemon uses.
    pub cache_from: Vec<CacheEntry>,
    /// Where the daemon sends the build's cache.
    pub cache_to: Vec<CacheEntry>,
}

impl BuildkitOptions {
    /// Builds at `address`, with nothing special about it.
    pub fn at(address: Address) -> BuildkitOptions {
        BuildkitOptions {
            address,
            tls: None,
            no_cache: false,
            encoding: Encoding::default(),
            annotations: BTreeMap::new(),
            cache_from: Vec::new(),
            cache_to: Vec::new(),
        }
    }
}

/// Knows how we log in to registries; the daemon asks when it needs to.
pub trait RegistryLogins: Send + Sync {
    /// The user's name and password for `host`. With an empty name, the password is an identity token. None where there is no
    /// login; the error says why one that is there cannot be had.
    fn login(&self, host: &str) -> std::result::Result<Option<(String, String)>, String>;
}

/// Builds images on a daemon.
pub struct BuildkitBuilder {
    store: Store,
    options: BuildkitOptions,
    logins: Option<Arc<dyn RegistryLogins>>,
    stop: watch::Sender<bool>,
    /// Held while something is built.
    building: Arc<Mutex<()>>,
}

/// How long a build that was stopped may tidy up.
const TIDYING: Duration = Duration::from_secs(5);

/// Ends a build from another thread.
#[derive(Clone)]
pub struct Stopper {
    stop: watch::Sender<bool>,
    building: Arc<Mutex<()>>,
}

impl Stopper {
    /// Ends what the daemon does for us, and waits until Docker's engine has given back what it was lent, five seconds at most.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        let start = Instant::now();
        while matches!(self.building.try_lock(), Err(TryLockError::WouldBlock)) && start.elapsed() < TIDYING {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl BuildkitBuilder {
    /// A builder that keeps images in `store`.
    pub fn new(store: Store, options: BuildkitOptions) -> BuildkitBuilder {
        BuildkitBuilder { store, options, logins: None, stop: watch::Sender::new(false), building: Arc::default() }
    }

    /// The same builder, whose daemon may log in to registries as we do.
    pub fn with_logins(mut self, logins: Arc<dyn RegistryLogins>) -> BuildkitBuilder {
        self.logins = Some(logins);
        self
    }

    /// For whoever may have to end the build.
    pub fn stopper(&self) -> Stopper {
        Stopper { stop: self.stop.clone(), building: self.building.clone() }
    }
}

impl Builder for BuildkitBuilder {
    fn build(
        &mut self,
        plan: &Plan,
        context: &Context,
        progress: &dyn BuildProgress,
    ) -> std::result::Result<BuiltImage, BuildError> {
        progress.planned(plan);
        let building = self.building.clone();
        let _building = building.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = |failure: Failure| failure.of(plan, None);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| whole(Failure::because("cannot start threads for the build", error)))?;
        let built = runtime.block_on(self.carry_out(plan, context, progress));
        // A thread that waits for a file or a pipe is not waited for.
        runtime.shutdown_background();
        self.finish(plan, &built?).map_err(whole)
    }
}

impl BuildkitBuilder {
    /// The layers of the image, and its cache.
    async fn carry_out(
        &self,
        plan: &Plan,
        context: &Context,
        progress: &dyn BuildProgress,
    ) -> std::result::Result<Taken, BuildError> {
        let whole = |failure: Failure| failure.of(plan, None);
        let connector = Connector::new(&self.options.address, self.options.tls.as_ref()).map_err(whole)?;
        let channel = connector.channel().await.map_err(whole)?;
        let manifests = || plan.nodes.iter().filter_map(|node| manifest(&node.op));
        let bases = base_layers(&self.store, manifests()).map_err(whole)?;
        let exporters: &[Exporter] = match self.options.address.is_engine() {
            true => &[Exporter::Stream, Exporter::Engine],
            false => &[Exporter::Stream],
        };
        let mut stopped = self.stop.subscribe();
        for exporter in exporters {
            let id = uuid::Uuid::new_v4().simple().to_string();
            let lent = match exporter {
                Exporter::Stream => None,
                Exporter::Engine => {
                    lent::sweep(&self.store, &connector).await;
                    Some(Lent::begin(&self.store, &connector, &id).map_err(whole)?)
                }
            };
            let solve = Solve {
                id,
                store: &self.store,
                options: &self.options,
                logins: self.logins.clone(),
                connector: &connector,
                channel: channel.clone(),
                plan,
                context,
                exporter: *exporter,
                lent: lent.as_ref(),
                intake: self.intake(plan, bases.clone()),
            };
            let outcome = tokio::select! {
                outcome = solve.run(Watch::new(plan, progress)) => outcome?,
                _ = stopped.wait_for(|is_stopped| *is_stopped) => {
                    if let Some(lent) = &lent {
                        lent.end(&connector).await;
                    }
                    return Err(whole(Failure::new("the build was ended")));
                }
            };
            match outcome {
                Outcome::Built(taken) => return Ok(taken),
                Outcome::NoSuchExporter => {}
            }
        }
        let address = &self.options.address;
        let ways = if address.is_engine() { "`oci`, `moby`" } else { "`oci`" };
        let failure = Failure::new(format!("the BuildKit daemon at `{address}` sends images to no client ({ways})"));
        Err(whole(failure.hint("if it is the one in Docker's engine, reach it through that: `docker://`")))
    }

    fn intake(&self, plan: &Plan, bases: Vec<Layer>) -> Intake {
        Intake {
            store: self.store.clone(),
            bases,
            newest_mtime: plan.source_date_epoch,
            encoding: self.options.encoding.while_building(),
            address: self.options.address.to_string(),
            no_cache: self.options.no_cache,
        }
    }

    /// Writes config and manifest.
    fn finish(&self, plan: &Plan, taken: &Taken) -> Result<BuiltImage> {
        let layers = taken.layers.iter().map(|layer| self.encoded(layer)).collect::<Result<Vec<_>>>()?;
        let config = plan.finished_config(layers.iter().map(|layer| layer.diff_id.clone()).collect());
        let blobs = self.store.blobs();
        let bytes = taken.cache.as_ref().map_or_else(|| config.to_bytes(), |cache| with_cache(&config, cache));
        let config_blob = Descriptor::new(media_type::CONFIG, blobs.put(&bytes)?, bytes.len() as u64);
        let layer_blobs = layers.iter().map(|layer| layer.blob.clone()).collect();
        let annotations = self.options.annotations.clone();
        let bytes = Manifest { annotations, ..Manifest::new(config_blob, layer_blobs) }.to_bytes();
        let manifest = Descriptor::new(media_type::MANIFEST, blobs.put(&bytes)?, bytes.len() as u64);
        Ok(BuiltImage { manifest, config })
    }

    /// An eStargz is made of a finished layer; the base image's layers stay as they are.
    fn encoded(&self, layer: &Layer) -> Result<Layer> {
        if self.options.encoding.compression() != Compression::Estargz || !layer.is_ours {
            return Ok(layer.clone());
        }
        let made = self.store.encode_layer(&layer.diff_id, &layer.blob, self.options.encoding)?;
        Ok(Layer { diff_id: made.diff_id, blob: made.descriptor, ..layer.clone() })
    }
}

/// An image's config with the daemon's cache in it, where BuildKit looks for that.
fn with_cache(config: &ImageConfig, cache: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct WithCache<'a> {
        #[serde(flatten)]
        config: &'a ImageConfig,
        #[serde(rename = "moby.buildkit.cache.v0")]
        cache: &'a str,
    }
    serde_json::to_vec(&WithCache { config, cache }).expect("an image config has only string keys")
}

fn manifest(op: &Op) -> Option<&Descriptor> {
    match op {
        Op::Image { manifest, .. } => Some(manifest),
        _ => None,
    }
}

/// The base images of a plan.
pub(crate) fn images(plan: &Plan) -> impl Iterator<Item = (NodeId, &Descriptor, &str)> {
    plan.nodes.iter().enumerate().filter_map(|(index, node)| match &node.op {
        Op::Image { manifest, reference } => Some((NodeId(index), manifest, reference.as_str())),
        _ => None,
    })
}

/// The build contexts that are directories of this machine, by the names that they have in the session.
pub(crate) fn local_files(context: &Context) -> BTreeMap<String, session::LocalFiles> {
    let named = context.named.iter().filter_map(|(name, named)| match &named.files {
        ContextFiles::Directory(directory) => {
            let ignore = named.ignore.as_ref().map(|ignore| ignore.file.clone());
            Some((name.to_string(), session::LocalFiles { directory: directory.clone(), ignore }))
        }
        ContextFiles::Git(_) | ContextFiles::Url(_) => None,
    });
    let ignore = context.ignore.as_ref().map(|ignore| ignore.file.clone());
    let own = session::LocalFiles { directory: context.directory.clone(), ignore };
    named.chain([(crate::lowering::CONTEXT.to_string(), own)]).collect()
}

/// The blobs of the base images, which the daemon may read.
pub(crate) fn shown_blobs(store: &Store, plan: &Plan) -> Result<BTreeSet<cfc_oci::Digest>> {
    let mut shown = BTreeSet::new();
    for (_, manifest, _) in images(plan) {
        shown.extend(store.blobs_of(manifest)?.into_iter().map(|blob| blob.digest));
    }
    Ok(shown)
}
