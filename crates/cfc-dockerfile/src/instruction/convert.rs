//! Nodes into instructions: how many arguments each takes, and which flags.

use super::files::{add, copy};
use super::flags::{Flags, Kind, Known};
use super::healthcheck::healthcheck;
use super::{ArgInstruction, Command, Instruction, Mount, Run};
use crate::parser::{Argument, Node};
use crate::{Problem, ProblemKind, suggest};

/// All instructions, `FROM` among them.
const NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

const RUN_FLAGS: Known =
    &[("mount", Kind::Texts), ("network", Kind::Text), ("security", Kind::Text), ("device", Kind::Texts)];

/// A message about the arguments of an instruction.
pub(super) type Converted<T> = Result<T, String>;

/// The instruction that `node` says; what is wrong with it goes to `problems`. Not for `FROM`.
pub(crate) fn convert(node: &Node, problems: &mut Vec<Problem>) -> Option<Instruction> {
    let name = node.value.to_uppercase();
    let result = match name.as_str() {
        "ADD" => add(node, problems).map(Instruction::Add),
        "COPY" => copy(node, problems).map(Instruction::Copy),
        "RUN" => run(node, problems).map(Instruction::Run),
        "HEALTHCHECK" => healthcheck(node, problems).map(Instruction::Healthcheck),
        _ if NAMES.contains(&name.as_str()) => {
            Flags::read(node, &[], problems);
            without_flags(&name, node)
        }
        _ => {
            let problem = Problem::new(
                ProblemKind::UnknownInstruction,
                node.span,
                format!("unknown instruction: {}", node.value),
            );
            problems.push(match suggest::nearest(&name, NAMES) {
                Some(nearest) => problem.with_hint(format!("did you mean `{nearest}`?")),
                None => problem.with_hint("an instruction is one of ".to_owned() + &NAMES.join(", ")),
            });
            return None;
        }
    };
    match result {
        Ok(instruction) => Some(instruction),
        Err(message) => {
            problems.push(Problem::new(ProblemKind::Syntax, node.span, message));
            None
        }
    }
}

fn without_flags(name: &str, node: &Node) -> Converted<Instruction> {
    Ok(match name {
        "ARG" => Instruction::Arg(arg(node)?),
        "CMD" => Instruction::Cmd(command(node)),
        "ENTRYPOINT" => Instruction::Entrypoint(command(node)),
        "ENV" => Instruction::Env(pairs(name, node)?),
        "EXPOSE" => Instruction::Expose(sorted(at_least_one(name, node)?)),
        "LABEL" => Instruction::Label(pairs(name, node)?),
        "MAINTAINER" => Instruction::Maintainer(exactly_one(name, node)?),
        "ONBUILD" => Instruction::Onbuild(onbuild(node)?),
        "SHELL" => Instruction::Shell(shell(node)?),
        "STOPSIGNAL" => Instruction::StopSignal(exactly_one(name, node)?),
        "USER" => Instruction::User(exactly_one(name, node)?),
        "VOLUME" => Instruction::Volume(volume(node)?),
        "WORKDIR" => Instruction::Workdir(exactly_one(name, node)?),
        _ => return Err(format!("{name} may not stand here")),
    })
}

fn exactly_one(name: &str, node: &Node) -> Converted<String> {
    match at_least_one(name, node) {
        Ok(mut arguments) if arguments.len() == 1 => Ok(arguments.remove(0)),
        _ => Err(format!("{name} requires exactly one argument")),
    }
}

fn at_least_one(name: &str, node: &Node) -> Converted<Vec<String>> {
    let arguments: Vec<String> = node.words().map(str::to_owned).collect();
    if arguments.is_empty() { Err(format!("{name} requires at least one argument")) } else { Ok(arguments) }
}

/// Ports go into the history sorted.
fn sorted(mut ports: Vec<String>) -> Vec<String> {
    ports.sort();
    ports
}

/// `name value separator` three by three.
fn pairs(name: &str, node: &Node) -> Converted<Vec<(String, String)>> {
    let arguments = at_least_one(name, node)?;
    let mut pairs = Vec::new();
    for triple in arguments.chunks(3) {
        let [key, value, _] = triple else { return Err(format!("bad input to {name}, too many arguments")) };
        if key.is_empty() {
            return Err(blank_name(name));
        }
        pairs.push((key.clone(), value.clone()));
    }
    Ok(pairs)
}

fn arg(node: &Node) -> Converted<ArgInstruction> {
    let declare = |word: String| match word.split_once('=') {
        Some(("", _)) => Err(blank_name("ARG")),
        Some((name, default)) => Ok((name.to_owned(), Some(default.to_owned()))),
        None => Ok((word, None)),
    };
    at_least_one("ARG", node)?.into_iter().map(declare).collect()
}

fn blank_name(instruction: &str) -> String {
    format!("{instruction} names can not be blank")
}

/// `CMD`, `ENTRYPOINT` and the command of `RUN`.
fn command(node: &Node) -> Command {
    let words: Vec<String> = node.words().map(str::to_owned).collect();
    if node.is_json {
        Command::Exec(words)
    } else {
        Command::Shell { text: words.join(" "), heredocs: node.heredocs.clone() }
    }
}

fn run(node: &Node, problems: &mut Vec<Problem>) -> Converted<Run> {
    let run = Run { command: command(node), flags: Flags::read(node, RUN_FLAGS, problems).into_vec() };
    let values: [(&str, &[&str]); 2] =
        [("network", &["default", "none", "host"]), ("security", &["sandbox", "insecure"])];
    for (flag, allowed) in values {
        if let Some(value) = run.flags_named(flag).find(|value| !allowed.contains(value)) {
            let message = format!("invalid value for flag --{flag}: {value}");
            let hint = format!("write one of {}", allowed.join(", "));
            problems.push(Problem::new(ProblemKind::BadFlag, node.span, message).with_hint(hint));
        }
    }
    for error in run.flags_named("mount").filter_map(|text| Mount::check_unexpanded(text).err()) {
        let problem = Problem::new(ProblemKind::BadFlag, node.span, error.message);
        problems.push(Problem { hint: error.hint, ..problem });
    }
    Ok(run)
}

fn shell(node: &Node) -> Converted<Vec<String>> {
    let words = at_least_one("SHELL", node)?;
    if node.is_json { Ok(words) } else { Err("SHELL requires the arguments to be in JSON form".to_owned()) }
}

fn volume(node: &Node) -> Converted<Vec<String>> {
    let volumes: Vec<String> = at_least_one("VOLUME", node)?.iter().map(|path| path.trim().to_owned()).collect();
    let has_empty = volumes.iter().any(String::is_empty);
    if has_empty { Err("VOLUME specified can not be an empty string".to_owned()) } else { Ok(volumes) }
}

/// The text of the trigger, its heredoc bodies put behind it.
fn onbuild(node: &Node) -> Converted<String> {
    let Some(Argument::Instruction(trigger)) = node.arguments.first() else {
        return Err("ONBUILD requires at least one argument".to_owned());
    };
    match trigger.value.to_uppercase().as_str() {
        "ONBUILD" => return Err("chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".to_owned()),
        refused @ ("FROM" | "MAINTAINER") => return Err(format!("{refused} isn't allowed as an ONBUILD trigger")),
        _ => {}
    }
    let text = node.original.trim_start();
    let mut text = text.get("ONBUILD".len()..).unwrap_or_default().trim_start().to_owned();
    for heredoc in &node.heredocs {
        text += &format!("\n{}{}", heredoc.content, heredoc.name);
    }
    Ok(text)
}
