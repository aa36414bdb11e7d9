//! Variables, quotes and escapes of one word: `${name:-default}`.
//!
//! Knows `$name`, `${name}`, and in braces the modifiers `:-` `-` `:+` `+` `:?` `?` `#` `##` `%` `%%` `/` `//`. The
//! word of a modifier is expanded in its turn. Where the variables come from is the caller's business.

mod glob;
mod lexer;
mod substitution;
mod word_list;

use std::collections::BTreeSet;

use lexer::Lexer;

/// How to expand; [`expand`] and [`expand_words`] serve the usual case.
#[derive(Clone, Copy, Debug)]
pub struct Expander {
    /// The escape character of the file's directives.
    pub escape: char,
    /// Quotes stay in the result (they still group).
    pub keep_quotes: bool,
    /// Escapes stay in the result (they still escape).
    pub keep_escapes: bool,
    /// Quotes are ordinary characters: what heredoc bodies want.
    pub ignore_quotes: bool,
    /// A reference to an unset variable stays as it is written.
    pub keep_unset: bool,
}

/// What became of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The text as one word, its blanks kept.
    pub text: String,
    /// The text split at blanks that neither quotes nor escapes protect.
    pub words: Vec<String>,
    /// Names that were asked for and set.
    pub matched: BTreeSet<String>,
    /// Names that were asked for and not set.
    pub unmatched: BTreeSet<String>,
}

/// Why a word cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot expand `{word}`: {message}")]
pub struct WordError {
    /// The word as written.
    pub word: String,
    /// What is wrong with it.
    pub message: String,
}

impl Expander {
    /// The usual expansion: quotes and escapes are removed, unset variables are empty.
    pub fn new(escape: char) -> Expander {
        Expander { escape, keep_quotes: false, keep_escapes: false, ignore_quotes: false, keep_unset: false }
    }

    /// The expansion of heredoc bodies: quotes are data.
    pub fn for_heredoc(escape: char) -> Expander {
        Expander { ignore_quotes: true, ..Expander::new(escape) }
    }

    /// Expands `word` with the variables that `env` knows.
    pub fn expand(&self, word: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Expansion, WordError> {
        let mut lexer = Lexer::new(*self, word, env);
        match lexer.run() {
            Ok((text, words)) => Ok(Expansion { text, words, matched: lexer.matched, unmatched: lexer.unmatched }),
            Err(message) => Err(WordError { word: word.to_owned(), message }),
        }
    }
}

/// Expands one word: variables replaced, quotes and escapes removed, blanks kept. BuildKit's `ProcessWord`.
pub fn expand(word: &str, escape: char, env: &dyn Fn(&str) -> Option<String>) -> Result<String, WordError> {
    Ok(Expander::new(escape).expand(word, env)?.text)
}

/// Expands and splits at unprotected blanks. BuildKit's `ProcessWords`.
pub fn expand_words(word: &str, escape: char, env: &dyn Fn(&str) -> Option<String>) -> Result<Vec<String>, WordError> {
    Ok(Expander::new(escape).expand(word, env)?.words)
}
