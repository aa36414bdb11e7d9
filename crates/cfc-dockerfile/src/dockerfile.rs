//! The whole file: global arguments, then stages.

use crate::parser::{self, Node};
use crate::{ArgInstruction, Directives, Instruction, Problem, ProblemKind, Span, Spanned, instruction};

/// A parsed Dockerfile. All words are as written: unexpanded, quotes kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// The `# key=value` lines at the top.
    pub directives: Directives,
    /// `ARG`s before the first `FROM`: they count in `FROM` lines only.
    pub global_args: Vec<Spanned<ArgInstruction>>,
    /// At least one, in the order written.
    pub stages: Vec<Stage>,
    /// Instructions with an empty line in their middle, which counts as none for now.
    pub empty_continuations: Vec<Span>,
}

/// From one `FROM` to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The name after `AS`, lower-cased.
    pub name: Option<String>,
    /// What it builds on, unexpanded: an image, an earlier stage, or `scratch`.
    pub base: String,
    /// `--platform`, unexpanded.
    pub platform: Option<String>,
    /// The lines of the `FROM` itself.
    pub span: Span,
    /// The text of the `FROM` itself.
    pub original: String,
    /// The comment lines directly before it, without `#`.
    pub comments: Vec<String>,
    /// What follows the `FROM`.
    pub instructions: Vec<Spanned<Instruction>>,
}

/// Reads a Dockerfile, following BuildKit's rules. Gives the tree, or every problem found (at least one), in the
/// order of their lines.
pub fn parse(text: &[u8]) -> Result<Dockerfile, Vec<Problem>> {
    let ast = parser::parse(text);
    let mut builder = Builder { problems: ast.problems, global_args: Vec::new(), stages: Vec::new() };
    let empty_continuations = ast.warnings.iter().map(|warning| warning.span).collect();
    for node in &ast.nodes {
        builder.add(node);
    }
    builder.finish(ast.directives, empty_continuations)
}

/// Reads one instruction that stands alone, such as the trigger that an image's `ONBUILD` has left. Not for `FROM`.
pub fn parse_instruction(text: &str) -> Result<Spanned<Instruction>, Vec<Problem>> {
    let mut ast = parser::parse(text.as_bytes());
    if let [node] = ast.nodes.as_slice()
        && ast.problems.is_empty()
        && let Some(instruction) = instruction::convert(node, &mut ast.problems)
        && ast.problems.is_empty()
    {
        return Ok(spanned(instruction, node));
    }
    if ast.problems.is_empty() {
        ast.problems.push(Problem::new(ProblemKind::Syntax, Span::line(1), "expected a single instruction"));
    }
    Err(ast.problems)
}

struct Builder {
    problems: Vec<Problem>,
    global_args: Vec<Spanned<ArgInstruction>>,
    stages: Vec<Stage>,
}

impl Builder {
    fn add(&mut self, node: &Node) {
        if node.name() == "from" {
            self.stages.push(instruction::stage(node, &mut self.problems));
            return;
        }
        let Some(value) = instruction::convert(node, &mut self.problems) else { return };
        match (self.stages.last_mut(), value) {
            (Some(stage), value) => stage.instructions.push(spanned(value, node)),
            (None, Instruction::Arg(arg)) => self.global_args.push(spanned(arg, node)),
            (None, _) => {
                let message = format!("no build stage in current context: {} before FROM", node.value.to_uppercase());
                let problem = Problem::new(ProblemKind::Misplaced, node.span, message);
                self.problems.push(problem.with_hint("only `ARG` may stand before the first `FROM`"));
            }
        }
    }

    fn finish(mut self, directives: Directives, empty_continuations: Vec<Span>) -> Result<Dockerfile, Vec<Problem>> {
        if self.stages.is_empty() && self.problems.is_empty() {
            let last = self.global_args.last().map_or(Span::line(1), |arg| arg.span);
            let problem = Problem::new(ProblemKind::Empty, last, "dockerfile contains no stages to build");
            self.problems.push(problem.with_hint("begin a stage with `FROM <image>`"));
        }
        if self.problems.is_empty() {
            let (global_args, stages) = (self.global_args, self.stages);
            return Ok(Dockerfile { directives, global_args, stages, empty_continuations });
        }
        self.problems.sort_by_key(|problem| problem.span);
        Err(self.problems)
    }
}

fn spanned<T>(value: T, node: &Node) -> Spanned<T> {
    Spanned { value, span: node.span, original: node.original.trim().to_owned(), comments: node.comments.clone() }
}
