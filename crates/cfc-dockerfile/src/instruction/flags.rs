//! The `--name=value` words of an instruction, checked against what it knows.

use super::Flag;
use crate::parser::Node;
use crate::{Problem, ProblemKind, suggest};

/// What a flag takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing, `true` or `false`.
    Bool,
    /// One value.
    Text,
    /// A value, and may be repeated.
    Texts,
}

/// The flags an instruction knows.
pub(super) type Known = &'static [(&'static str, Kind)];

/// The flags an instruction has; the values of `Bool` flags are `true` or `false`.
#[derive(Default)]
pub(super) struct Flags(Vec<Flag>);

impl Flags {
    /// Reads the flags of `node`; what is wrong with them goes to `problems`.
    pub(super) fn read(node: &Node, known: Known, problems: &mut Vec<Problem>) -> Flags {
        let mut flags = Flags::default();
        for word in &node.flags {
            match flags.read_one(word, known) {
                Ok(flag) => flags.0.push(flag),
                Err((kind, message, hint)) => {
                    problems.push(Problem::new(kind, node.span, message).with_hint(hint));
                }
            }
        }
        flags
    }

    fn read_one(&self, word: &str, known: Known) -> Result<Flag, (ProblemKind, String, String)> {
        let (name, value) = match word[2..].split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (&word[2..], None),
        };
        let Some((_, kind)) = known.iter().find(|(known, _)| *known == name) else {
            let names: Vec<String> = known.iter().map(|(known, _)| format!("--{known}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let hint = suggest::hint(&format!("--{name}"), &names);
            return Err((ProblemKind::UnknownFlag, format!("unknown flag: --{name}"), hint));
        };
        let bad = |message: String, hint: String| Err((ProblemKind::BadFlag, message, hint));
        if *kind != Kind::Texts && self.text(name).is_some() {
            return bad(format!("duplicate flag specified: --{name}"), "give it once".to_owned());
        }
        let value = match (kind, value) {
            (Kind::Bool, None) => "true".to_owned(),
            (Kind::Bool, Some(value)) if matches!(value.to_lowercase().as_str(), "true" | "false") => {
                value.to_lowercase()
            }
            (Kind::Bool, Some("")) | (_, None) => {
                let hint = format!("write `--{name}=<value>`");
                return bad(format!("missing a value on flag: --{name}"), hint);
            }
            (Kind::Bool, Some(value)) => {
                let message = format!("expecting boolean value for flag --{name}, not: {value}");
                return bad(message, format!("write `--{name}`, `--{name}=true` or `--{name}=false`"));
            }
            (_, Some(value)) => value.to_owned(),
        };
        Ok(Flag { name: name.to_owned(), value })
    }

    /// The value of a flag, when it is given.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.0.iter().find(|flag| flag.name == name).map(|flag| flag.value.clone())
    }

    /// The values of a flag that may be repeated.
    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|flag| flag.name == name).map(|flag| flag.value.clone()).collect()
    }

    /// A flag that is true or false, when it is given.
    pub(super) fn bool(&self, name: &str) -> Option<bool> {
        self.text(name).map(|value| value == "true")
    }

    /// All flags in the order written.
    pub(super) fn into_vec(self) -> Vec<Flag> {
        self.0
    }
}
