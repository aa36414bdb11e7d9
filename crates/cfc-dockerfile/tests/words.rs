//! Word expansion beyond the public tables.

use cfc_dockerfile::{Expander, expand, expand_words};

/// Expands `word` with `NAME=value` pairs; the message of an error follows `error: `.
fn check(word: &str, variables: &[(&str, &str)], expected: &str) {
    let env = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    let result = expand(word, '\\', &env).unwrap_or_else(|error| format!("error: {}", error.message));
    assert_eq!(result, expected, "{word} with {variables:?}");
}

#[test]
fn defaults_tell_unset_from_empty() {
    let variables = [("FULL", "x"), ("EMPTY", "")];
    check("${FULL-d} ${EMPTY-d} ${UNSET-d}", &variables, "x  d");
    check("${FULL:-d} ${EMPTY:-d} ${UNSET:-d}", &variables, "x d d");
    check("${FULL+a} ${EMPTY+a} ${UNSET+a}", &variables, "a a ");
    check("${FULL:+a} ${EMPTY:+a} ${UNSET:+a}", &variables, "a  ");
    check("${FULL:-}${UNSET:-}", &variables, "x");
}

#[test]
fn a_demand_fails_with_its_own_message_or_a_default_one() {
    let variables = [("FULL", "x"), ("EMPTY", ""), ("WHY", "told")];
    check("${FULL:?no}", &variables, "x");
    check("${EMPTY?no}", &variables, "");
    check("${EMPTY:?be $WHY}", &variables, "error: EMPTY: be told");
    check("${EMPTY:?}", &variables, "error: EMPTY: is not allowed to be empty");
    check("${UNSET?}", &variables, "error: UNSET: is not allowed to be unset");
    check("${UNSET:?}", &variables, "error: UNSET: is not allowed to be unset");
}

#[test]
fn what_would_fill_the_memory_is_refused() {
    let mut value = "x".repeat(1000);
    let mut error = None;
    for word in ["$A$A", "\"$A$A\"", "${A//x/$A}"].iter().cycle().take(60) {
        match expand(word, '\\', &|_| Some(value.clone())) {
            Ok(longer) => value = longer,
            Err(refused) => error = Some(refused.to_string()),
        }
        assert!(value.len() <= 128 << 10, "{word} became {} bytes", value.len());
    }
    let error = error.unwrap_or_default();
    assert!(error.ends_with("it becomes longer than 131072 bytes"), "{error}");
}

#[test]
fn starts_and_ends_are_trimmed_shortest_or_longest() {
    let path = [("P", "/usr/share/doc/a.tar.gz")];
    check("${P#*/}", &path, "usr/share/doc/a.tar.gz");
    check("${P##*/}", &path, "a.tar.gz");
    check("${P%/*}", &path, "/usr/share/doc");
    check("${P%%/*}", &path, "");
    check("${P%.*}", &path, "/usr/share/doc/a.tar");
    check("${P%%.*}", &path, "/usr/share/doc/a");
    check("${P#nothing}", &path, "/usr/share/doc/a.tar.gz");
    check("${P#}${P%}", &[("P", "x")], "xx");
    check("${P:#*/}", &path, "usr/share/doc/a.tar.gz");
    check("${UNSET#*}", &[], "");
}

#[test]
fn patterns_know_stars_questions_and_escapes_and_no_brackets() {
    check(r"${V#?\?}", &[("V", "a?b")], "b");
    check(r"${V#\*}", &[("V", "*a")], "a");
    check(r"${V#[ab]}", &[("V", "a")], "a");
    check(r"${V#[ab]}", &[("V", "[ab]c")], "c");
    check(r"${V#\}}", &[("V", "}a")], "a");
    check(r"${V%한?}", &[("V", "x한국")], "x");
    check(r"${V##$Q}", &[("V", "aab"), ("Q", "a*a")], "b");
    check(r"${V#\x}", &[("V", "x")], r"error: invalid pattern `\x` in substitution: invalid escape `\x`");
}

#[test]
fn a_star_does_not_cross_lines() {
    check("${V#*b}", &[("V", "a\nb")], "a\nb");
    check("${V##*b}", &[("V", "abab\nb")], "\nb");
}

#[test]
fn replacements_are_of_the_first_or_of_all_matches() {
    check("${V/o/0} ${V//o/0}", &[("V", "foo")], "f0o f00");
    check("${V/o*/-}", &[("V", "foo")], "f-");
    check("${V//o/}", &[("V", "foo")], "f");
    check(r"${V//\//:}", &[("V", "/a/b")], ":a:b");
    check("${V/$N/$R}", &[("V", "http://x"), ("N", "http://"), ("R", "https://")], "https://x");
    check("${V///}", &[("V", "abc")], "abc");
    check("${V//*/x}", &[("V", "abc")], "x");
    check("${V//x/-}", &[("V", "abc")], "abc");
    check("${V//ab}", &[("V", "ab")], "error: syntax error: missing `/` in `${…}`");
    check("${V/a/b", &[("V", "ab")], "error: syntax error: missing `}` in `${…}`");
}

#[test]
fn words_of_modifiers_are_expanded_in_their_turn() {
    check("${A:-${B:-${C:-deep}}}", &[], "deep");
    check("${A:-'$B'}", &[("B", "x")], "$B");
    check(r"${A:-\}}", &[], "}");
    check("${T:+-${T}}", &[("T", "v7")], "-v7");
}

#[test]
fn what_is_no_reference_stays() {
    check("$", &[], "$");
    check("$.a$", &[], "$.a$");
    check("a$1b$@c", &[], "abc");
    check(r"\$A '$A'", &[("A", "x")], "$A $A");
}

#[test]
fn bad_substitutions_are_refused() {
    for word in ["${}", "${{A}}", "${:-x}", "${A=x}", "${A:=x}", "${A", "${A:", "${", "${A!}", "'a", "\"a", "${A:-'}"] {
        assert!(expand(word, '\\', &|_| None).is_err(), "{word}");
    }
}

#[test]
fn an_error_names_the_word() {
    let error = expand("x${}", '\\', &|_| None).expect_err("a bad substitution");
    assert_eq!(error.to_string(), "cannot expand `x${}`: syntax error: bad substitution");
}

#[test]
fn the_escape_character_is_the_one_of_the_directive() {
    let env = |_: &str| Some("v".to_owned());
    assert_eq!(expand(r"C:\dir\`$A\$A", '`', &env).as_deref(), Ok(r"C:\dir\$A\v"));
    assert_eq!(expand(r#""a`"b\t""#, '`', &env).as_deref(), Ok(r#"a"b\t"#));
}

#[test]
fn blanks_split_only_where_nothing_protects_them() {
    let env = |_: &str| Some(" a b ".to_owned());
    let words = |text| expand_words(text, '\\', &env).expect(text);
    assert_eq!(words("x$V y"), ["x", "a", "b", "y"]);
    assert_eq!(words("x\"$V\"y"), ["x a b y"]);
    assert_eq!(words(r"a\ b  'c d'"), ["a b", "c d"]);
    assert_eq!(words("\"\" a"), ["a"]);
    assert_eq!(words("8080 << x"), ["8080", "<< x"]);
}

#[test]
fn heredoc_bodies_keep_their_quotes() {
    let body = "it's \"$A\" \\$A\n";
    let expansion = Expander::for_heredoc('\\').expand(body, &|_| Some("v".into())).expect(body);
    assert_eq!(expansion.text, "it's \"v\" $A\n");
}

#[test]
fn unset_references_can_be_kept() {
    let keeping = Expander { keep_unset: true, ..Expander::new('\\') };
    for text in ["$A", "${A}", "${A:-x}", "${A#*}", "${A/b/c}"] {
        assert_eq!(keeping.expand(text, &|_| None).expect(text).text, text);
    }
}

#[test]
fn names_that_were_asked_for_are_told() {
    let env = |name: &str| (name == "A").then(String::new);
    let expansion = Expander::new('\\').expand("$A ${B:-$C}", &env).expect("an expansion");
    assert_eq!(expansion.matched.into_iter().collect::<Vec<_>>(), ["A"]);
    assert_eq!(expansion.unmatched.into_iter().collect::<Vec<_>>(), ["B", "C"]);
}

#[test]
fn nesting_has_an_end() {
    let word = "${A:-".repeat(10_000) + &"}".repeat(10_000);
    let error = expand(&word, '\\', &|_| None).expect_err("too deep");
    assert!(error.message.contains("nested"), "{}", error.message);
}
