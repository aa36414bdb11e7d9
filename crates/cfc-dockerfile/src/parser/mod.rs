//! Lines into nodes: BuildKit's tree, before anything is known about what an instruction means.
//!
//! Joins continuation lines, drops comments, reads directives and heredocs, and cuts each instruction's arguments
//! in the way its name asks for. [`Ast::dump`] is the form in which BuildKit's own suite compares trees.

mod arguments;
mod command;
mod directives;
mod heredoc;
mod json;
mod lines;
mod node;
mod reader;

pub use directives::Directives;
pub use heredoc::Heredoc;
pub use node::{Argument, Ast, Node};

/// Reads all lines of a Dockerfile. Never fails: what is wrong is in [`Ast::problems`], and the rest of the file is
/// read nevertheless.
pub fn parse(text: &[u8]) -> Ast {
    reader::Reader::new(text).run()
}
