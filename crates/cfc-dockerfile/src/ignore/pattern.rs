//! One pattern of a `.dockerignore`.

use super::regex::Regex;

/// A pattern, ready to match.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    cleaned: String,
    matcher: Matcher,
}

/// The cheap cases are told apart from the general one. Which case it is also decides what some odd patterns mean:
/// `**file` is the end of a path, `**fi?e` a name below some directory.
#[derive(Clone, Debug)]
enum Matcher {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Regex(Regex),
}

impl Pattern {
    /// The pattern that `text` says; `None` when its brackets or escapes are broken.
    pub(super) fn parse(text: &str) -> Option<Pattern> {
        let cleaned = clean(text);
        let cleaned = match cleaned.strip_prefix('/') {
            Some(relative) if !relative.is_empty() => relative.to_owned(),
            _ => cleaned,
        };
        if !has_valid_brackets(&cleaned) {
            return None;
        }
        Some(Pattern { matcher: Matcher::compile(&cleaned)?, cleaned })
    }

    /// Whether the pattern matches this path itself.
    pub(super) fn matches(&self, path: &str) -> bool {
        match &self.matcher {
            Matcher::Exact(name) => path == name,
            Matcher::Prefix(start) => path.starts_with(start.as_str()),
            Matcher::Suffix(end) => path.ends_with(end.as_str()) || end.strip_prefix('/') == Some(path),
            Matcher::Regex(regex) => regex.is_match(path),
        }
    }

    /// Whether the pattern may match some path below `directory`. Errs on the side of yes.
    pub(super) fn may_match_below(&self, directory: &str) -> bool {
        let mut parts = self.cleaned.split('/');
        for name in directory.split('/').filter(|name| !name.is_empty() && *name != ".") {
            let Some(part) = parts.next() else { return false };
            // These may match more than one part of a path, and `^` is nothing where the whole pattern has a wildcard.
            let may_span_parts = part.contains("**") || part.contains(['[', '\\', '^']);
            if may_span_parts {
                return true;
            }
            let fits = Pattern { cleaned: part.to_owned(), matcher: Matcher::compile(part).unwrap_or_default() };
            if !fits.matches(name) {
                return false;
            }
        }
        parts.next().is_some()
    }
}

impl Default for Matcher {
    fn default() -> Matcher {
        Matcher::Prefix(String::new())
    }
}

impl Matcher {
    fn compile(pattern: &str) -> Option<Matcher> {
        #[derive(PartialEq)]
        enum Shape {
            Exact,
            Prefix,
            Suffix,
            Regex,
        }
        let mut shape = Shape::Exact;
        let mut regex = String::from("^");
        let mut characters = pattern.chars().peekable();
        let mut is_first = true;
        while let Some(character) = characters.next() {
            match character {
                '*' if characters.next_if_eq(&'*').is_some() => {
                    characters.next_if_eq(&'/');
                    if characters.peek().is_some() {
                        regex.push_str("(.*/)?");
                        shape = Shape::Regex;
                    } else if shape == Shape::Exact {
                        shape = Shape::Prefix;
                    } else {
                        regex.push_str(".*");
                        shape = Shape::Regex;
                    }
                    if is_first {
                        shape = Shape::Suffix;
                    }
                }
                '*' => {
                    regex.push_str("[^/]*");
                    shape = Shape::Regex;
                }
                '?' => {
                    regex.push_str("[^/]");
                    shape = Shape::Regex;
                }
                '\\' => {
                    regex.push('\\');
                    regex.push(characters.next()?);
                    shape = Shape::Regex;
                }
                '[' | ']' => {
                    regex.push(character);
                    shape = Shape::Regex;
                }
                '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => {
                    regex.push('\\');
                    regex.push(character);
                }
                _ => regex.push(character),
            }
            is_first = false;
        }
        regex.push('$');
        Some(match shape {
            Shape::Exact => Matcher::Exact(pattern.to_owned()),
            Shape::Prefix => Matcher::Prefix(pattern.strip_suffix("**")?.to_owned()),
            Shape::Suffix => Matcher::Suffix(pattern.strip_prefix("**")?.to_owned()),
            Shape::Regex => Matcher::Regex(Regex::parse(&regex)?),
        })
    }
}

/// The shortest path that means the same: no `.`, no `//`, no `a/..`, no `/` at the end.
fn clean(path: &str) -> String {
    let is_rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if is_rooted => {}
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (is_rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Whether every `[` has its `]` with something between, no `-` without both ends, and no `\` stands last.
fn has_valid_brackets(pattern: &str) -> bool {
    let mut characters = pattern.chars().peekable();
    while let Some(character) = characters.next() {
        let is_valid = match character {
            '\\' => characters.next().is_some(),
            '[' => skip_class(&mut characters).is_some(),
            _ => true,
        };
        if !is_valid {
            return false;
        }
    }
    true
}

fn skip_class(characters: &mut std::iter::Peekable<std::str::Chars>) -> Option<()> {
    characters.next_if_eq(&'^');
    let mut n_ranges = 0;
    loop {
        if n_ranges > 0 && characters.next_if_eq(&']').is_some() {
            return Some(());
        }
        skip_bound(characters)?;
        if characters.next_if_eq(&'-').is_some() {
            skip_bound(characters)?;
        }
        n_ranges += 1;
    }
}

/// One end of a range. There must be something after it, at least the `]`.
fn skip_bound(characters: &mut std::iter::Peekable<std::str::Chars>) -> Option<()> {
    match characters.next()? {
        '-' | ']' => return None,
        '\\' => {
            characters.next()?;
        }
        _ => {}
    }
    characters.peek().map(|_| ())
}
