//! `.dockerignore`: which paths of a build context are left out.
//!
//! A pattern matches a path when it matches the path itself or a directory above it; of the patterns that match, the
//! last one decides, and one with `!` takes the path back in. The patterns are not those of Git: `*.log` means the
//! context's root only, `**/*.log` any depth.

mod pattern;
mod regex;

use pattern::Pattern;

use crate::{Problem, ProblemKind, Span};

/// The patterns of a `.dockerignore` file: the last one that matches a path, or a directory above it, decides.
#[derive(Clone, Debug, Default)]
pub struct IgnoreFile {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    pattern: Pattern,
    takes_back: bool,
    line: u32,
}

/// Which patterns matched a directory: saves asking again for what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectoryMatches(Vec<bool>);

impl IgnoreFile {
    /// Reads the file; the problem names the line of a pattern that is none.
    pub fn parse(text: &[u8]) -> Result<IgnoreFile, Problem> {
        let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
        let mut rules = Vec::new();
        for (number, line) in (1..).zip(text.split(|&b| b == b'\n')) {
            rules.extend(rule(line, number)?);
        }
        Ok(IgnoreFile { rules })
    }

    /// Whether nothing is ignored, whatever the path.
    pub fn is_empty(&self) -> bool {
        self.rules.iter().all(|rule| rule.takes_back)
    }

    /// Whether some pattern takes back in what others leave out.
    pub fn has_exceptions(&self) -> bool {
        self.rules.iter().any(|rule| rule.takes_back)
    }

    /// Whether `path` (relative to the context, `/` between parts) is left out, looking at its parents too. The root,
    /// `.`, never is.
    pub fn is_ignored(&self, path: &str) -> bool {
        self.deciding_line(path).is_some_and(|(is_ignored, _)| is_ignored)
    }

    /// The line of the file that leaves `path` out, for messages; `None` when it is not left out.
    pub fn ignored_by_line(&self, path: &str) -> Option<u32> {
        self.deciding_line(path).and_then(|(is_ignored, line)| is_ignored.then_some(line))
    }

    fn deciding_line(&self, path: &str) -> Option<(bool, u32)> {
        if path == "." || path.is_empty() {
            return None;
        }
        let parents = parents(path);
        let matches =
            |rule: &&Rule| rule.pattern.matches(path) || parents.iter().any(|parent| rule.pattern.matches(parent));
        self.rules.iter().rev().find(matches).map(|rule| (!rule.takes_back, rule.line))
    }

    /// The same as [`is_ignored`](Self::is_ignored) for walkers: `parent` is what this function gave for the
    /// directory of `path` (for what is in the root, `DirectoryMatches::default()`).
    pub fn is_ignored_below(&self, path: &str, parent: &DirectoryMatches) -> (bool, DirectoryMatches) {
        let mut is_ignored = false;
        let mut matches = Vec::with_capacity(self.rules.len());
        for (index, rule) in self.rules.iter().enumerate() {
            let matched = parent.0.get(index).copied().unwrap_or(false) || rule.pattern.matches(path);
            if matched {
                is_ignored = !rule.takes_back;
            }
            matches.push(matched);
        }
        (is_ignored, DirectoryMatches(matches))
    }

    /// Whether something below the ignored directory `directory` may be taken back in by a `!` pattern; when not, it
    /// need not be walked. May say yes where nothing is taken back in, never no where something is.
    pub fn may_contain_reincluded(&self, directory: &str) -> bool {
        self.rules.iter().any(|rule| rule.takes_back && rule.pattern.may_match_below(directory))
    }
}

/// The rule of a line; `None` for a comment or an empty line.
fn rule(line: &[u8], number: u32) -> Result<Option<Rule>, Problem> {
    let problem = |kind, message: String| Problem::new(kind, Span::line(number), message);
    let line = match std::str::from_utf8(line) {
        Ok(line) => line,
        Err(_) if line.starts_with(b"#") => return Ok(None),
        Err(_) => {
            let problem = problem(ProblemKind::Encoding, "the pattern is not UTF-8".to_owned());
            return Err(problem.with_hint("save the file as UTF-8"));
        }
    };
    let text = line.trim();
    // Only in the first column does `#` begin a comment.
    if line.starts_with('#') || text.is_empty() {
        return Ok(None);
    }
    let (text, takes_back) = match text.strip_prefix('!') {
        Some(text) => (text.trim(), true),
        None => (text, false),
    };
    if text.is_empty() {
        let problem = problem(ProblemKind::Syntax, "illegal exclusion pattern: `!`".to_owned());
        return Err(problem.with_hint("name the path to take back in: `!path`"));
    }
    match Pattern::parse(text) {
        Some(pattern) => Ok(Some(Rule { pattern, takes_back, line: number })),
        None => {
            let problem = problem(ProblemKind::Syntax, format!("syntax error in pattern `{text}`"));
            Err(problem.with_hint("a `[` needs its `]`, a range like `a-z` its order, a `\\` a character after it"))
        }
    }
}

/// The directories above `path`, topmost first. For a path that begins with `/`, the part before it, too.
fn parents(path: &str) -> Vec<&str> {
    path.match_indices('/').map(|(at, _)| if at == 0 { "" } else { &path[..at] }).collect()
}
