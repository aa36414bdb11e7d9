//! The whole file: global arguments, then stages.

use crate::{ArgInstruction, Directives, Instruction, Problem, Span, Spanned};

/// A parsed Dockerfile. All words are as written: unexpanded, quotes kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// The `# key=value` lines at the top.
    pub directives: Directives,
    /// `ARG`s before the first `FROM`: they count in `FROM` lines only.
    pub global_args: Vec<Spanned<ArgInstruction>>,
    /// At least one, in the order written.
    pub stages: Vec<Stage>,
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
    /// What follows the `FROM`.
    pub instructions: Vec<Spanned<Instruction>>,
}

/// Reads a Dockerfile, following BuildKit's rules. Gives the tree, or every problem found (at least one), in the
/// order of their lines.
pub fn parse(text: &[u8]) -> Result<Dockerfile, Vec<Problem>> {
    let _ = text;
    todo!()
}
