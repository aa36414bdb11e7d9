//! Dockerfile and `.dockerignore` text into a spanned tree plus all its problems.
//!
//! Three layers over one text: [`parser`] knows lines, continuations, heredocs and each instruction's argument
//! shape; [`words`] expands variables inside one word; [`instruction`] holds the typed instructions that
//! [`parse`] gives. [`ignore`] decides which paths of a context are left out. Words stay unexpanded in the tree:
//! who lowers it knows the environment. Never does I/O. Used by the planner and the command line.

pub mod ignore;
pub mod instruction;
pub mod parser;
pub mod words;

mod dockerfile;
mod problem;
mod span;
mod suggest;

pub use dockerfile::{Dockerfile, Stage, parse, parse_instruction};
pub use ignore::{DirectoryMatches, IgnoreFile};
pub use instruction::{
    Add, ArgInstruction, Check, Command, Copy, Flag, Healthcheck, Heredoc, Instruction, Mount, MountError, MountKind,
    Run, Script, Sharing, parse_size,
};
pub use parser::Directives;
pub use problem::{Problem, ProblemKind};
pub use span::{Span, Spanned};
pub use suggest::nearest;
pub use words::{Expander, Expansion, WordError, expand, expand_words};
