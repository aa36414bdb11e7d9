//! What can be told from the text alone, for all stages, whether they are built or not.

use std::collections::HashSet;

use cfc_dockerfile::{Dockerfile, Instruction, Span, Stage};

use super::{Linter, Rule};

const RESERVED: [&str; 2] = ["context", "scratch"];

pub(crate) fn check_syntax(dockerfile: &Dockerfile, linter: &Linter) {
    linter.enter(&[]);
    for span in &dockerfile.empty_continuations {
        linter.warn(Rule::NO_EMPTY_CONTINUATION, *span, "Empty continuation line".to_string());
    }
    let mut seen = HashSet::new();
    for stage in &dockerfile.stages {
        linter.enter(&stage.comments);
        stage_head(stage, linter);
        if let Some(name) = &stage.name
            && !seen.insert(name)
        {
            let message = format!("Duplicate stage name {name:?}, stage names should be unique");
            linter.warn(Rule::DUPLICATE_STAGE_NAME, stage.span, message);
        }
        for instruction in &stage.instructions {
            linter.enter(&instruction.comments);
            if let Instruction::Maintainer(_) = instruction.value {
                let message = "Maintainer instruction is deprecated in favor of using label".to_string();
                linter.warn(Rule::MAINTAINER_DEPRECATED, instruction.span, message);
            }
        }
    }
    casing(dockerfile, linter);
    descriptions(dockerfile, linter);
}

fn stage_head(stage: &Stage, linter: &Linter) {
    let words: Vec<&str> = stage.original.split_whitespace().filter(|word| !word.starts_with("--")).collect();
    let [from, _, keyword, name] = words[..] else { return };
    if name != name.to_lowercase() {
        let message = format!("Stage name '{name}' should be lowercase");
        linter.warn(Rule::STAGE_NAME_CASING, stage.span, message);
    }
    let is_consistent = is_self_consistent(from);
    let is_same = (from == from.to_lowercase()) == (keyword == keyword.to_lowercase()) && is_self_consistent(keyword);
    if is_consistent && !is_same {
        let message = format!("'{keyword}' and '{from}' keywords' casing do not match");
        linter.warn(Rule::FROM_AS_CASING, stage.span, message);
    }
    if RESERVED.contains(&name.to_lowercase().as_str()) {
        let name = name.to_lowercase();
        let message = format!("Stage name should not use the same name as reserved stage {name:?}");
        linter.warn(Rule::RESERVED_STAGE_NAME, stage.span, message);
    }
}

/// All instructions should be written as most of them are.
fn casing(dockerfile: &Dockerfile, linter: &Linter) {
    let words = |stage: &Stage| -> Vec<(String, Span, Vec<String>)> {
        let head = (first_word(&stage.original), stage.span, stage.comments.clone());
        let rest = stage.instructions.iter();
        let rest = rest.map(|spanned| (first_word(&spanned.original), spanned.span, spanned.comments.clone()));
        std::iter::once(head).chain(rest).collect()
    };
    let all: Vec<_> = dockerfile.stages.iter().flat_map(words).collect();
    let consistent = || all.iter().map(|(word, ..)| word).filter(|word| is_self_consistent(word));
    let n_lower = consistent().filter(|word| **word == word.to_lowercase()).count();
    let n_upper = consistent().count() - n_lower;
    let (wanted, is_right): (_, fn(&str) -> bool) = if n_lower > n_upper {
        ("lowercase", |word| word == word.to_lowercase())
    } else {
        ("uppercase", |word| word == word.to_uppercase())
    };
    for (word, span, comments) in all.iter().filter(|(word, ..)| !is_right(word)) {
        linter.enter(comments);
        let message = format!("Command '{word}' should match the case of the command majority ({wanted})");
        linter.warn(Rule::CONSISTENT_INSTRUCTION_CASING, *span, message);
    }
}

/// A comment before a stage or a global argument describes it, and begins with its name.
fn descriptions(dockerfile: &Dockerfile, linter: &Linter) {
    let warn = |what: &str, name: &str, span: Span| {
        let message = format!("Comment for {what} should follow the format: `# {name} <description>`");
        linter.warn(Rule::INVALID_DEFINITION_DESCRIPTION, span, message);
    };
    let is_fine = |comments: &[String], name: &str| {
        comments.last().is_none_or(|comment| comment.split(' ').next() == Some(name) || comment.starts_with("check="))
    };
    for argument in &dockerfile.global_args {
        linter.enter(&argument.comments);
        if let [(name, _)] = argument.value.as_slice()
            && !is_fine(&argument.comments, name)
        {
            warn("ARG", name, argument.span);
        }
    }
    for stage in &dockerfile.stages {
        linter.enter(&stage.comments);
        if let Some(name) = &stage.name
            && !is_fine(&stage.comments, name)
        {
            warn("FROM", name, stage.span);
        }
    }
}

fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_string()
}

fn is_self_consistent(word: &str) -> bool {
    word == word.to_lowercase() || word == word.to_uppercase()
}
