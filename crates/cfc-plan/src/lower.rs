//! [`lower`]: from a request to a plan, stage by stage.

use std::collections::{BTreeSet, HashMap};

use cfc_dockerfile::Span;
use cfc_oci::{ImageConfig, Platform, RootFs};

use crate::arguments;
use crate::environment::Environment;
use crate::error::Located;
use crate::graph::{Graph, Origin};
use crate::lint::{LintConfig, LintWarning, Linter, Rule, check_syntax};
use crate::outline::Capture;
use crate::stage::{StageLowering, State};
use crate::stages::{Head, NamedSource, Source, Stages};
use crate::{BaseImage, BaseImages, BuildRequest, CopySource, NodeId, Op, Plan, PlanError};

/// Lowers `request` to the operations that build it. Base images are asked of `bases` for the stages that the target
/// needs, and only for those.
pub fn lower(request: &BuildRequest, bases: &dyn BaseImages) -> Result<Plan, PlanError> {
    let linter = Linter::new(lint_config(request)?);
    let mut plan = lower_with(request, bases, &linter, false, &mut Capture::default())?;
    if let Some(rules) = linter.violated() {
        let error = request.error(format!("lint violation found for rules: {rules}"));
        return Err(error.with_hint("`cfc build --check` shows them; `# check=error=true` makes them errors"));
    }
    plan.lint = linter.into_warnings();
    Ok(plan)
}

/// What is wrong with a Dockerfile.
#[derive(Debug)]
pub struct Checked {
    /// Which rules of lint it breaks, in the order of its lines.
    pub warnings: Vec<LintWarning>,
    /// Why it cannot be built, if so.
    pub error: Option<PlanError>,
}

/// Checks the target and what it needs; without a target, all stages. Nothing is built.
pub fn check(request: &BuildRequest, bases: &dyn BaseImages) -> Checked {
    let linter = match lint_config(request) {
        Ok(config) => Linter::new(config),
        Err(error) => return Checked { warnings: Vec::new(), error: Some(error) },
    };
    let lowered = lower_with(request, bases, &linter, request.target.is_none(), &mut Capture::default());
    Checked { warnings: linter.into_warnings(), error: lowered.err() }
}

fn lint_config(request: &BuildRequest) -> Result<LintConfig, PlanError> {
    let given = request.build_args.get("BUILDKIT_DOCKERFILE_CHECK").or(request.dockerfile.directives.check.as_ref());
    let parsed = given.map(|text| LintConfig::parse(text)).transpose();
    Ok(parsed.map_err(|message| request.error(format!("`check`: {message}")))?.unwrap_or_default())
}

/// Lowers the target, or all stages and then the target; what the Dockerfile can be given goes to `capture`.
pub(crate) fn lower_with(
    request: &BuildRequest,
    bases: &dyn BaseImages,
    linter: &Linter,
    all_stages: bool,
    capture: &mut Capture,
) -> Result<Plan, PlanError> {
    check_syntax(&request.dockerfile, linter);
    let arguments = arguments::global(request)?;
    let epoch = arguments::source_date_epoch(request, &arguments)?;
    let stages = Stages::new(request, &arguments, linter)?;
    let target = stages.target()?;
    let fresh = request.fresh_stages.iter().map(|name| Ok(stages.heads[stages.called(name)?].label.clone()));
    let fresh = fresh.collect::<Result<BTreeSet<String>, PlanError>>()?;
    let order = stages.reachable(target)?;
    let mut lowering = Lowering {
        request,
        bases,
        stages,
        arguments,
        proxies: arguments::proxies(&request.build_args),
        created: cfc_oci::rfc3339(epoch),
        graph: Graph::default(),
        finished: HashMap::new(),
        images: HashMap::new(),
        open: Vec::new(),
        linter,
        capture,
    };
    lowering.lower_all(order)?;
    for stage in if all_stages { 0..request.dockerfile.stages.len() } else { 0..0 } {
        let order = lowering.stages.reachable(stage)?;
        lowering.lower_all(order)?;
    }
    let state = lowering.finished.remove(&target).expect("the target is the last of the reachable stages");
    lowering.graph.nodes.iter_mut().for_each(|node| node.is_fresh = fresh.contains(&node.stage));
    Ok(Plan {
        nodes: lowering.graph.nodes,
        target: state.node,
        config: final_config(request, state.config, &lowering.created),
        source_date_epoch: epoch,
        dockerfile_path: request.dockerfile_path.clone(),
        warnings: arguments::unused(request).into_iter().chain(lowering.stages.unused_contexts()).collect(),
        lint: Vec::new(),
    })
}

fn final_config(request: &BuildRequest, mut config: ImageConfig, created: &str) -> ImageConfig {
    if !request.labels.is_empty() {
        config.config.labels.get_or_insert_default().extend(request.labels.clone());
    }
    config.created = Some(created.to_string());
    // Whatever the base image says of itself: who asks for a platform gets an image that says so (BuildKit).
    if request.platform != Platform::host() {
        let is_same = (&config.os, &config.architecture) == (&request.platform.os, &request.platform.architecture);
        if request.platform.variant.is_some() || !is_same {
            config.variant = request.platform.variant.clone();
        }
        config.os = request.platform.os.clone();
        config.architecture = request.platform.architecture.clone();
    }
    config.rootfs = RootFs::default();
    config
}

/// What is known while stages are lowered.
pub(crate) struct Lowering<'a> {
    pub(crate) request: &'a BuildRequest,
    bases: &'a dyn BaseImages,
    pub(crate) stages: Stages<'a>,
    pub(crate) arguments: Environment,
    pub(crate) proxies: Vec<(String, String)>,
    pub(crate) created: String,
    pub(crate) graph: Graph,
    finished: HashMap<usize, State>,
    images: HashMap<(String, String), BaseImage>,
    /// The stages under way: more than one while a trigger waits for a stage that it needs.
    open: Vec<usize>,
    pub(crate) linter: &'a Linter,
    pub(crate) capture: &'a mut Capture,
}

impl Lowering<'_> {
    fn lower_all(&mut self, order: Vec<usize>) -> Result<(), PlanError> {
        for stage in order {
            if self.finished.contains_key(&stage) {
                continue;
            }
            self.open.push(stage);
            let state = StageLowering::lower(self, stage)?;
            self.open.pop();
            self.finished.insert(stage, state);
        }
        Ok(())
    }

    /// Lowers a stage, and those it needs, that only a trigger asks for.
    pub(crate) fn lower_for_trigger(&mut self, stage: usize, span: Span, max_depth: usize) -> Result<(), PlanError> {
        let order = self.stages.reachable(stage)?;
        if let Some(open) = order.iter().find(|stage| self.open.contains(stage)) {
            let label = &self.stages.heads[*open].label;
            return Err(self.request.error_at(span, format!("stage `{label}` needs itself")));
        }
        if self.open.len() > max_depth {
            let message = format!("triggers need each other's stages more than {max_depth} levels deep");
            return Err(self.request.error_at(span, message));
        }
        self.lower_all(order)
    }

    /// A stage that was lowered already; [`Stages::reachable`] puts it before whatever needs it.
    pub(crate) fn finished(&self, stage: usize) -> &State {
        self.finished.get(&stage).expect("stages are lowered in the order of their needs")
    }

    /// The node of an image, and its config.
    pub(crate) fn image(
        &mut self,
        reference: &str,
        platform: &Platform,
        origin: &Origin<'_>,
    ) -> Result<(NodeId, ImageConfig), PlanError> {
        let (node, config) = self.image_of_any_platform(reference, platform, origin)?;
        let (wanted, actual) = (platform, config.platform());
        if (&wanted.os, &wanted.architecture) != (&actual.os, &actual.architecture) && !actual.os.is_empty() {
            let wanted = wanted.to_string();
            let message = format!(
                "Base image {reference} was pulled with platform \"{actual}\", expected {wanted:?} for current build"
            );
            self.linter.warn(Rule::INVALID_BASE_IMAGE_PLATFORM, origin.span, message);
        }
        Ok((node, config))
    }

    fn image_of_any_platform(
        &mut self,
        reference: &str,
        platform: &Platform,
        origin: &Origin<'_>,
    ) -> Result<(NodeId, ImageConfig), PlanError> {
        let key = (reference.to_string(), platform.to_string());
        let image = match self.images.get(&key) {
            Some(image) => image.clone(),
            None => {
                let image = self.find(reference, platform, origin.span)?;
                self.images.insert(key, image.clone());
                image
            }
        };
        let op = Op::Image { manifest: image.manifest, reference: reference.to_string() };
        Ok((self.graph.add(op, None, origin), image.config))
    }

    fn find(&self, reference: &str, platform: &Platform, span: Span) -> Result<BaseImage, PlanError> {
        self.bases.find(reference, platform).map_err(|error| {
            let mut failure = self.request.error_at(span, format!("cannot use image `{reference}`: {}", error.message));
            failure.hint = Some(self.hint_about(reference, error.hint)).filter(|hint| !hint.is_empty());
            failure.source = error.source;
            failure
        })
    }

    /// Whoever gets a stage's name wrong is told that there is no such image; this adds the names of the stages.
    fn hint_about(&self, reference: &str, hint: Option<String>) -> String {
        let named = self.request.dockerfile.stages.iter().filter_map(|stage| stage.name.as_ref());
        let names: Vec<String> = named.map(|name| format!("`{name}`")).collect();
        let could_be_stage = !names.is_empty() && !reference.contains(['/', ':', '.']);
        let stages = could_be_stage.then(|| format!("the stages are {}", names.join(", ")));
        hint.into_iter().chain(stages).collect::<Vec<_>>().join("; ")
    }

    /// The node of what a build context has for a name, and the config where it is an image.
    pub(crate) fn named(
        &mut self,
        source: &NamedSource,
        platform: &Platform,
        origin: &Origin<'_>,
    ) -> Result<(NodeId, Option<ImageConfig>), PlanError> {
        Ok(match source {
            NamedSource::Scratch => (self.graph.add(Op::Scratch, None, origin), None),
            NamedSource::Image(reference) => {
                let (node, config) = self.image_of_any_platform(reference, platform, origin)?;
                (node, Some(config))
            }
            NamedSource::Files(name) => {
                let op = Op::Context { name: Some(name.clone()), path: "/".to_string() };
                (self.graph.add(op, None, origin), None)
            }
        })
    }

    /// What `COPY --from` copies from. An image is the target's, whatever platform the stage has (BuildKit).
    pub(crate) fn copy_source(&mut self, name: &str, origin: &Origin<'_>) -> Result<CopySource, PlanError> {
        let platform = &self.request.platform;
        let source = match self.stages.copy_source(name, origin.span)? {
            // Its files are copied from where they are.
            Source::Stage(stage) => match &self.stages.heads[stage] {
                Head { base: Source::Context(NamedSource::Files(name)), is_replaced: true, .. } => {
                    return Ok(CopySource::Named(name.clone()));
                }
                _ => self.finished(stage).node,
            },
            Source::Context(NamedSource::Files(name)) => return Ok(CopySource::Named(name)),
            Source::Context(named) => self.named(&named, platform, origin)?.0,
            Source::Scratch => self.graph.add(Op::Scratch, None, origin),
            Source::Image(reference) => self.image(&reference, platform, origin)?.0,
        };
        Ok(CopySource::Node(source))
    }
}
