//! The small part of Go's regular expressions that patterns are translated into.
//!
//! Patterns pass their brackets through untouched, so what `[…]` means is what it means there: `[^a]` matches `/`,
//! `\d` is a digit, `[[:alpha:]]` a letter. Knows `^`, `.`, `*`, `?`, groups, classes and escapes; the `$` at the end
//! is understood. Matching takes time in proportion to pattern and text.

use std::iter::Peekable;
use std::str::Chars;

/// A compiled expression that matches whole texts.
#[derive(Clone, Debug)]
pub(super) struct Regex {
    program: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    /// One character out of these, or none of these.
    One(Class),
    /// Only at the beginning of the text.
    Begin,
    /// Go on at both places.
    Both(usize, usize),
    /// Go on there.
    Jump(usize),
}

#[derive(Clone, Debug, Default)]
struct Class {
    ranges: Vec<(char, char)>,
    is_negated: bool,
}

impl Class {
    fn contains(&self, character: char) -> bool {
        self.ranges.iter().any(|&(low, high)| (low..=high).contains(&character)) != self.is_negated
    }

    fn single(character: char) -> Class {
        Class { ranges: vec![(character, character)], is_negated: false }
    }
}

impl Regex {
    /// `None` for what Go refuses, and for escapes that make no sense in a path.
    pub(super) fn parse(expression: &str) -> Option<Regex> {
        let mut parser = Parser { rest: expression.chars().peekable(), program: Vec::new() };
        parser.sequence(0)?;
        Some(Regex { program: parser.program })
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        let mut current = Places::new(self.program.len());
        self.enter(0, true, &mut current);
        for character in text.chars() {
            let mut next = Places::new(self.program.len());
            for &place in &current.list {
                if let Some(Step::One(class)) = self.program.get(place)
                    && class.contains(character)
                {
                    self.enter(place + 1, false, &mut next);
                }
            }
            current = next;
        }
        current.list.contains(&self.program.len())
    }

    /// Adds `place` and all that can be reached from it without a character.
    fn enter(&self, place: usize, is_at_begin: bool, places: &mut Places) {
        let mut pending = vec![place];
        while let Some(place) = pending.pop() {
            if std::mem::replace(&mut places.seen[place], true) {
                continue;
            }
            match self.program.get(place) {
                Some(Step::Both(first, second)) => pending.extend([*second, *first]),
                Some(Step::Jump(target)) => pending.push(*target),
                Some(Step::Begin) if is_at_begin => pending.push(place + 1),
                Some(Step::Begin) => {}
                Some(Step::One(_)) | None => places.list.push(place),
            }
        }
    }
}

/// Places in a program, each once.
struct Places {
    seen: Vec<bool>,
    list: Vec<usize>,
}

impl Places {
    fn new(program_length: usize) -> Places {
        Places { seen: vec![false; program_length + 1], list: Vec::new() }
    }
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    program: Vec<Step>,
}

impl Parser<'_> {
    /// Up to the end, or to the `)` of a group.
    fn sequence(&mut self, depth: u32) -> Option<()> {
        loop {
            let start = self.program.len();
            match self.rest.next() {
                None => return (depth == 0).then_some(()),
                Some(')') => return (depth > 0).then_some(()),
                Some('$') if self.rest.peek().is_none() => {}
                Some('$' | '*' | '?' | '+' | '|' | '{') => return None,
                Some('^') => self.program.push(Step::Begin),
                Some('(') => self.sequence(depth + 1)?,
                Some('.') => self.program.push(Step::One(Class { is_negated: true, ..Class::single('\n') })),
                Some('[') => {
                    let class = self.class()?;
                    self.program.push(Step::One(class));
                }
                Some('\\') => {
                    let ranges = self.escape()?;
                    self.program.push(Step::One(Class { ranges, is_negated: false }));
                }
                Some(literal) => self.program.push(Step::One(Class::single(literal))),
            }
            if self.rest.next_if_eq(&'*').is_some() {
                self.repeat(start);
            } else if self.rest.next_if_eq(&'?').is_some() {
                self.make_room(start);
                self.program[start] = Step::Both(start + 1, self.program.len());
            }
        }
    }

    /// Makes what begins at `start` repeat, or be left out.
    fn repeat(&mut self, start: usize) {
        self.make_room(start);
        self.program.push(Step::Jump(start));
        self.program[start] = Step::Both(start + 1, self.program.len());
    }

    /// Puts one step in before `start`; targets behind it move along.
    fn make_room(&mut self, start: usize) {
        self.program.insert(start, Step::Jump(start + 1));
        for step in &mut self.program[start + 1..] {
            match step {
                Step::Both(first, second) => {
                    *first += 1;
                    *second += 1;
                }
                Step::Jump(target) => *target += 1,
                Step::One(_) | Step::Begin => {}
            }
        }
    }

    /// What follows a `[`.
    fn class(&mut self) -> Option<Class> {
        let is_negated = self.rest.next_if_eq(&'^').is_some();
        let mut ranges = Vec::new();
        let mut is_first = true;
        loop {
            if !is_first && self.rest.next_if_eq(&']').is_some() {
                return Some(Class { ranges, is_negated });
            }
            is_first = false;
            if let Some(named) = self.named_class() {
                ranges.extend(named?);
                continue;
            }
            let low = match self.bound()? {
                Ok(low) => low,
                Err(several) => {
                    ranges.extend(several);
                    continue;
                }
            };
            let high = if self.is_range() {
                self.rest.next();
                self.bound()?.ok()?
            } else {
                low
            };
            if high < low {
                return None;
            }
            ranges.push((low, high));
        }
    }

    /// Whether a `-` follows that is not the last character of the class.
    fn is_range(&self) -> bool {
        let mut ahead = self.rest.clone();
        ahead.next() == Some('-') && ahead.next().is_some_and(|c| c != ']')
    }

    /// One character of a class, or the many that an escape like `\d` means.
    fn bound(&mut self) -> Option<Result<char, Vec<(char, char)>>> {
        match self.rest.next()? {
            '\\' => {
                let ranges = self.escape()?;
                Some(match ranges.as_slice() {
                    [(low, high)] if low == high => Ok(*low),
                    _ => Err(ranges),
                })
            }
            character => Some(Ok(character)),
        }
    }

    /// `[:alpha:]` within a class; the inner `None` for an unknown name.
    fn named_class(&mut self) -> Option<Option<Vec<(char, char)>>> {
        let text: String = self.rest.clone().collect();
        let (name, _) = text.strip_prefix("[:")?.split_once(":]")?;
        self.rest.nth(name.chars().count() + 3);
        let (name, is_negated) = match name.strip_prefix('^') {
            Some(name) => (name, true),
            None => (name, false),
        };
        let ranges = posix_class(name);
        Some(if is_negated { ranges.map(|ranges| complement(&ranges)) } else { ranges })
    }

    /// What follows a `\`.
    fn escape(&mut self) -> Option<Vec<(char, char)>> {
        let character = self.rest.next()?;
        let lower = match character.to_ascii_lowercase() {
            'd' => posix_class("digit"),
            'w' => posix_class("word"),
            's' => Some(vec![('\t', '\n'), ('\u{c}', '\r'), (' ', ' ')]),
            _ => None,
        };
        if let Some(ranges) = lower {
            return Some(if character.is_ascii_uppercase() { complement(&ranges) } else { ranges });
        }
        let literal = match character {
            'a' => '\u{7}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            _ if character.is_ascii() && !character.is_ascii_alphanumeric() => character,
            _ => return None,
        };
        Some(vec![(literal, literal)])
    }
}

fn posix_class(name: &str) -> Option<Vec<(char, char)>> {
    Some(match name {
        "alnum" => vec![('0', '9'), ('A', 'Z'), ('a', 'z')],
        "alpha" => vec![('A', 'Z'), ('a', 'z')],
        "ascii" => vec![('\0', '\u{7f}')],
        "blank" => vec![('\t', '\t'), (' ', ' ')],
        "cntrl" => vec![('\0', '\u{1f}'), ('\u{7f}', '\u{7f}')],
        "digit" => vec![('0', '9')],
        "graph" => vec![('!', '~')],
        "lower" => vec![('a', 'z')],
        "print" => vec![(' ', '~')],
        "punct" => vec![('!', '/'), (':', '@'), ('[', '`'), ('{', '~')],
        "space" => vec![('\t', '\r'), (' ', ' ')],
        "upper" => vec![('A', 'Z')],
        "word" => vec![('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
        "xdigit" => vec![('0', '9'), ('A', 'F'), ('a', 'f')],
        _ => return None,
    })
}

/// All characters outside `ranges`, which rise and lie in ASCII.
fn complement(ranges: &[(char, char)]) -> Vec<(char, char)> {
    let mut outside = Vec::new();
    let mut next = 0u8;
    for &(low, high) in ranges {
        let (low, high) = (low as u8, high as u8);
        if low > next {
            outside.push((char::from(next), char::from(low - 1)));
        }
        next = high + 1;
    }
    outside.push((char::from(next), char::MAX));
    outside
}
