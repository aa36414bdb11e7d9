//! The patterns of `${name#pattern}` and its kin: `*`, `?`, and `\` before one of them. No brackets.
//!
//! Neither `*` nor `?` matches an end of line: BuildKit's do not.

use super::lexer::MAX_LENGTH;

/// A parsed pattern.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Glob(Vec<Token>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Star,
    Any,
    Literal(char),
}

impl Glob {
    pub(super) fn parse(pattern: &str) -> Result<Glob, String> {
        let mut tokens = Vec::new();
        let mut characters = pattern.chars().peekable();
        while let Some(character) = characters.next() {
            tokens.push(match character {
                '*' => Token::Star,
                '?' => Token::Any,
                '\\' => match characters.next() {
                    // These two end the parts of a substitution, so they may be escaped there.
                    Some(literal @ ('}' | '/' | '*' | '?' | '\\')) => Token::Literal(literal),
                    Some(other) => return Err(format!("invalid escape `\\{other}`")),
                    None => return Err("an escape with nothing after it".to_owned()),
                },
                literal => Token::Literal(literal),
            });
        }
        Ok(Glob(tokens))
    }

    /// `value` without the shortest or longest start that matches.
    pub(super) fn trim_start(&self, value: &str, longest: bool) -> String {
        let characters: Vec<char> = value.chars().collect();
        let cut = end_of_match(&self.0, &characters, longest).unwrap_or(0);
        characters[cut..].iter().collect()
    }

    /// `value` without the shortest or longest end that matches.
    pub(super) fn trim_end(&self, value: &str, longest: bool) -> String {
        let tokens: Vec<Token> = self.0.iter().rev().copied().collect();
        let characters: Vec<char> = value.chars().rev().collect();
        let cut = end_of_match(&tokens, &characters, longest).unwrap_or(0);
        characters[cut..].iter().rev().collect()
    }

    /// `value` with the leftmost, longest match replaced by `replacement` as it stands.
    pub(super) fn replace_first(&self, value: &str, replacement: &str) -> String {
        let characters: Vec<char> = value.chars().collect();
        let Some((start, end)) = self.find(&characters, 0) else { return value.to_owned() };
        let before: String = characters[..start].iter().collect();
        let after: String = characters[end..].iter().collect();
        format!("{before}{replacement}{after}")
    }

    /// `value` with all matches replaced. `replacement` is a template as Go's regular expressions have it: `$0` is
    /// the match, `$$` a dollar, any other `$name` nothing.
    pub(super) fn replace_all(&self, value: &str, replacement: &str) -> String {
        let characters: Vec<char> = value.chars().collect();
        let mut result = String::new();
        let (mut copied, mut from) = (0, 0);
        // What is too long is refused by the caller; there is no need for all of it.
        while from <= characters.len() && result.len() <= MAX_LENGTH {
            let Some((start, end)) = self.find(&characters, from) else { break };
            result.extend(&characters[copied..start]);
            // An empty match right behind the previous one does not count.
            if end > copied || start == 0 {
                fill_template(&mut result, replacement, &characters[start..end]);
            }
            copied = end;
            from = end.max(from + 1);
        }
        result.extend(&characters[copied.min(characters.len())..]);
        result
    }

    fn find(&self, characters: &[char], from: usize) -> Option<(usize, usize)> {
        (from..=characters.len())
            .find_map(|start| end_of_match(&self.0, &characters[start..], true).map(|length| (start, start + length)))
    }
}

/// How many of the first characters match all tokens: the fewest, or the most.
fn end_of_match(tokens: &[Token], characters: &[char], longest: bool) -> Option<usize> {
    // The ends that the tokens so far can reach, in rising order.
    let mut ends = vec![0];
    for token in tokens {
        ends = match token {
            Token::Star => reach_of_star(&ends, characters),
            Token::Any => step(&ends, characters, |c| c != '\n'),
            Token::Literal(literal) => step(&ends, characters, |c| c == *literal),
        };
        if ends.is_empty() {
            return None;
        }
    }
    if longest { ends.last().copied() } else { ends.first().copied() }
}

fn step(ends: &[usize], characters: &[char], fits: impl Fn(char) -> bool) -> Vec<usize> {
    let fits_at = |&end: &usize| characters.get(end).is_some_and(|&c| fits(c));
    ends.iter().filter(|end| fits_at(end)).map(|end| end + 1).collect()
}

fn reach_of_star(ends: &[usize], characters: &[char]) -> Vec<usize> {
    let mut reached = Vec::new();
    let mut next = 0;
    for &end in ends {
        let is_covered = end < next;
        if is_covered {
            continue;
        }
        next = end;
        while next <= characters.len() {
            reached.push(next);
            next += 1;
            if characters.get(next - 1) == Some(&'\n') {
                break;
            }
        }
    }
    reached
}

fn fill_template(result: &mut String, template: &str, matched: &[char]) {
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = template_name(rest) {
            if name == "0" {
                result.extend(matched);
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
}

/// The name at the start of `text`, plain or in braces, and what follows it.
fn template_name(text: &str) -> Option<(&str, &str)> {
    let (inner, braced) = match text.strip_prefix('{') {
        Some(inner) => (inner, true),
        None => (text, false),
    };
    let length = inner.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(inner.len());
    let (name, after) = inner.split_at(length);
    let after = if braced { after.strip_prefix('}')? } else { after };
    (!name.is_empty()).then_some((name, after))
}
