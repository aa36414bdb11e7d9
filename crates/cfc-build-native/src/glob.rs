//! Wildcards in the sources of `COPY`: Go's `filepath.Match`, part by part.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::failure::Result;
use crate::tree::{Last, Tree, resolve};

/// Whether `pattern` has a wildcard that no backslash protects.
pub(crate) fn has_wildcard(pattern: &str) -> bool {
    let mut bytes = pattern.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => return true,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
    false
}

/// The paths of `tree` that match `pattern`, sorted. A part with a wildcard is not matched through symbolic links.
pub(crate) fn expand(tree: &dyn Tree, pattern: &str) -> Result<Vec<PathBuf>> {
    let parts: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty()).collect();
    let first_wildcard = parts.iter().position(|part| has_wildcard(part)).unwrap_or(parts.len());
    let literal: PathBuf = Path::new("/").join(parts[..first_wildcard].join("/"));
    let mut matches = vec![resolve(tree, &literal, Last::Followed)?];
    for (index, part) in parts.iter().enumerate().skip(first_wildcard) {
        let is_last = index + 1 == parts.len();
        let mut next = Vec::new();
        for directory in matches {
            if !tree.lookup(&directory)?.is_some_and(|info| info.is_directory()) {
                continue;
            }
            for (name, info) in tree.list(&directory)? {
                if (is_last || info.is_directory()) && matches_name(part, &name) {
                    next.push(directory.join(name));
                }
            }
        }
        matches = next;
    }
    Ok(matches)
}

fn matches_name(pattern: &str, name: &OsString) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    // A byte that is no UTF-8 counts as one character, as in Go.
    let name: Vec<char> = String::from_utf8_lossy(name.as_bytes()).chars().collect();
    matches_all(&pattern, &name)
}

/// Backtracks to the last `*` only, so the time is bounded by the product of the lengths.
fn matches_all(pattern: &[char], name: &[char]) -> bool {
    let (mut at, mut done) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(at) {
            Some('*') => {
                retry = Some((at + 1, done));
                at += 1;
                continue;
            }
            Some(_) => name.get(done).and_then(|character| match_one(&pattern[at..], *character)),
            None if done == name.len() => return true,
            None => None,
        };
        match (step, retry) {
            (Some(length), _) => {
                at += length;
                done += 1;
            }
            (None, Some((after_star, start))) if start < name.len() => {
                retry = Some((after_star, start + 1));
                (at, done) = (after_star, start + 1);
            }
            (None, _) => return false,
        }
    }
}

/// How many characters of `pattern` match `character`; none when they do not, or the pattern is malformed.
fn match_one(pattern: &[char], character: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', escaped, ..] => (*escaped == character).then_some(2),
        ['[', rest @ ..] => match_class(rest, character).map(|length| length + 1),
        [literal, ..] => (*literal == character).then_some(1),
        [] => None,
    }
}

/// `abc]`, `a-z]`, `^abc]`: the part of a class after its `[`.
fn match_class(class: &[char], character: char) -> Option<usize> {
    let is_negated = class.first() == Some(&'^');
    let mut at = usize::from(is_negated);
    let mut is_in = false;
    let mut n_ranges = 0;
    loop {
        if class.get(at) == Some(&']') && n_ranges > 0 {
            return (is_in != is_negated).then_some(at + 1);
        }
        let low = class_character(class, &mut at)?;
        let mut high = low;
        if class.get(at) == Some(&'-') {
            at += 1;
            high = class_character(class, &mut at)?;
        }
        is_in |= (low..=high).contains(&character);
        n_ranges += 1;
    }
}

fn class_character(class: &[char], at: &mut usize) -> Option<char> {
    let character = match class.get(*at)? {
        '-' | ']' => return None,
        '\\' => {
            *at += 1;
            class.get(*at)?
        }
        character => character,
    };
    *at += 1;
    Some(*character)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_go() {
        let cases = [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("[a-ζ]*", "α", true),
            ("[\\]a]", "]", true),
            ("[\\-x]", "x", true),
            ("[]a]", "]", false),
            ("[x-]", "x", false),
            ("[", "a", false),
            ("*x", "xxx", true),
            ("[[]0].txt", "[0].txt", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(matches_name(pattern, &OsString::from(name)), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_backslash_takes_a_wildcard_its_meaning() {
        assert!(has_wildcard("a*") && has_wildcard("[a]") && !has_wildcard("a\\*b") && !has_wildcard("plain"));
    }
}
