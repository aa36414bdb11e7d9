//! Random text never makes the crate panic, and some promises hold for all of it.
//!
//! Each run prints its seed; `CFC_TEST_SEED=<seed>` repeats it.

use std::time::{SystemTime, UNIX_EPOCH};

use cfc_dockerfile::{DirectoryMatches, IgnoreFile, Mount, expand, parse, parse_instruction, parser};

/// Xorshift: enough to vary texts.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
        let seed = match std::env::var("CFC_TEST_SEED") {
            Ok(seed) => seed.parse().expect("CFC_TEST_SEED to be a number"),
            Err(_) => now.as_nanos() as u64 | 1,
        };
        eprintln!("CFC_TEST_SEED={seed}");
        Random(seed)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    /// Up to `most` of the pieces, one behind the other.
    fn text(&mut self, pieces: &[&str], most: usize) -> String {
        let n_pieces = self.below(most + 1);
        (0..n_pieces).map(|_| pieces[self.below(pieces.len())]).collect()
    }
}

const LINES: [&str; 60] = [
    "FROM ",
    "RUN ",
    "COPY ",
    "ADD ",
    "ENV ",
    "ARG ",
    "LABEL ",
    "ONBUILD ",
    "HEALTHCHECK ",
    "VOLUME ",
    "SHELL ",
    "CMD ",
    "EXPOSE ",
    "a",
    "b=c",
    "--x",
    "--from=a ",
    "--mount=",
    "type=cache,",
    "target=/t",
    "--interval=1s ",
    " AS ",
    "\\",
    "\\\n",
    "`",
    "`\n",
    "\n",
    "\n",
    "\n",
    "\r\n",
    "# ",
    "# escape=`\n",
    "# syntax=x",
    "\"",
    "'",
    "[",
    "]",
    "\"a\"",
    ", ",
    "{",
    "}",
    "$",
    "${",
    "A",
    ":-",
    "<<E",
    "<<-'E' ",
    "<<",
    "E\n",
    "\nE\n",
    "\tE\n",
    " ",
    "\t",
    "\u{a0}",
    "é",
    "한",
    "\u{feff}",
    "\\ud800",
    "3<<",
    "NONE",
];

#[test]
fn no_dockerfile_makes_the_parser_panic() {
    let mut random = Random::new();
    for _ in 0..4_000 {
        let mut text = random.text(&LINES, 40).into_bytes();
        if random.below(8) == 0 {
            let at = random.below(text.len() + 1);
            text.insert(at, 0xff);
        }
        let n_lines = text.split(|&b| b == b'\n').count() as u32;
        let ast = parser::parse(&text);
        ast.dump();
        for span in ast.nodes.iter().map(|node| node.span).chain(ast.problems.iter().map(|problem| problem.span)) {
            let is_within = 1 <= span.start_line && span.start_line <= span.end_line && span.end_line <= n_lines;
            assert!(is_within, "{span} of {n_lines} lines: {:?}", String::from_utf8_lossy(&text));
        }
        match parse(&text) {
            Ok(file) => assert!(!file.stages.is_empty()),
            Err(problems) => assert!(!problems.is_empty()),
        }
        let _ = parse_instruction(&String::from_utf8_lossy(&text));
        let _ = Mount::parse(&random.text(&LINES, 6), &|word| expand(word, '\\', &|_| None));
    }
}

#[test]
fn no_word_makes_the_expansion_panic() {
    let pieces = [
        "$", "${", "}", "A", "B", "1", ":", "-", "+", "?", "#", "##", "%", "%%", "/", "//", "*", "\\", "\"", "'", " ",
        "é", "\n", "<<", "<", "`", "x",
    ];
    let mut random = Random::new();
    for _ in 0..20_000 {
        let word = random.text(&pieces, 14);
        let value = random.text(&["a", "b", "/", "*", "\\", "é", "\n", " ", "$0", "x"], 8);
        for escape in ['\\', '`'] {
            let _ = expand(&word, escape, &|name| (name == "A").then(|| value.clone()));
        }
    }
}

/// A file of a few patterns, most of them sound.
fn patterns(random: &mut Random) -> String {
    let pieces = ["a", "b", "ab", "*", "**", "?", "[^a]", "[a-b]", "\\a", "[", "]", "\\", "-", "^", ".", " ", "é", "!"];
    let mut text = String::from(["", "*\n", "a\n"][random.below(3)]);
    for _ in 0..=random.below(3) {
        text += ["", "!", "!", "# "][random.below(4)];
        let n_parts = 1 + random.below(3);
        let parts: Vec<String> = (0..n_parts).map(|_| random.text(&pieces, 2)).collect();
        text += &(parts.join("/") + "\n");
    }
    text
}

#[test]
fn walks_of_a_context_see_what_single_questions_see() {
    let names = ["a", "b", "ab", "é", "a.b"];
    let mut random = Random::new();
    let mut n_files = 0;
    while n_files < 20_000 {
        let text = patterns(&mut random);
        let Ok(file) = IgnoreFile::parse(text.as_bytes()) else { continue };
        n_files += 1;
        let n_parts = 1 + random.below(4);
        let parts: Vec<&str> = (0..n_parts).map(|_| names[random.below(names.len())]).collect();
        let mut matches = DirectoryMatches::default();
        let mut skipped_at = None;
        for end in 1..=parts.len() {
            let path = parts[..end].join("/");
            let (is_ignored, below) = file.is_ignored_below(&path, &matches);
            matches = below;
            assert_eq!(is_ignored, file.is_ignored(&path), "{path:?} with {text:?}");
            if let Some(directory) = &skipped_at {
                assert!(is_ignored, "{path:?} comes back below {directory:?}, which was not walked, with {text:?}");
            } else if is_ignored && !file.may_contain_reincluded(&path) {
                skipped_at = Some(path);
            }
        }
    }
}

/// What a pattern means, as the documentation says it and as slowly as it can be done.
fn matches_naively(pattern: &[u8], path: &[u8]) -> bool {
    if pattern == b"**" {
        return true;
    }
    if let Some(rest) = pattern.strip_prefix(b"**/") {
        let mut below = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[at + 1..]);
        return matches_naively(rest, path) || below.any(|below| matches_naively(rest, below));
    }
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), next) => {
            let goes_on = next.is_some_and(|(byte, after)| *byte != b'/' && matches_naively(pattern, after));
            matches_naively(rest, path) || goes_on
        }
        (Some((b'?', rest)), Some((byte, after))) => *byte != b'/' && matches_naively(rest, after),
        (Some((expected, rest)), Some((byte, after))) => expected == byte && matches_naively(rest, after),
        _ => false,
    }
}

/// The last line decides that matches the path or a directory above it.
fn is_ignored_naively(text: &str, path: &str) -> bool {
    let above = || path.match_indices('/').map(|(at, _)| &path[..at]).chain([path]);
    let mut is_ignored = false;
    for line in text.lines() {
        let (pattern, takes_back) = line.strip_prefix('!').map_or((line, false), |pattern| (pattern, true));
        let pattern = pattern.trim_matches('/').as_bytes();
        if !pattern.is_empty() && above().any(|path| matches_naively(pattern, path.as_bytes())) {
            is_ignored = !takes_back;
        }
    }
    is_ignored
}

#[test]
fn ignore_files_mean_what_a_naive_matcher_says() {
    const PARTS: [&str; 12] = ["a", "b", "ab", "a*", "*b", "*", "?", "a?", "**", "a.b", "*.b", "*a*"];
    const NAMES: [&str; 8] = ["a", "b", "ab", "ba", "a.b", "b.b", "aab", "ab.a"];
    let mut random = Random::new();
    for _ in 0..3000 {
        let mut text = String::new();
        for _ in 0..=random.below(4) {
            let parts: Vec<&str> = (0..=random.below(3)).map(|_| PARTS[random.below(PARTS.len())]).collect();
            let around = |random: &mut Random, what: &'static str| if random.below(4) == 0 { what } else { "" };
            let (not, before) = (around(&mut random, "!"), around(&mut random, "/"));
            text += &format!("{not}{before}{}{}\n", parts.join("/"), around(&mut random, "/"));
        }
        let Ok(file) = IgnoreFile::parse(text.as_bytes()) else { panic!("{text:?} is refused") };
        for _ in 0..8 {
            let parts: Vec<&str> = (0..=random.below(4)).map(|_| NAMES[random.below(NAMES.len())]).collect();
            let path = parts.join("/");
            let is_ignored = file.is_ignored(&path);
            assert_eq!(is_ignored, is_ignored_naively(&text, &path), "{path} with {text:?}");
            // Whoever walks must not stop above what is taken back in.
            for (at, _) in path.match_indices('/') {
                let stops = file.is_ignored(&path[..at]) && !file.may_contain_reincluded(&path[..at]);
                assert!(is_ignored || !stops, "{path} is below {} with {text:?}", &path[..at]);
            }
        }
    }
}
