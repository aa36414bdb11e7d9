//! [`Stages`]: which stage builds on which, before any instruction is looked at.

use std::cell::RefCell;
use std::collections::BTreeSet;

use cfc_dockerfile::{Instruction, Span, Spanned, Stage};
use cfc_oci::Platform;

use crate::arguments::expand;
use crate::environment::Environment;
use crate::error::Located;
use crate::lint::{Linter, Rule};
use crate::{BuildRequest, ContextName, NamedContext, PlanError};

/// What a stage starts from or copies from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Scratch,
    Stage(usize),
    Image(String),
    /// What a build context of a name has in store for it.
    Context(NamedSource),
}

/// What is used in place of a stage or an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NamedSource {
    Scratch,
    Image(String),
    Files(ContextName),
}

/// The head of a stage, its variables expanded.
pub(crate) struct Head {
    pub(crate) base: Source,
    pub(crate) platform: Option<Platform>,
    /// Its name, or its number.
    pub(crate) label: String,
    /// Whether a build context takes its place, so that nothing of it is carried out.
    pub(crate) is_replaced: bool,
}

/// The stages of a Dockerfile and what they need.
pub(crate) struct Stages<'a> {
    request: &'a BuildRequest,
    pub(crate) heads: Vec<Head>,
    /// The build contexts that were asked for.
    asked: RefCell<BTreeSet<ContextName>>,
}

impl<'a> Stages<'a> {
    pub(crate) fn new(
        request: &'a BuildRequest,
        arguments: &Environment,
        linter: &Linter,
    ) -> Result<Stages<'a>, PlanError> {
        let mut stages = Stages { request, heads: Vec::new(), asked: RefCell::default() };
        for (index, stage) in request.dockerfile.stages.iter().enumerate() {
            linter.enter(&stage.comments);
            lint_head(request, stage, arguments, linter);
            let head = stages.head(index, stage, arguments)?;
            stages.heads.push(head);
        }
        Ok(stages)
    }

    fn head(&self, index: usize, stage: &Stage, arguments: &Environment) -> Result<Head, PlanError> {
        let at = |message: String| self.request.error_at(stage.span, message);
        let expanded = |word: &str| expand(&self.request.dockerfile, word, arguments);
        let base = expanded(&stage.base).map_err(|error| at(error.to_string()))?;
        if base.is_empty() {
            let error = at(format!("`FROM {}` names nothing: its variables are empty", stage.base));
            return Err(error.with_hint("give them values by `ARG NAME=value` before the first `FROM`"));
        }
        let platform = match &stage.platform {
            Some(word) => {
                let text = expanded(word).map_err(|error| at(error.to_string()))?;
                let platform = text.parse().map_err(|error| at(format!("`--platform={word}`: {error}")))?;
                Some(platform)
            }
            None => None,
        };
        let label = stage.name.clone().unwrap_or_else(|| index.to_string());
        if let Some(named) = stage.name.as_deref().and_then(|name| self.named(&name.to_ascii_lowercase())) {
            return Ok(Head { base: Source::Context(named), platform, label, is_replaced: true });
        }
        let earlier = self.request.dockerfile.stages[..index].iter().rposition(|other| is_called(other, &base));
        let base = match earlier {
            Some(earlier) => Source::Stage(earlier),
            None => self.elsewhere(&base),
        };
        Ok(Head { base, platform, label, is_replaced: false })
    }

    /// What a name means that is no stage's.
    fn elsewhere(&self, name: &str) -> Source {
        match self.named(name) {
            Some(named) => Source::Context(named),
            None if name == "scratch" => Source::Scratch,
            None => Source::Image(name.to_string()),
        }
    }

    /// The build context that is to be used for `name`.
    fn named(&self, name: &str) -> Option<NamedSource> {
        let name = ContextName::of(name)?;
        let named = match self.request.contexts.get(&name)? {
            NamedContext::Scratch => NamedSource::Scratch,
            NamedContext::Image(reference) => NamedSource::Image(reference.clone()),
            NamedContext::Files(_) => NamedSource::Files(name.clone()),
        };
        self.asked.borrow_mut().insert(name);
        Some(named)
    }

    /// A warning about build contexts that nothing in the Dockerfile asks for: most likely a typing error.
    pub(crate) fn unused_contexts(&self) -> Option<String> {
        let instructions = self.request.dockerfile.stages.iter().flat_map(|stage| &stage.instructions);
        // Of stages that are not needed, too. What is wrong in those is nobody's concern.
        instructions.for_each(|instruction| drop(self.needs_of(instruction)));
        let asked = self.asked.borrow();
        let unused = self.request.contexts.keys().filter(|name| !asked.contains(name));
        let names: Vec<String> = unused.map(|name| format!("`{name}`")).collect();
        let names = names.join(", ");
        (!names.is_empty()).then(|| format!("no `FROM` or `--from` asks for the build contexts {names}"))
    }

    /// The stage to build: by name, else by number, else the last one.
    pub(crate) fn target(&self) -> Result<usize, PlanError> {
        let all = &self.request.dockerfile.stages;
        match &self.request.target {
            Some(target) => self.called(target),
            None => all.len().checked_sub(1).ok_or_else(|| self.request.error("it has no stage: no `FROM`")),
        }
    }

    /// The stage that somebody calls `target`, by its name or its number.
    pub(crate) fn called(&self, target: &str) -> Result<usize, PlanError> {
        let all = &self.request.dockerfile.stages;
        let by_name = all.iter().rposition(|stage| is_called(stage, target));
        let by_number = || target.parse::<usize>().ok().filter(|number| *number < all.len());
        by_name.or_else(by_number).ok_or_else(|| {
            let labels: Vec<String> = self.heads.iter().map(|head| format!("`{}`", head.label)).collect();
            let error = self.request.error(format!("it has no stage `{target}`"));
            error.with_hint(format!("its stages are {}", labels.join(", ")))
        })
    }

    /// What `--from=name` means.
    pub(crate) fn copy_source(&self, name: &str, span: Span) -> Result<Source, PlanError> {
        if name.contains('$') {
            let error = self.request.error_at(span, format!("`from={name}`: no variables are expanded here"));
            return Err(error.with_hint("name a stage: `ARG NAME`, `FROM $NAME AS source`, `COPY --from=source …`"));
        }
        let all = &self.request.dockerfile.stages;
        if let Ok(number) = name.parse::<usize>() {
            let error = || self.request.error_at(span, format!("`from={name}`: there are {} stages", all.len()));
            return if number < all.len() { Ok(Source::Stage(number)) } else { Err(error()) };
        }
        Ok(match all.iter().rposition(|stage| is_called(stage, name)) {
            Some(stage) => Source::Stage(stage),
            None => self.elsewhere(name),
        })
    }

    /// The stages that `target` needs, itself last, each after those it needs.
    pub(crate) fn reachable(&self, target: usize) -> Result<Vec<usize>, PlanError> {
        enum Visit {
            Enter(usize, Span),
            Leave(usize),
        }
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let stages = &self.request.dockerfile.stages;
        let mut marks = vec![Mark::New; stages.len()];
        let mut order = Vec::new();
        // A stack of our own: the length of a chain of stages is up to the Dockerfile.
        let mut visits = vec![Visit::Enter(target, stages[target].span)];
        while let Some(visit) = visits.pop() {
            match visit {
                Visit::Enter(stage, span) if marks[stage] == Mark::Open => {
                    let label = &self.heads[stage].label;
                    return Err(self.request.error_at(span, format!("stage `{label}` needs itself")));
                }
                Visit::Enter(stage, _) if marks[stage] == Mark::Done => {}
                Visit::Enter(stage, _) => {
                    marks[stage] = Mark::Open;
                    visits.push(Visit::Leave(stage));
                    let mut needed = self.needs(stage)?;
                    needed.reverse();
                    visits.extend(needed.into_iter().map(|(stage, span)| Visit::Enter(stage, span)));
                }
                Visit::Leave(stage) => {
                    marks[stage] = Mark::Done;
                    order.push(stage);
                }
            }
        }
        Ok(order)
    }

    fn needs(&self, stage: usize) -> Result<Vec<(usize, Span)>, PlanError> {
        let mut needed = Vec::new();
        if self.heads[stage].is_replaced {
            return Ok(needed);
        }
        if let Source::Stage(base) = self.heads[stage].base {
            needed.push((base, self.request.dockerfile.stages[stage].span));
        }
        for instruction in &self.request.dockerfile.stages[stage].instructions {
            needed.extend(self.needs_of(instruction)?);
        }
        Ok(needed)
    }

    /// The stages that an instruction copies from or mounts.
    pub(crate) fn needs_of(&self, instruction: &Spanned<Instruction>) -> Result<Vec<(usize, Span)>, PlanError> {
        let froms: Vec<String> = match &instruction.value {
            Instruction::Copy(copy) => copy.from.iter().cloned().collect(),
            Instruction::Run(run) => run.flags_named("mount").filter_map(cfc_dockerfile::Mount::from_of).collect(),
            _ => Vec::new(),
        };
        let mut needed = Vec::new();
        for from in froms {
            if let Source::Stage(source) = self.copy_source(&from, instruction.span)? {
                needed.push((source, instruction.span));
            }
        }
        Ok(needed)
    }
}

fn is_called(stage: &Stage, name: &str) -> bool {
    stage.name.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(name))
}

/// What BuildKit has to say of a `FROM` and its variables.
fn lint_head(request: &BuildRequest, stage: &Stage, arguments: &Environment, linter: &Linter) {
    let escape = request.dockerfile.directives.escape;
    let expanded = |word: &str, known: &Environment| {
        let env = |name: &str| known.get(name).map(str::to_string);
        cfc_dockerfile::Expander::new(escape).expand(word, &env).ok()
    };
    let declared: Vec<&String> =
        request.dockerfile.global_args.iter().flat_map(|argument| &argument.value).map(|(name, _)| name).collect();
    let platform = stage.platform.as_deref().and_then(|word| Some((word, expanded(word, arguments)?)));
    let base = expanded(&stage.base, arguments);
    for unmatched in base.iter().chain(platform.iter().map(|(_, it)| it)).flat_map(|it| &it.unmatched) {
        if declared.contains(&unmatched) {
            continue;
        }
        let names = declared.iter().map(|name| name.as_str()).chain(arguments.names());
        let message = format!("FROM argument '{unmatched}' is not declared");
        let message = match cfc_dockerfile::nearest(unmatched, names) {
            Some(nearest) => format!("{message} (did you mean {nearest}?)"),
            None => message,
        };
        linter.warn(Rule::UNDEFINED_ARG_IN_FROM, stage.span, message);
    }
    if let Some((word, platform)) = platform {
        let only: Vec<&str> = platform.matched.iter().map(String::as_str).collect();
        if only == ["TARGETPLATFORM"] && arguments.get("TARGETPLATFORM") == Some(platform.text.as_str()) {
            let what = "in FROM is redundant as this is the default behavior";
            let message = format!("Setting platform to predefined {word} {what}");
            linter.warn(Rule::REDUNDANT_TARGET_PLATFORM, stage.span, message);
        }
        let is_constant = platform.matched.is_empty() && platform.unmatched.is_empty();
        let name = stage.name.as_deref().unwrap_or_default();
        if let Ok(parsed) = platform.text.parse::<Platform>()
            && is_constant
            && !name.contains(&parsed.os)
            && !name.contains(&parsed.architecture)
        {
            let message = format!("FROM --platform flag should not use constant value {:?}", platform.text);
            linter.warn(Rule::FROM_PLATFORM_FLAG_CONST_DISALLOWED, stage.span, message);
        }
    }
    let defaults = crate::arguments::defaults(request);
    let by_default = defaults.ok().and_then(|defaults| expanded(&stage.base, &defaults));
    if by_default.is_some_and(|base| cfc_oci::Reference::parse(&base.text).is_err()) {
        let message = format!("Default value for ARG {} results in empty or invalid base image name", stage.base);
        linter.warn(Rule::INVALID_DEFAULT_ARG_IN_FROM, stage.span, message);
    }
}
