//! [`Solve`]: one build, from the open channel to the layers that came back.
//!
//! ```text
//! Session ─ what the daemon asks of us ──────────────────────────────────────┐
//! Control.Solve ─ begins without a definition, so that we drive the build: ──┤ until it is exported
//!   LLBBridge.Ping ─ what the daemon can do                                  │
//!   LLBBridge.Solve ─ the plan, in words that it knows                       │
//!   LLBBridge.Return ─ that is the result; now it is exported                │
//! Control.Status ─ how it goes ──────────────────────────────────────────────┘
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bollard_buildkit_proto::google::rpc::Status as RpcStatus;
use bollard_buildkit_proto::moby::buildkit::v1 as control;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use bollard_buildkit_proto::moby::buildkit::v1::frontend;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use cfc_oci::{Digest, Reference};
use cfc_plan::{BuildError, Context, NodeId, Op, Plan, RunNetwork};
use cfc_store::Store;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::BuildkitOptions;
use crate::archive::{Intake, Layer, Taken, base_layers};
use crate::arrivals::Arrivals;
use crate::builder::{RegistryLogins, images, local_files, shown_blobs};
use crate::cache::Caches;
use crate::capabilities::{self as can, Capabilities};
use crate::connect::{Connector, MAX_MESSAGE_BYTES};
use crate::engine::{Engine, Saved};
use crate::failure::{Failure, Result, refused};
use crate::lent::Lent;
use crate::lowering::{Base, BaseSource, Lowered, Lowering};
use crate::session::{Auth, Blobs, Content, Export, Files, Secrets, Services, Session, Ssh};
use crate::watch::Watch;

/// Says to which build a call belongs.
const BUILD_ID: &str = "buildkit-controlapi-buildid";
/// Between two questions how a build goes that the daemon does not know of.
const BEFORE_ASKING_AGAIN: Duration = Duration::from_millis(50);
/// How long the last words of a build are waited for.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// A daemon that refuses to be driven often says why with the answer to the build, but not always: some wait for us then.
const LAST_ANSWER: Duration = Duration::from_secs(5);

/// How an image comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exporter {
    /// As an OCI archive over the session.
    Stream,
    /// By way of the images of Docker's engine.
    Engine,
}

/// How a build ended well.
pub(crate) enum Outcome {
    Built(Taken),
    /// The daemon has another way to give images away.
    NoSuchExporter,
}

/// One build.
pub(crate) struct Solve<'a> {
    pub(crate) store: &'a Store,
    pub(crate) options: &'a BuildkitOptions,
    pub(crate) logins: Option<Arc<dyn RegistryLogins>>,
    pub(crate) connector: &'a Connector,
    pub(crate) channel: Channel,
    pub(crate) plan: &'a Plan,
    pub(crate) context: &'a Context,
    pub(crate) exporter: Exporter,
    /// The image that the engine is lent, where that is the way it comes back.
    pub(crate) lent: Option<&'a Lent>,
    pub(crate) intake: Intake,
    /// What the build is called, on the daemon too.
    pub(crate) id: String,
}

/// Why a build cannot go on from our side.
enum Refusal {
    Node(NodeId, Failure),
    /// The daemon did not go on with us, and did not answer to the build either.
    Daemon(Status),
}

impl Solve<'_> {
    /// Carries it out.
    pub(crate) async fn run(self, watch: Watch<'_>) -> std::result::Result<Outcome, BuildError> {
        let plan = self.plan;
        let whole = |failure: Failure| failure.of(plan, None);
        let id = self.id.clone();
        let (export, received) = Export::new();
        // Older daemons send an archive all the same.
        let (arrivals, taking, export) = match self.exporter {
            Exporter::Stream => (Some(Arrivals::new(self.intake.clone())), Some(self.taking(received)), export),
            Exporter::Engine => (None, None, Export::closed()),
        };
        let (imports, exports) =
            (Caches::new(&self.options.cache_from, true), Caches::new(&self.options.cache_to, false));
        let stores = imports.stores().chain(exports.stores());
        let services = self.services(export, arrivals.clone(), stores).map_err(whole)?;
        let session = Session::open(self.channel.clone(), &self.address(), &id, services).await.map_err(whole)?;
        let (watch, below) = (RefCell::new(watch), RefCell::new(Vec::new()));
        let solved = self.solve(&id, &exports, &imports, &watch, &below).await;
        let answer = match solved {
            Ok(answer) => answer,
            Err(Refusal::Node(node, failure)) => return Err(watch.into_inner().refuse(node, failure)),
            Err(Refusal::Daemon(status)) => {
                return Err(watch.into_inner().fail(refused(&self.address(), "build", &status)));
            }
        };
        drop(session);
        let taken = match (answer, taking) {
            (Err(status), _) if has_no_such_exporter(&status) => return Ok(Outcome::NoSuchExporter),
            (Err(status), taking) => {
                let not_taken = arrivals.and_then(|arrivals| arrivals.failure());
                return Err(self.failure(status, not_taken, taking, watch.into_inner()).await);
            }
            (Ok(_), Some(taking)) => match arrivals.and_then(|arrivals| arrivals.image()) {
                Some(arrived) => arrived,
                None => taken(taking.await),
            },
            (Ok(_), None) => self.fetch(&id).await,
        };
        let Taken { layers, cache } = taken.map_err(whole)?;
        exports.name().map_err(whole)?;
        watch.into_inner().succeed();
        let layers = below.into_inner().into_iter().chain(layers).collect();
        Ok(Outcome::Built(Taken { layers, cache }))
    }

    fn address(&self) -> String {
        self.options.address.to_string()
    }

    fn services(
        &self,
        export: Export,
        arrivals: Option<Arrivals>,
        stores: impl Iterator<Item = (String, Blobs)>,
    ) -> Result<Services> {
        let shown = Arc::new(shown_blobs(self.store, self.plan)?);
        Ok(Services {
            files: Files(local_files(self.context)),
            export,
            auth: Auth(self.logins.clone()),
            secrets: Secrets(self.context.secrets.clone()),
            ssh: Ssh(self.context.ssh.clone()),
            content: Content::new(Blobs::Images(self.store.blobs(), shown), arrivals.map(Blobs::Image), stores),
        })
    }

    /// Takes an archive apart on a thread of its own.
    fn taking(&self, archive: impl Read + Send + 'static) -> tokio::task::JoinHandle<Result<Taken>> {
        let intake = self.intake.clone();
        tokio::task::spawn_blocking(move || intake.take(archive))
    }

    /// Begins, drives and follows the build. The daemon's answer to it, or why it did not get that far.
    async fn solve(
        &self,
        id: &str,
        exports: &Caches<'_>,
        imports: &Caches<'_>,
        watch: &RefCell<Watch<'_>>,
        below: &RefCell<Vec<Layer>>,
    ) -> std::result::Result<std::result::Result<control::SolveResponse, Status>, Refusal> {
        let mut client = ControlClient::new(self.channel.clone());
        let solving = client.solve(self.request(id, exports));
        let driving = async {
            let driven = self.drive(id, imports, watch, below).await;
            if matches!(driven, Err(Refusal::Daemon(_))) {
                tokio::time::sleep(LAST_ANSWER).await;
            }
            driven
        };
        let following = self.follow(id, watch);
        tokio::pin!(solving, driving, following);
        let (mut is_driven, mut is_followed) = (false, false);
        let answer = loop {
            tokio::select! {
                answer = &mut solving => break answer,
                driven = &mut driving, if !is_driven => {
                    is_driven = true;
                    // The call is dropped, so that the daemon ends the build.
                    driven?;
                }
                () = &mut following, if !is_followed => is_followed = true,
            }
        };
        let has_begun = !answer.as_ref().is_err_and(has_no_such_exporter);
        if has_begun && !is_followed {
            let _ = tokio::time::timeout(LAST_WORDS, following).await;
        }
        Ok(answer.map(tonic::Response::into_inner))
    }

    fn request(&self, id: &str, exports: &Caches<'_>) -> control::SolveRequest {
        let (exporter, attributes) = match self.exporter {
            Exporter::Stream => {
                ("oci", vec![("compression", "uncompressed".to_string()), ("tar", "false".to_string())])
            }
            Exporter::Engine => ("moby", vec![("name", image_name(id))]),
        };
        let mut entitlements = Vec::new();
        for node in &self.plan.nodes {
            let Op::Run(run) = &node.op else { continue };
            entitlements.extend((run.network == RunNetwork::Host).then_some("network.host"));
            entitlements.extend(run.is_insecure.then_some("security.insecure"));
        }
        entitlements.dedup();
        control::SolveRequest {
            r#ref: id.to_string(),
            session: id.to_string(),
            // Newer daemons have a list of them, and take these as well.
            exporter_deprecated: exporter.to_string(),
            exporter_attrs_deprecated: attributes.into_iter().map(|(key, value)| (key.to_string(), value)).collect(),
            entitlements: entitlements.into_iter().map(str::to_string).collect(),
            cache: Some(control::CacheOptions { exports: exports.exports(), ..<_>::default() }),
            ..control::SolveRequest::default()
        }
    }

    /// Asks the daemon what it can do, and has it do the plan.
    async fn drive(
        &self,
        id: &str,
        imports: &Caches<'_>,
        watch: &RefCell<Watch<'_>>,
        below: &RefCell<Vec<Layer>>,
    ) -> std::result::Result<(), Refusal> {
        let mut bridge = LlbBridgeClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(usize::MAX);
        let pong = bridge.ping(of_build(id, frontend::PingRequest {})).await.map_err(Refusal::Daemon)?;
        let capabilities = Capabilities::of(pong.into_inner());
        let lowered = self.lower(id, &capabilities).await?;
        watch.borrow_mut().knows(&lowered);
        if let Some(node) = lowered.left_out {
            *below.borrow_mut() = self.layers_of(node)?;
        }
        let request = frontend::SolveRequest {
            definition: Some(lowered.definition),
            allow_result_return: true,
            allow_result_array_ref: true,
            cache_imports: imports.imports(),
            ..frontend::SolveRequest::default()
        };
        let solved = bridge.solve(of_build(id, request)).await;
        let returned = match &solved {
            Ok(solved) => frontend::ReturnRequest { result: solved.get_ref().result.clone(), error: None },
            Err(status) => {
                let (code, message) = (status.code().into(), status.message().to_string());
                let error = RpcStatus { code, message, details: Vec::new() };
                frontend::ReturnRequest { result: None, error: Some(error) }
            }
        };
        let is_returned = bridge.r#return(of_build(id, returned)).await;
        // What went wrong first is the reason.
        match solved.err().or(is_returned.err()) {
            None => Ok(()),
            Some(status) => Err(Refusal::Daemon(status)),
        }
    }

    async fn lower(&self, id: &str, capabilities: &Capabilities) -> std::result::Result<Lowered, Refusal> {
        let bases = self.bases(capabilities).await?;
        let hints = local_files(self.context).into_iter().map(|(name, files)| {
            let place =
                format!("{} {}", rustix::system::uname().nodename().to_string_lossy(), files.directory.display());
            (name, Digest::of(place.as_bytes()).hex().to_string())
        });
        let lowering = Lowering {
            plan: self.plan,
            context: self.context,
            bases: &bases,
            capabilities,
            platform: &self.plan.config.platform(),
            session: id,
            hints: &hints.collect(),
            no_cache: self.options.no_cache,
            // A cache in the image is of all its layers.
            leaves_base_out: self.exporter == Exporter::Stream && !self.has_inline_cache(),
        };
        lowering.lower().map_err(|(node, failure)| Refusal::Node(node, failure))
    }

    /// Whether a cache is written into the image.
    fn has_inline_cache(&self) -> bool {
        Caches::new(&self.options.cache_to, false).has_inline()
    }

    /// The layers of the base image `node`, lowest first, as they are in the store.
    fn layers_of(&self, node: NodeId) -> std::result::Result<Vec<Layer>, Refusal> {
        let manifests = images(self.plan).filter(|(image, ..)| *image == node).map(|(_, manifest, _)| manifest);
        base_layers(&self.store.clone(), manifests).map_err(|failure| Refusal::Node(node, failure))
    }

    /// Where the daemon finds the base images: with us where it can ask us, in Docker's engine where we can give them to that,
    /// else in their registries.
    async fn bases(&self, capabilities: &Capabilities) -> std::result::Result<BTreeMap<NodeId, Base>, Refusal> {
        let mut bases = BTreeMap::new();
        for (node, manifest, reference) in images(self.plan) {
            let of_node = |failure| Refusal::Node(node, failure);
            let image = self.store.images().load(manifest).map_err(|error| of_node(error.into()))?;
            let source = if self.exporter == Exporter::Engine {
                let given = Engine(self.connector).give(self.store, manifest).await;
                BaseSource::Daemon(given.map_err(of_node)?)
            } else if capabilities.has(can::LAYOUT) {
                BaseSource::Session
            } else {
                BaseSource::Registry(in_registry(reference, &manifest.digest).map_err(of_node)?)
            };
            bases.insert(node, Base { source, platform: image.config.platform() });
        }
        Ok(bases)
    }

    async fn follow(&self, id: &str, watch: &RefCell<Watch<'_>>) {
        let mut client = ControlClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        loop {
            let said = client.status(control::StatusRequest { r#ref: id.to_string() }).await;
            let mut has_spoken = false;
            if let Ok(said) = said {
                let mut said = said.into_inner();
                while let Ok(Some(said)) = said.message().await {
                    has_spoken = true;
                    watch.borrow_mut().hear(&said);
                }
            }
            if has_spoken {
                return;
            }
            // Some daemons do not know of a build yet that they were just asked for.
            tokio::time::sleep(BEFORE_ASKING_AGAIN).await;
        }
    }

    /// Why there is no image: the daemon's reason, unless it only says that we would not take it.
    async fn failure(
        &self,
        status: Status,
        not_taken: Option<Failure>,
        taking: Option<tokio::task::JoinHandle<Result<Taken>>>,
        watch: Watch<'_>,
    ) -> BuildError {
        if let Some(failure) = not_taken {
            return failure.of(self.plan, None);
        }
        if status.message().contains(crate::session::NOBODY_TAKES_IT)
            && let Some(taking) = taking
            && let Err(failure) = taken(taking.await)
        {
            return failure.of(self.plan, None);
        }
        watch.fail(refused(&self.address(), "build", &status))
    }

    /// The image out of the engine, which keeps nothing of it but what it may use again.
    async fn fetch(&self, id: &str) -> Result<Taken> {
        let name = image_name(id);
        let engine = Engine(self.connector);
        let taken = match self.known(&engine, &name).await {
            Ok(Some(taken)) => Ok(taken),
            Ok(None) => self.save(&engine, &name).await,
            Err(failure) => Err(failure),
        };
        if let Some(lent) = self.lent {
            lent.end(self.connector).await;
        }
        taken
    }

    /// The image, where all its layers are here: then nothing of it need be sent. A cache in its config only its archive has.
    async fn known(&self, engine: &Engine<'_>, name: &str) -> Result<Option<Taken>> {
        if self.options.no_cache || self.has_inline_cache() {
            return Ok(None);
        }
        let layers = self.intake.known_layers(&engine.layers(name).await?);
        Ok(layers.map(|layers| Taken { layers, cache: None }))
    }

    async fn save(&self, engine: &Engine<'_>, name: &str) -> Result<Taken> {
        let Saved { archive, broken } = engine.save(name).await?;
        let taken = taken(self.taking(archive).await);
        // What is missing then is only what follows from that.
        match broken.await {
            Ok(Some(why)) if taken.is_err() => Err(refused(&self.address(), "build", &Status::unavailable(why))),
            _ => taken,
        }
    }
}

fn has_no_such_exporter(status: &Status) -> bool {
    let text = status.message();
    text.contains("exporter") && text.contains("could not be found")
}

/// What an image is called in the engine as long as it is on its way to us.
pub(crate) fn image_name(id: &str) -> String {
    format!("cfc-build:{id}")
}

fn of_build<T>(id: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(BUILD_ID, MetadataValue::try_from(id).expect("an id is ASCII"));
    request
}

fn taken(joined: std::result::Result<Result<Taken>, tokio::task::JoinError>) -> Result<Taken> {
    joined.unwrap_or_else(|error| Err(Failure::because("cannot take in the image", error)))
}

/// The image `reference`, and no other, as a registry has it.
fn in_registry(reference: &str, digest: &Digest) -> Result<Reference> {
    let parsed = Reference::parse(reference).map_err(|error| Failure::because("the reference is malformed", error))?;
    if parsed.registry.is_none() {
        return Err(Failure::new(format!(
            "this BuildKit daemon cannot be given the image `{reference}` (it has no `{}`)",
            can::LAYOUT
        ))
        .hint("use a newer daemon, or push the image and name it with its registry"));
    }
    Ok(Reference { tag: None, digest: Some(digest.clone()), ..parsed })
}
