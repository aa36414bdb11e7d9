//! The walk over one text: quotes, escapes, and where `$` begins a reference. What follows `${` is in
//! [`super::substitution`].

use std::collections::BTreeSet;

use super::Expander;
use super::word_list::WordList;

/// Nested `${…}` deeper than this is refused: each level takes a stack frame.
const MAX_DEPTH: u32 = 100;

/// A text that references make longer than this many bytes is refused: forty lines of `ARG A=$A$A` would fill any memory.
/// Linux passes no longer argument or variable to a program.
pub(super) const MAX_LENGTH: usize = 128 << 10;

/// A result, or a message about the text.
pub(super) type Lexed<T> = Result<T, String>;

/// The state of one expansion.
pub(super) struct Lexer<'a> {
    pub(super) options: Expander,
    pub(super) matched: BTreeSet<String>,
    pub(super) unmatched: BTreeSet<String>,
    characters: Vec<char>,
    position: usize,
    keep_escapes: bool,
    depth: u32,
    env: &'a dyn Fn(&str) -> Option<String>,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(options: Expander, text: &str, env: &'a dyn Fn(&str) -> Option<String>) -> Lexer<'a> {
        Lexer {
            options,
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
            characters: text.chars().collect(),
            position: 0,
            keep_escapes: options.keep_escapes,
            depth: 0,
            env,
        }
    }

    /// Expands all of the text, giving it whole and as words.
    pub(super) fn run(&mut self) -> Lexed<(String, Vec<String>)> {
        self.until(None)
    }

    /// Expands up to `stop`, which is consumed, with escapes kept or not.
    pub(super) fn until_with_escapes(&mut self, stop: char, keep_escapes: bool) -> Lexed<String> {
        if self.depth >= MAX_DEPTH {
            return Err(format!("substitutions are nested deeper than {MAX_DEPTH} levels"));
        }
        self.depth += 1;
        let before = std::mem::replace(&mut self.keep_escapes, keep_escapes);
        let result = self.until(Some(stop));
        self.keep_escapes = before;
        self.depth -= 1;
        Ok(result?.0)
    }

    fn until(&mut self, stop: Option<char>) -> Lexed<(String, Vec<String>)> {
        let mut text = String::new();
        let mut words = WordList::default();
        while let Some(character) = self.peek() {
            if Some(character) == stop {
                self.next();
                return Ok((text, words.finish()));
            }
            match character {
                '$' => {
                    let value = self.dollar()?;
                    text.push_str(&value);
                    check_length(&text)?;
                    words.add_text(&value);
                }
                '\'' | '"' if !self.options.ignore_quotes => {
                    let quoted = if character == '"' { self.double_quoted()? } else { self.single_quoted()? };
                    text.push_str(&quoted);
                    words.add_protected_text(&quoted);
                }
                '<' => {
                    let opening = self.possible_heredoc();
                    text.push_str(&opening);
                    words.add_protected_text(&opening);
                }
                _ if character == self.options.escape => {
                    self.next();
                    if self.keep_escapes {
                        words.add_protected(character);
                        text.push(character);
                    }
                    // An escape with nothing after it is dropped.
                    let Some(escaped) = self.next() else { break };
                    words.add_protected(escaped);
                    text.push(escaped);
                }
                _ => {
                    self.next();
                    words.add(character);
                    text.push(character);
                }
            }
        }
        match stop {
            Some(stop) => Err(format!("unexpected end of statement while looking for matching `{stop}`")),
            None => Ok((text, words.finish())),
        }
    }

    /// Between single quotes everything is literal; nothing can be escaped.
    fn single_quoted(&mut self) -> Lexed<String> {
        let mut text = String::new();
        self.quote_mark(&mut text);
        loop {
            match self.peek() {
                None => return Err("unexpected end of statement while looking for matching single-quote".into()),
                Some('\'') => {
                    self.quote_mark(&mut text);
                    return Ok(text);
                }
                Some(character) => {
                    self.next();
                    text.push(character);
                }
            }
        }
    }

    /// Between double quotes references are expanded, and the escape protects only `"`, `$` and itself.
    fn double_quoted(&mut self) -> Lexed<String> {
        let mut text = String::new();
        self.quote_mark(&mut text);
        loop {
            match self.peek() {
                None => return Err("unexpected end of statement while looking for matching double-quote".into()),
                Some('"') => {
                    self.quote_mark(&mut text);
                    return Ok(text);
                }
                Some('$') => {
                    text.push_str(&self.dollar()?);
                    check_length(&text)?;
                }
                Some(character) if character == self.options.escape => {
                    self.next();
                    if self.keep_escapes {
                        text.push(character);
                    }
                    match self.peek() {
                        None => {}
                        Some(escaped) if escaped == '"' || escaped == '$' || escaped == self.options.escape => {
                            self.next();
                            text.push(escaped);
                        }
                        Some(_) => text.push(character),
                    }
                }
                Some(character) => {
                    self.next();
                    text.push(character);
                }
            }
        }
    }

    /// Consumes a quote, and keeps it where quotes are kept.
    fn quote_mark(&mut self, text: &mut String) {
        if let Some(quote) = self.next()
            && self.options.keep_quotes
        {
            text.push(quote);
        }
    }

    /// `<<` and the blanks after it stick to the word that follows: `<< EOF` names a heredoc.
    fn possible_heredoc(&mut self) -> String {
        self.next();
        let mut text = String::from("<");
        if self.peek() != Some('<') {
            return text;
        }
        self.next();
        text.push('<');
        while let Some(blank) = self.peek().filter(|c| matches!(c, ' ' | '\t' | '\r' | '\n')) {
            self.next();
            text.push(blank);
        }
        text
    }

    /// A name: letters, digits and `_`; or digits only; or one of the shell's special parameters.
    pub(super) fn name(&mut self) -> String {
        let mut name = String::new();
        match self.peek() {
            Some(digit) if digit.is_ascii_digit() => self.take_while(&mut name, |c| c.is_ascii_digit()),
            Some(special @ ('@' | '*' | '#' | '?' | '-' | '$' | '!')) => {
                self.next();
                name.push(special);
            }
            _ => self.take_while(&mut name, |c| c.is_alphabetic() || c.is_ascii_digit() || c == '_'),
        }
        name
    }

    fn take_while(&mut self, into: &mut String, belongs: impl Fn(char) -> bool) {
        while let Some(character) = self.peek().filter(|&c| belongs(c)) {
            self.next();
            into.push(character);
        }
    }

    /// The value of a variable; what was asked for is remembered.
    pub(super) fn lookup(&mut self, name: &str) -> Option<String> {
        let value = (self.env)(name);
        let seen = if value.is_some() { &mut self.matched } else { &mut self.unmatched };
        seen.insert(name.to_owned());
        value
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.characters.get(self.position).copied()
    }

    pub(super) fn next(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.position += 1;
        Some(character)
    }
}

fn check_length(text: &str) -> Lexed<()> {
    match text.len() > MAX_LENGTH {
        true => Err(format!("it becomes longer than {MAX_LENGTH} bytes")),
        false => Ok(()),
    }
}
