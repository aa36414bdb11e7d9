//! `$name` and `${name…}` with its modifiers.

use super::glob::Glob;
use super::lexer::{Lexed, Lexer};

impl Lexer<'_> {
    /// A reference, with the `$` still ahead.
    pub(super) fn dollar(&mut self) -> Lexed<String> {
        self.next();
        if self.peek() == Some('{') {
            self.next();
            return self.braced();
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".to_owned());
        }
        match self.lookup(&name) {
            Some(value) => Ok(value),
            None if self.options.keep_unset => Ok(format!("${name}")),
            None => Ok(String::new()),
        }
    }

    /// What follows `${`.
    fn braced(&mut self) -> Lexed<String> {
        match self.peek() {
            None => return Err(missing('}')),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".to_owned()),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            None => Err(unsupported("")),
            Some('}') => match self.lookup(&name) {
                Some(value) => Ok(value),
                None if self.options.keep_unset => Ok(format!("${{{name}}}")),
                None => Ok(String::new()),
            },
            Some(':') => match self.next() {
                None => Err(missing('}')),
                Some(modifier) => self.modified(&name, modifier, true),
            },
            Some(modifier @ ('+' | '-' | '?' | '#' | '%')) => self.modified(&name, modifier, false),
            Some('/') => self.replaced(&name),
            Some(other) => Err(unsupported(&other.to_string())),
        }
    }

    /// `${name-word}` and its kin. With `empty_is_unset` a colon stood before the modifier.
    fn modified(&mut self, name: &str, modifier: char, empty_is_unset: bool) -> Lexed<String> {
        let is_trim = matches!(modifier, '#' | '%');
        let word = self.operand('}', is_trim)?;
        let value = self.lookup(name);
        let colon = if empty_is_unset { ":" } else { "" };
        if value.is_none() && self.options.keep_unset {
            return Ok(format!("${{{name}{colon}{modifier}{word}}}"));
        }
        let given = value.as_ref().is_some_and(|value| !(empty_is_unset && value.is_empty()));
        match (modifier, value) {
            ('-', Some(value)) if given => Ok(value),
            ('-', _) => Ok(word),
            ('+', _) => Ok(if given { word } else { String::new() }),
            ('?', Some(value)) if given => Ok(value),
            ('?', value) => Err(refusal(name, value.is_some(), word)),
            ('#' | '%', value) => trimmed(modifier, &word, &value.unwrap_or_default()),
            _ => Err(unsupported(&format!("{colon}{modifier}"))),
        }
    }

    /// `${name/pattern/replacement}` and `${name//pattern/replacement}`.
    fn replaced(&mut self, name: &str) -> Lexed<String> {
        let everywhere = self.peek() == Some('/');
        if everywhere {
            self.next();
        }
        let pattern = self.operand('/', true)?;
        let replacement = self.operand('}', true)?;
        let Some(value) = self.lookup(name) else {
            let kept = format!("${{{name}/{pattern}/{replacement}}}");
            return Ok(if self.options.keep_unset { kept } else { replaced("", &pattern, &replacement, everywhere)? });
        };
        replaced(&value, &pattern, &replacement, everywhere)
    }

    /// The text up to `stop`, expanded.
    fn operand(&mut self, stop: char, keep_escapes: bool) -> Lexed<String> {
        let result = self.until_with_escapes(stop, keep_escapes);
        if result.is_err() && self.peek().is_none() { Err(missing(stop)) } else { result }
    }
}

fn trimmed(modifier: char, word: &str, value: &str) -> Lexed<String> {
    let (pattern, longest) = match word.strip_prefix(modifier) {
        Some(pattern) => (pattern, true),
        None => (word, false),
    };
    let glob = parse_glob(pattern)?;
    Ok(if modifier == '#' { glob.trim_start(value, longest) } else { glob.trim_end(value, longest) })
}

fn replaced(value: &str, pattern: &str, replacement: &str, everywhere: bool) -> Lexed<String> {
    let glob = parse_glob(pattern)?;
    Ok(if everywhere { glob.replace_all(value, replacement) } else { glob.replace_first(value, replacement) })
}

fn parse_glob(pattern: &str) -> Lexed<Glob> {
    Glob::parse(pattern).map_err(|message| format!("invalid pattern `{pattern}` in substitution: {message}"))
}

fn refusal(name: &str, is_set: bool, word: String) -> String {
    match (word.is_empty(), is_set) {
        (false, _) => format!("{name}: {word}"),
        (true, true) => format!("{name}: is not allowed to be empty"),
        (true, false) => format!("{name}: is not allowed to be unset"),
    }
}

fn missing(what: char) -> String {
    format!("syntax error: missing `{what}` in `${{…}}`")
}

fn unsupported(modifier: &str) -> String {
    format!("unsupported modifier `{modifier}` in substitution")
}
