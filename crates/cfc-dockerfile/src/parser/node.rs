//! The tree: one node an instruction.

use std::fmt::Write as _;

use super::{Directives, Heredoc};
use crate::{Problem, Span};

/// All instructions of a file, and what is wrong with it at this level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ast {
    /// The instructions that could be read, in order.
    pub nodes: Vec<Node>,
    /// The `# key=value` lines at the top.
    pub directives: Directives,
    /// What makes the file unusable.
    pub problems: Vec<Problem>,
    /// What BuildKit only warns of: empty lines within an instruction.
    pub warnings: Vec<Problem>,
}

/// One instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The instruction's name as written.
    pub value: String,
    /// The words before the arguments that begin with `--`, quotes and escapes removed.
    pub flags: Vec<String>,
    /// What follows, cut as the instruction asks for, quotes and escapes kept.
    pub arguments: Vec<Argument>,
    /// The arguments are the items of a JSON array.
    pub is_json: bool,
    /// The here-documents of the instruction, in order.
    pub heredocs: Vec<Heredoc>,
    /// The text of the instruction, continuation lines joined.
    pub original: String,
    /// Its lines, heredoc bodies included.
    pub span: Span,
    /// The comment lines directly before it, without `#`.
    pub comments: Vec<String>,
}

/// One argument of an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A piece of text.
    Word(String),
    /// The instruction after `ONBUILD`.
    Instruction(Box<Node>),
}

impl Ast {
    /// The tree as s-expressions, one instruction a line, as BuildKit's dumper writes it.
    pub fn dump(&self) -> String {
        let lines: Vec<String> = self.nodes.iter().map(|node| format!("({})", node.dump())).collect();
        lines.join("\n")
    }
}

impl Node {
    /// The instruction's name in lower case.
    pub fn name(&self) -> String {
        self.value.to_lowercase()
    }

    /// The text arguments.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.arguments.iter().filter_map(|argument| match argument {
            Argument::Word(word) => Some(word.as_str()),
            Argument::Instruction(_) => None,
        })
    }

    /// The instruction that can have heredocs: this one, or the one after `ONBUILD`.
    pub(super) fn may_have_heredocs(&self) -> bool {
        match (self.name().as_str(), self.arguments.first()) {
            ("onbuild", Some(Argument::Instruction(inner))) => inner.takes_heredocs(),
            _ => self.takes_heredocs(),
        }
    }

    fn takes_heredocs(&self) -> bool {
        matches!(self.name().as_str(), "add" | "copy" | "run") && !self.is_json
    }

    fn dump(&self) -> String {
        let mut text = self.name();
        if !self.flags.is_empty() {
            let flags: Vec<String> = self.flags.iter().map(|flag| quoted(flag)).collect();
            let _ = write!(text, " [{}]", flags.join(" "));
        }
        for argument in &self.arguments {
            text.push(' ');
            match argument {
                Argument::Word(word) => text.push_str(&quoted(word)),
                Argument::Instruction(node) => {
                    let _ = write!(text, "({})", node.dump());
                }
            }
        }
        text.trim().to_owned()
    }
}

/// `text` in double quotes, as Go writes a string literal.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{b}' => quoted.push_str("\\v"),
            '\u{c}' => quoted.push_str("\\f"),
            ' '..='~' => quoted.push(character),
            _ if is_printable(character) => quoted.push(character),
            _ => {
                let code = u32::from(character);
                let _ = match code {
                    0..0x80 => write!(quoted, "\\x{code:02x}"),
                    0x80..0x1_0000 => write!(quoted, "\\u{code:04x}"),
                    _ => write!(quoted, "\\U{code:08x}"),
                };
            }
        }
    }
    quoted.push('"');
    quoted
}

fn is_printable(character: char) -> bool {
    let is_escaped = character.escape_debug().len() > 1;
    character.is_alphanumeric() || !(is_escaped || character.is_whitespace() || character.is_control())
}
