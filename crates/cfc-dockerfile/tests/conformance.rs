//! Public suites of BuildKit and patternmatcher, read from `$CFC_CONFORMANCE_DIR`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cfc_dockerfile::{IgnoreFile, expand, expand_words, parser};

/// The folder of one suite; `None`, said aloud, where there is none.
fn suite(name: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("CFC_CONFORMANCE_DIR") else {
        eprintln!("skipped: no conformance data");
        return None;
    };
    Some(Path::new(&root).join(name))
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    folders.sort();
    assert!(!folders.is_empty(), "{} is empty", path.display());
    folders
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn every_good_dockerfile_has_the_tree_that_buildkit_gives() {
    let Some(suite) = suite("dockerfile-parser") else { return };
    for folder in folders(&suite.join("ok")) {
        let text = std::fs::read(folder.join("Dockerfile")).expect("a Dockerfile");
        let ast = parser::parse(&text);
        assert_eq!(ast.problems, [], "{}", folder.display());
        assert_eq!(ast.dump() + "\n", read(folder.join("result")), "{}", folder.display());
    }
}

#[test]
fn every_bad_dockerfile_is_refused() {
    let Some(suite) = suite("dockerfile-parser") else { return };
    for folder in folders(&suite.join("bad")) {
        let text = std::fs::read(folder.join("Dockerfile")).expect("a Dockerfile");
        assert_ne!(parser::parse(&text).problems, [], "{}", folder.display());
        assert!(cfc_dockerfile::parse(&text).is_err(), "{}", folder.display());
    }
}

#[test]
fn every_word_expands_as_in_buildkit() {
    let Some(suite) = suite("dockerfile-words") else { return };
    let env = |name: &str| match name {
        "PWD" => Some("/home".to_owned()),
        "SHELL" => Some("bash".to_owned()),
        "KOREAN" => Some("한국어".to_owned()),
        "NULL" => Some(String::new()),
        _ => None,
    };
    let mut n_checked = 0;
    for (number, line) in (1..).zip(read(suite.join("envVarTest")).lines()) {
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        let [platform @ ("A" | "U"), input, expected] = fields[..] else { continue };
        let result = expand(input, '\\', &env);
        match expected {
            "error" => assert!(result.is_err(), "line {number}: {platform} {input} gave {result:?}"),
            _ => assert_eq!(result.as_deref(), Ok(expected), "line {number}: {platform} {input}"),
        }
        n_checked += 1;
    }
    assert!(n_checked > 100, "only {n_checked} rows were found");
}

#[test]
fn every_text_splits_as_in_buildkit() {
    let Some(suite) = suite("dockerfile-words") else { return };
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    for (number, line) in (1..).zip(read(suite.join("wordsTest")).lines()) {
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        if let Some((name, value)) =
            line.strip_prefix("ENV ").and_then(|pair| pair.trim_start_matches(' ').split_once('='))
        {
            env.insert(name.to_owned(), value.to_owned());
            continue;
        }
        let (input, expected) = line.split_once('|').expect("one | in a line");
        let expected: Vec<&str> = expected.trim_start_matches(' ').split(',').collect();
        let result = expand_words(input.trim(), '\\', &|name| env.get(name).cloned());
        match expected[..] {
            ["error"] => assert!(result.is_err(), "line {number}: {input} gave {result:?}"),
            _ => assert_eq!(result.expect(input), expected, "line {number}: {input}"),
        }
    }
}

#[derive(serde::Deserialize)]
struct MatchRow {
    pattern: String,
    path: String,
    r#match: bool,
}

#[test]
fn every_pattern_matches_as_in_patternmatcher() {
    let Some(suite) = suite("dockerignore") else { return };
    let rows: Vec<MatchRow> = serde_json::from_str(&read(suite.join("matches.json"))).expect("rows");
    for MatchRow { pattern, path, r#match } in rows {
        let file = IgnoreFile::parse(pattern.as_bytes()).unwrap_or_else(|problem| panic!("{pattern}: {problem}"));
        assert_eq!(file.is_ignored(&path), r#match, "pattern {pattern}, path {path}");
    }
}
