//! `.dockerignore` beyond the public table.

use cfc_dockerfile::{DirectoryMatches, IgnoreFile};

fn file(text: &str) -> IgnoreFile {
    IgnoreFile::parse(text.as_bytes()).unwrap_or_else(|problem| panic!("{text:?}: {problem}"))
}

/// Whether the path is ignored, asked for at once and in the way a walk asks.
fn is_ignored(text: &str, path: &str) -> bool {
    let file = file(text);
    let whole = file.is_ignored(path);
    let mut parent = DirectoryMatches::default();
    let mut walked = false;
    for end in path.match_indices('/').map(|(at, _)| at).chain([path.len()]) {
        (walked, parent) = file.is_ignored_below(&path[..end], &parent);
    }
    assert_eq!(whole, walked, "{path} at once and in a walk, with {text:?}");
    whole
}

#[test]
fn the_last_match_wins() {
    assert!(!is_ignored("*.go\n!main.go", "main.go"));
    assert!(is_ignored("!main.go\n*.go", "main.go"));
    assert!(is_ignored("**\n!web\nweb/secret", "web/secret"));
    assert!(!is_ignored("**\n!web\nweb/secret", "web/open"));
}

#[test]
fn what_matches_a_directory_matches_what_is_in_it() {
    assert!(is_ignored("docs", "docs/a/b"));
    assert!(is_ignored("docs/", "docs/a"));
    assert!(!is_ignored("docs\n!docs/README.md", "docs/README.md"));
    assert!(is_ignored("docs\n!docs/README.md", "docs/other"));
    assert!(is_ignored("**/node_modules", "a/b/node_modules/c/d"));
    assert!(!is_ignored("a/**", "a"));
    assert!(is_ignored("a*\n!ab/f\nab", "ab/f"));
}

#[test]
fn patterns_without_slash_mean_the_root_only() {
    assert!(is_ignored("*.log", "a.log"));
    assert!(!is_ignored("*.log", "b/a.log"));
    assert!(is_ignored("**/*.log", "b/a.log"));
}

#[test]
fn patterns_are_cleaned() {
    assert!(is_ignored("  ./a//b/../c  ", "a/c"));
    assert!(is_ignored("/a", "a"));
    assert!(!is_ignored("*\n! /a/ ", "a/b"));
    assert!(is_ignored("\u{feff}a\r\nb\r\n", "a"));
    assert!(is_ignored("\u{feff}a\r\nb\r\n", "b"));
}

#[test]
fn a_hash_begins_a_comment_in_the_first_column_only() {
    assert!(file("# a\n\n   \n").is_empty());
    assert!(is_ignored(" #a", "#a"));
    assert!(is_ignored("\\#a", "#a"));
    assert!(is_ignored("\\!a", "!a"));
}

#[test]
fn the_root_is_never_ignored() {
    assert!(!file("*\n**\n.").is_ignored("."));
}

#[test]
fn brackets_are_those_of_go() {
    assert!(is_ignored("[a-c]x", "bx"));
    assert!(!is_ignored("[a-c]x", "dx"));
    assert!(is_ignored("[^a]x", "dx"));
    assert!(is_ignored("a[^x]b", "a/b"), "a negated class matches a slash");
    assert!(is_ignored("[[:digit:]]*", "7up"));
    assert!(!is_ignored("[[:^digit:]]*", "7up"));
    assert!(is_ignored("v\\d", "v1"));
    assert!(is_ignored("v\\*", "v*"));
    assert!(!is_ignored("v\\*", "vx"));
    assert!(is_ignored("[α-ω]", "β"));
}

#[test]
fn broken_patterns_are_problems_of_their_line() {
    for text in ["[", "[]a]", "[a-]", "[-a]", "a[", "[^", "\\", "[z-a]", "!", "! ", "\\c", "[Local-Only]/"] {
        let problem = IgnoreFile::parse(format!("ok\n{text}").as_bytes()).expect_err(text);
        assert_eq!(problem.span.start_line, 2, "{text}");
        assert!(problem.hint.is_some(), "{text}");
    }
    assert!(IgnoreFile::parse(b"a\xe9").is_err());
    assert!(IgnoreFile::parse(b"# a\xe9").is_ok());
}

#[test]
fn the_deciding_line_is_told() {
    let file = file("# all\n*\n!src\nsrc/*.tmp");
    assert_eq!(file.ignored_by_line("other"), Some(2));
    assert_eq!(file.ignored_by_line("src/a.tmp"), Some(4));
    assert_eq!(file.ignored_by_line("src/a.rs"), None);
}

#[test]
fn directories_are_walked_only_where_something_may_come_back() {
    let may = |text: &str, directory: &str| file(text).may_contain_reincluded(directory);
    assert!(!may("*", "a"));
    assert!(may("*\n!a/b", "a"));
    assert!(!may("*\n!a/b", "c"));
    assert!(!may("*\n!a/b", "a/c"));
    assert!(!may("*\n!a/b", "a/b/c"), "the pattern already decided about `a/b`");
    assert!(may("*\n!*/b", "anything"));
    assert!(may("*\n!**/b", "a/c/d"));
    assert!(!may("node_modules\n!src", "node_modules"));
    assert!(may("*\n!a[^x]b/c", "z"), "brackets may span a slash");
    assert!(may("*\n!^a/b*", "a"), "`^` is an anchor in a pattern with a wildcard");
}
