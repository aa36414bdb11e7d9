//! `FROM`.

use super::flags::{Flags, Kind, Known};
use crate::parser::Node;
use crate::{Problem, ProblemKind, Stage};

const FLAGS: Known = &[("platform", Kind::Text)];

/// The stage that a `FROM` begins, with no instructions yet. There is one even where something is wrong with it, so
/// that what follows is not taken for misplaced.
pub(crate) fn stage(node: &Node, problems: &mut Vec<Problem>) -> Stage {
    let flags = Flags::read(node, FLAGS, problems);
    let words: Vec<&str> = node.words().collect();
    let name = stage_name(&words).unwrap_or_else(|message| {
        problems.push(Problem::new(ProblemKind::Syntax, node.span, message));
        None
    });
    Stage {
        name,
        base: words.first().map(|base| base.to_string()).unwrap_or_default(),
        platform: flags.text("platform").filter(|platform| !platform.is_empty()),
        span: node.span,
        original: node.original.trim().to_owned(),
        comments: node.comments.clone(),
        instructions: Vec::new(),
    }
}

/// The name after `AS`, in lower case.
fn stage_name(words: &[&str]) -> Result<Option<String>, String> {
    match words {
        [_] => Ok(None),
        [_, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
            let lower = name.to_lowercase();
            let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
            if lower.starts_with(|c: char| c.is_ascii_lowercase()) && lower.chars().all(is_allowed) {
                return Ok(Some(lower));
            }
            let rule = "name can't start with a number or contain symbols";
            Err(format!("invalid name for build stage: `{name}`, {rule}"))
        }
        _ => Err("FROM requires either one or three arguments".to_owned()),
    }
}
