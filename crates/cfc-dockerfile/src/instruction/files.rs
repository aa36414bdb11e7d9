//! `COPY` and `ADD`.

use super::convert::Converted;
use super::flags::{Flags, Kind, Known};
use super::{Add, Copy, Heredoc};
use crate::Problem;
use crate::parser::Node;

const COPY_FLAGS: Known = &[
    ("from", Kind::Text),
    ("chown", Kind::Text),
    ("chmod", Kind::Text),
    ("link", Kind::Bool),
    ("parents", Kind::Bool),
    ("exclude", Kind::Texts),
];

const ADD_FLAGS: Known = &[
    ("chown", Kind::Text),
    ("chmod", Kind::Text),
    ("link", Kind::Bool),
    ("exclude", Kind::Texts),
    ("checksum", Kind::Text),
    ("keep-git-dir", Kind::Bool),
    ("unpack", Kind::Bool),
];

pub(super) fn copy(node: &Node, problems: &mut Vec<Problem>) -> Converted<Copy> {
    let flags = Flags::read(node, COPY_FLAGS, problems);
    let Operands { sources, destination, heredocs } = operands("COPY", node)?;
    Ok(Copy {
        sources,
        destination,
        from: given(&flags, "from"),
        chown: given(&flags, "chown"),
        chmod: given(&flags, "chmod"),
        link: flags.bool("link").unwrap_or(false),
        parents: flags.bool("parents").unwrap_or(false),
        exclude: flags.texts("exclude"),
        heredocs,
    })
}

pub(super) fn add(node: &Node, problems: &mut Vec<Problem>) -> Converted<Add> {
    let flags = Flags::read(node, ADD_FLAGS, problems);
    let Operands { sources, destination, heredocs } = operands("ADD", node)?;
    Ok(Add {
        sources,
        destination,
        chown: given(&flags, "chown"),
        chmod: given(&flags, "chmod"),
        link: flags.bool("link").unwrap_or(false),
        exclude: flags.texts("exclude"),
        checksum: given(&flags, "checksum"),
        keep_git_dir: flags.bool("keep-git-dir"),
        unpack: flags.bool("unpack"),
        heredocs,
    })
}

/// An empty value (`--chown=`) is the same as none.
fn given(flags: &Flags, name: &str) -> Option<String> {
    flags.text(name).filter(|value| !value.is_empty())
}

struct Operands {
    sources: Vec<String>,
    destination: String,
    heredocs: Vec<Heredoc>,
}

/// Sources and destination; a source that opens a heredoc is a file whose content the Dockerfile has.
fn operands(name: &str, node: &Node) -> Converted<Operands> {
    let mut sources: Vec<String> = node.words().map(str::to_owned).collect();
    let destination = match sources.pop() {
        Some(destination) if !sources.is_empty() => destination,
        _ => {
            let missing = "but only one was provided: destination could not be determined";
            return Err(format!("{name} requires at least two arguments, {missing}"));
        }
    };
    if opened(&destination).is_some() {
        return Err(format!("{name} cannot accept a heredoc as a destination"));
    }
    let mut heredocs = Vec::new();
    sources.retain(|source| match opened(source) {
        Some(heredoc) => {
            let read = node.heredocs.iter().rev().find(|read| read.name == heredoc.name);
            heredocs.push(Heredoc { content: read.map(|read| read.content.clone()).unwrap_or_default(), ..heredoc });
            false
        }
        None => true,
    });
    Ok(Operands { sources, destination, heredocs })
}

fn opened(word: &str) -> Option<Heredoc> {
    Heredoc::parse(word).ok().flatten()
}
