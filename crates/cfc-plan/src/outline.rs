//! [`Outline`]: what a build of a target can be given: arguments, secrets and ssh agents.

use cfc_dockerfile::{Instruction, Span, Spanned};

use crate::lint::{LintConfig, Linter};
use crate::lower::lower_with;
use crate::{BaseImages, BuildRequest, PlanError};

/// What a target takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// The target's name, where it has one.
    pub name: String,
    /// What the comment before it says.
    pub description: String,
    /// Build arguments, in the order of their lines.
    pub arguments: Vec<OutlineArgument>,
    /// Secrets, in the order of their lines.
    pub secrets: Vec<OutlineMount>,
    /// Agents, in the order of their lines.
    pub ssh: Vec<OutlineMount>,
}

/// A build argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlineArgument {
    /// Its name.
    pub name: String,
    /// What the comment before it says.
    pub description: String,
    /// What it is now; empty when it is not set.
    pub value: String,
    /// Where it is declared.
    pub span: Span,
}

/// A secret or an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlineMount {
    /// Its id.
    pub name: String,
    /// Whether the build fails without it.
    pub is_required: bool,
    /// Where it is asked for.
    pub span: Span,
}

/// What is seen while stages are lowered.
#[derive(Default)]
pub(crate) struct Capture {
    outline: Outline,
    /// Arguments of the whole file that a stage asks for.
    inherited: Vec<String>,
}

impl Capture {
    pub(crate) fn argument(
        &mut self,
        name: &str,
        value: Option<&str>,
        instruction: &Spanned<Instruction>,
        is_inherited: bool,
    ) {
        if is_inherited {
            self.inherited.push(name.to_string());
            return;
        }
        push_argument(&mut self.outline, name, value, instruction.span, &instruction.comments);
    }

    pub(crate) fn secret(&mut self, id: &str, is_required: bool, span: Span) {
        push_mount(&mut self.outline.secrets, id, is_required, span);
    }

    pub(crate) fn ssh(&mut self, id: &str, is_required: bool, span: Span) {
        push_mount(&mut self.outline.ssh, id, is_required, span);
    }
}

/// The outline of the target of `request`.
pub fn outline(request: &BuildRequest, bases: &dyn BaseImages) -> Result<Outline, PlanError> {
    let linter = Linter::new(LintConfig::default());
    let mut capture = Capture::default();
    lower_with(request, bases, &linter, false, &mut capture)?;
    let arguments = crate::arguments::global(request)?;
    let stages = crate::stages::Stages::new(request, &arguments, &linter)?;
    let target = stages.target()?;
    let mut outline = capture.outline;
    let used = used_in_heads(request, &stages.reachable(target)?);
    for declaration in &request.dockerfile.global_args {
        for (name, _) in &declaration.value {
            if capture.inherited.contains(name) || used.contains(name) {
                push_argument(&mut outline, name, arguments.get(name), declaration.span, &declaration.comments);
            }
        }
    }
    outline.arguments.sort_by_key(|argument| argument.span);
    outline.secrets.sort_by_key(|secret| secret.span);
    outline.ssh.sort_by_key(|agent| agent.span);
    let stage = &request.dockerfile.stages[target];
    outline.name = stage.name.clone().unwrap_or_default();
    outline.description = description(&stage.comments, &outline.name);
    Ok(outline)
}

/// The arguments that the `FROM` lines of `stages` ask for, and those that their defaults ask for in turn.
fn used_in_heads(request: &BuildRequest, stages: &[usize]) -> Vec<String> {
    let names = |word: &str| -> Vec<String> {
        let escape = request.dockerfile.directives.escape;
        let expansion = cfc_dockerfile::Expander::new(escape).expand(word, &|_| None);
        expansion.map(|expansion| expansion.unmatched.into_iter().collect()).unwrap_or_default()
    };
    let heads = stages.iter().map(|stage| &request.dockerfile.stages[*stage]);
    let mut used: Vec<String> = heads
        .flat_map(|stage| std::iter::once(stage.base.as_str()).chain(stage.platform.as_deref()))
        .flat_map(names)
        .collect();
    // A default can only ask for what is declared before it.
    for (name, default) in request.dockerfile.global_args.iter().rev().flat_map(|argument| argument.value.iter().rev())
    {
        if let Some(default) = default.as_ref().filter(|_| used.contains(name)) {
            used.extend(names(default));
        }
    }
    used
}

fn push_argument(outline: &mut Outline, name: &str, value: Option<&str>, span: Span, comments: &[String]) {
    if outline.arguments.iter().any(|known| known.name == name) {
        return;
    }
    outline.arguments.push(OutlineArgument {
        name: name.to_string(),
        description: description(comments, name),
        value: value.unwrap_or_default().to_string(),
        span,
    });
}

fn push_mount(mounts: &mut Vec<OutlineMount>, id: &str, is_required: bool, span: Span) {
    match mounts.iter_mut().find(|known| known.name == id) {
        Some(known) => known.is_required |= is_required,
        None => mounts.push(OutlineMount { name: id.to_string(), is_required, span }),
    }
}

/// The comment that begins with `name`, without it.
pub(crate) fn description(comments: &[String], name: &str) -> String {
    let named = comments.iter().filter(|_| !name.is_empty());
    let described = named.filter_map(|comment| comment.strip_prefix(name)?.strip_prefix(' '));
    described.map(str::to_string).next().unwrap_or_default()
}
