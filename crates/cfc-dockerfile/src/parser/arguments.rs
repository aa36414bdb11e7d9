//! The arguments of one instruction, cut in the way its name asks for.

use super::command::BLANKS;
use super::json::{Array, parse_array};
use super::node::Argument;

/// Arguments, and whether they are the items of a JSON array.
type Cut = (Vec<Argument>, bool);

/// Cuts `text` as the instruction `name` (in lower case) asks for. What an unknown instruction has is not looked at.
pub(super) fn cut(name: &str, text: &str, escape: char) -> Result<Cut, String> {
    match name {
        "run" | "cmd" | "entrypoint" | "shell" => array_or_text(text),
        "add" | "copy" | "volume" => array_or_words(text),
        "from" | "expose" => Ok((words(text), false)),
        "user" | "workdir" | "stopsignal" | "maintainer" => Ok((whole(text), false)),
        "arg" => Ok((quoted_words(text, escape).into_iter().map(Argument::Word).collect(), false)),
        "env" | "label" => Ok((pairs(name, text, escape)?, false)),
        "healthcheck" => healthcheck(text),
        _ => Ok((vec![word("")], false)),
    }
}

fn word(text: impl Into<String>) -> Argument {
    Argument::Word(text.into())
}

/// The whole text as one argument; none when it is empty.
fn whole(text: &str) -> Vec<Argument> {
    if text.is_empty() { Vec::new() } else { vec![word(text)] }
}

/// Parted by blanks, whatever the quotes.
fn words(text: &str) -> Vec<Argument> {
    text.split(BLANKS).filter(|part| !part.is_empty()).map(word).collect()
}

fn array_or_text(text: &str) -> Result<Cut, String> {
    Ok(array(text)?.unwrap_or_else(|| (whole(text), false)))
}

fn array_or_words(text: &str) -> Result<Cut, String> {
    Ok(array(text)?.unwrap_or_else(|| (words(text), false)))
}

/// The items of a JSON array of strings; `None` when the text is no JSON array at all, which is no error.
fn array(text: &str) -> Result<Option<Cut>, String> {
    match parse_array(text) {
        Array::Strings(items) => Ok(Some((items.into_iter().map(Argument::Word).collect(), true))),
        Array::Other => Err("when using JSON array syntax, arrays must be comprised of strings only".to_owned()),
        Array::None => Ok(None),
    }
}

/// A type (`NONE`, `CMD`), then an array or text.
fn healthcheck(text: &str) -> Result<Cut, String> {
    let Some((kind, rest)) = text.split_once(char::is_whitespace) else { return Ok((whole(text), false)) };
    let (mut arguments, is_json) = array_or_text(rest.trim_start())?;
    arguments.insert(0, word(kind));
    Ok((arguments, is_json))
}

/// `name=value …`, or the old `name text`. Each pair is three arguments: name, value, and `=` or nothing.
fn pairs(name: &str, text: &str, escape: char) -> Result<Vec<Argument>, String> {
    let words = quoted_words(text, escape);
    let Some(first) = words.first() else { return Ok(Vec::new()) };
    if !first.contains('=') {
        let Some((key, value)) = text.split_once(BLANKS) else {
            return Err(format!("{} must have two arguments", name.to_uppercase()));
        };
        return Ok(vec![word(key), word(value.trim_start_matches(BLANKS)), word("")]);
    }
    let mut arguments = Vec::new();
    for pair in &words {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(format!("can't find = in `{pair}`; must be of the form: name=value"));
        };
        arguments.extend([word(key), word(value), word("=")]);
    }
    Ok(arguments)
}

/// Parted by blanks outside quotes and escapes, which stay in the words.
pub(super) fn quoted_words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut current: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if quote.is_none() && character.is_whitespace() {
            words.extend(current.take().filter(|word| !word.is_empty()));
            continue;
        }
        let current = current.get_or_insert_default();
        match quote {
            None if matches!(character, '\'' | '"') => quote = Some(character),
            Some(open) if character == open => quote = None,
            _ => {}
        }
        if character == escape && quote != Some('\'') {
            // An escape at the end of the text is dropped.
            let Some(escaped) = characters.next() else { continue };
            current.push(character);
            current.push(escaped);
        } else {
            current.push(character);
        }
    }
    words.extend(current.filter(|word| !word.is_empty()));
    words
}
