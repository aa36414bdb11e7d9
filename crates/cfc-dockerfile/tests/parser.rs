//! Lines, directives and heredocs beyond the public suite.

use cfc_dockerfile::parser::{Ast, Node, parse};
use cfc_dockerfile::{Heredoc, ProblemKind, Span};

fn tree(text: &str) -> Ast {
    let ast = parse(text.as_bytes());
    assert_eq!(ast.problems, [], "{text}");
    ast
}

fn dump(text: &str) -> String {
    tree(text).dump()
}

fn only(text: &str) -> Node {
    let mut ast = tree(text);
    assert_eq!(ast.nodes.len(), 1, "{text}");
    ast.nodes.remove(0)
}

/// The kind, the lines and the message of every problem.
fn problems(text: &[u8]) -> Vec<(ProblemKind, Span, String)> {
    parse(text).problems.into_iter().map(|problem| (problem.kind, problem.span, problem.message)).collect()
}

#[test]
fn continuation_lines_are_joined_with_their_blanks() {
    assert_eq!(dump("RUN a \\\n    b\\\nc"), r#"(run "a     bc")"#);
    assert_eq!(dump("RUN a \\  \t\n b"), r#"(run "a  b")"#);
    assert_eq!(dump("RUN a \\\r\n b\r\n"), r#"(run "a  b")"#);
    assert_eq!(dump("RUN a \\\\\nRUN b"), "(run \"a \\\\\\\\\")\n(run \"b\")");
    assert_eq!(dump("RUN a \\"), r#"(run "a")"#);
    assert_eq!(dump("# escape=`\nRUN a\\ `\n b `c"), r#"(run "a\\  b `c")"#);
}

#[test]
fn comments_and_empty_lines_within_an_instruction_do_not_count() {
    let ast = tree("RUN a \\\n# no\n   # no\n\n  b\n");
    assert_eq!(ast.dump(), r#"(run "a   b")"#);
    assert_eq!(ast.warnings.len(), 1);
    assert_eq!(ast.warnings[0].span, Span::new(1, 5));
}

#[test]
fn a_hash_within_a_line_is_data() {
    assert_eq!(dump("RUN echo # a"), r##"(run "echo # a")"##);
}

#[test]
fn spans_are_lines_from_the_first_to_the_last() {
    let ast = tree("\u{feff}# c\n\nFROM a\nRUN b \\\n  c\n\nRUN <<EOF\nx\nEOF\nUSER d\n");
    let spans: Vec<Span> = ast.nodes.iter().map(|node| node.span).collect();
    assert_eq!(spans, [Span::line(3), Span::new(4, 5), Span::new(7, 9), Span::line(10)]);
}

#[test]
fn directives_count_at_the_very_top_only() {
    let directives = |text: &str| parse(text.as_bytes()).directives;
    let all = directives("# SYNTAX = docker/dockerfile:1 more\n#escape=`\n# check=skip=all;error=true \nFROM a");
    assert_eq!(all.syntax.as_deref(), Some("docker/dockerfile:1"));
    assert_eq!(all.escape, '`');
    assert_eq!(all.check.as_deref(), Some("skip=all;error=true"));
    assert_eq!(directives("\n# escape=`\nFROM a").escape, '\\');
    assert_eq!(directives("# a comment\n# escape=`\nFROM a").escape, '\\');
    assert_eq!(directives("# other=x\n# escape=`\nFROM a").escape, '\\');
    assert_eq!(directives("FROM a\n# escape=`").escape, '\\');
}

#[test]
fn a_shebang_line_hides_only_the_escape_directive() {
    let directives = parse(b"#!/usr/bin/env x\n# syntax=s\n# escape=`\nFROM a").directives;
    assert_eq!((directives.syntax.as_deref(), directives.escape), (Some("s"), '\\'));
}

#[test]
fn bad_directives_are_problems_of_their_line() {
    let twice = problems(b"# escape=\\\n# escape=`\nFROM a");
    let message = "only one escape parser directive can be used".to_owned();
    assert_eq!(twice, [(ProblemKind::BadDirective, Span::line(2), message)]);
    assert_eq!(problems(b"# escape=x\nFROM a")[0].0, ProblemKind::BadDirective);
}

#[test]
fn flags_lose_their_quotes_and_end_at_the_first_other_word() {
    assert_eq!(only("COPY --a='x y' --b=\"c\\\"d\" -- --e f").flags, ["--a=x y", "--b=c\"d"]);
    assert_eq!(dump("COPY --a --b=ü x --c"), r#"(copy ["--a" "--b=ü"] "x" "--c")"#);
    assert_eq!(dump("RUN -x --y"), r#"(run "-x --y")"#);
    assert_eq!(dump("# escape=`\nCOPY --a=b`\\ c d"), r#"(copy ["--a=b\\"] "c" "d")"#);
}

#[test]
fn arrays_are_exec_form_only_when_they_are_json() {
    assert_eq!(dump(r#"CMD [ "a", "b\n\u00e9" ] "#), r#"(cmd "a" "b\né")"#);
    assert_eq!(dump(r#"CMD ["a"] # c"#), r#"(cmd "[\"a\"] # c")"#);
    assert_eq!(dump("CMD ['a']"), r#"(cmd "['a']")"#);
    assert_eq!(dump("COPY ['a', b]"), r#"(copy "['a'," "b]")"#);
    assert_eq!(dump(r#"RUN ["c:\x"]"#), r#"(run "[\"c:\\x\"]")"#);
    assert_eq!(dump(r#"RUN ["\ud800", "\ud83d\ude00", "\\ud800"]"#), "(run \"\u{fffd}\" \"😀\" \"\\\\ud800\")");
    assert!(only("RUN []").is_json);
    for text in ["RUN [1]", r#"CMD ["a", ["b"]]"#, "SHELL [null]", "HEALTHCHECK CMD [true]", "VOLUME [{}]"] {
        let problems = problems(text.as_bytes());
        assert!(problems.len() == 1 && problems[0].2.contains("strings only"), "{text}: {problems:?}");
    }
}

#[test]
fn pairs_keep_quotes_and_the_old_form_keeps_all() {
    assert_eq!(dump(r#"ENV a=b c="d e" f=g\ h"#), r#"(env "a" "b" "=" "c" "\"d e\"" "=" "f" "g\\ h" "=")"#);
    assert_eq!(dump("LABEL a   b c=d "), r#"(label "a" "b c=d" "")"#);
    assert_eq!(problems(b"ENV a")[0].2, "ENV must have two arguments");
    assert_eq!(problems(b"LABEL a=b c")[0].2, "can't find = in `c`; must be of the form: name=value");
}

#[test]
fn an_onbuild_holds_an_instruction() {
    assert_eq!(dump("ONBUILD COPY --link a b"), r#"(onbuild (copy ["--link"] "a" "b"))"#);
    assert_eq!(dump("ONBUILD"), "(onbuild)");
    let nested = "ONBUILD ".repeat(5_000) + "RUN a";
    assert_eq!(parse(nested.as_bytes()).problems.len(), 1);
}

#[test]
fn comments_before_an_instruction_describe_it() {
    let ast = tree("# syntax=x\n# far\n#\n# near\n  # too\nFROM a\nRUN b");
    assert_eq!(ast.nodes[0].comments, ["near", "too"]);
    assert!(ast.nodes[1].comments.is_empty());
}

#[test]
fn files_without_instructions_are_refused() {
    for text in ["", "\n\n", "# a\n# b", "\u{feff}", "  \t\n"] {
        assert_eq!(problems(text.as_bytes())[0].0, ProblemKind::Empty, "{text:?}");
    }
}

#[test]
fn lines_have_a_greatest_size() {
    let line = |length: usize| format!("FROM a\nLABEL b={}\n", "x".repeat(length - "LABEL b=".len()));
    tree(&line(65_535));
    let problems = problems(line(65_536).as_bytes());
    assert_eq!(problems[0].1, Span::line(2));
    assert_eq!(problems[0].2, "dockerfile line greater than max allowed size of 65535");
}

#[test]
fn only_comments_may_be_other_than_utf8() {
    assert!(parse(b"# \xe9t\xe9\nFROM a\nRUN b \\\n# \xe9\n c").problems.is_empty());
    assert_eq!(problems(b"FROM a\nRUN \xe9\n")[0].0, ProblemKind::Encoding);
}

#[test]
fn all_problems_are_found() {
    let text = "# escape=x\nFROM a\nENV b\nRUN [1]\nRUN ok\nCOPY <<EOF /x\nnever ended\n";
    let lines: Vec<u32> = parse(text.as_bytes()).problems.iter().map(|problem| problem.span.start_line).collect();
    assert_eq!(lines, [1, 3, 4, 6]);
}

fn heredoc(name: &str, content: &str) -> Heredoc {
    let (name, content) = (name.to_owned(), content.to_owned());
    Heredoc { name, file_descriptor: 0, strip_tabs: false, expand: true, content }
}

#[test]
fn heredoc_bodies_are_read_as_they_stand() {
    assert_eq!(only("RUN <<EOF\n# in\n\n\ta \\\nEOF").heredocs, [heredoc("EOF", "# in\n\n\ta \\\n")]);
    assert_eq!(only("RUN <<EOF\nEOF").heredocs, [heredoc("EOF", "")]);
    assert_eq!(only("RUN <<a.b x\r\nc\r\na.b\r\n").heredocs, [heredoc("a.b", "c\r\n")]);
    assert_eq!(only("COPY <<X <<Y /d\nY\nX\nX\nY\n").heredocs, [heredoc("X", "Y\n"), heredoc("Y", "X\n")]);
    assert_eq!(only("ONBUILD RUN <<E\na\nE").heredocs, [heredoc("E", "a\n")]);
    assert_eq!(only("RUN --mount=type=tmpfs,target=/t <<E\na\nE").heredocs, [heredoc("E", "a\n")]);
    assert_eq!(only("RUN cat \\\n <<E\na\nE").heredocs, [heredoc("E", "a\n")]);
}

#[test]
fn heredoc_words_come_in_several_forms() {
    let of = |text: &str| only(text).heredocs.remove(0);
    assert_eq!(of("RUN 3<<E\nE"), Heredoc { file_descriptor: 3, ..heredoc("E", "") });
    assert_eq!(of("RUN <<-E\n\ta\n\tE"), Heredoc { strip_tabs: true, ..heredoc("E", "\ta\n") });
    assert_eq!(of("RUN <<'E'\na\nE"), Heredoc { expand: false, ..heredoc("E", "a\n") });
    assert_eq!(of("RUN <<\"E F\"\nE F"), Heredoc { expand: false, ..heredoc("E F", "") });
    assert_eq!(of("RUN <<e'o'f\neof"), Heredoc { expand: false, ..heredoc("eof", "") });
    assert_eq!(of("RUN <<e\\'f\ne'f"), heredoc("e'f", ""));
    assert_eq!(of("RUN <<'e'\\'f\ne'f"), Heredoc { expand: false, ..heredoc("e'f", "") });
    assert_eq!(of("RUN <<$E\n$E"), heredoc("$E", ""));
    assert_eq!(of("RUN <<   E  > f\nE"), heredoc("E", ""));
    assert_eq!(of("# escape=`\nRUN <<E\\'\nE'"), heredoc("E'", ""));
}

#[test]
fn leading_tabs_are_stripped_only_where_asked_for() {
    let stripped = Heredoc { strip_tabs: true, ..heredoc("E", "\t\ta\n b\n\t\n") };
    assert_eq!(stripped.body(), "a\n b\n\n");
    assert_eq!(heredoc("E", "\ta\n").body(), "\ta\n");
}

#[test]
fn not_everything_with_arrows_is_a_heredoc() {
    for text in
        ["RUN a<<E", "RUN '<<E'", "RUN \"<<E\"", "RUN <<<E", "RUN 1 << <2", "RUN [\"<<E\"]", "CMD <<E", "RUN <<"]
    {
        assert!(only(text).heredocs.is_empty(), "{text}");
    }
}

#[test]
fn a_heredoc_must_end() {
    let problems = problems(b"FROM a\nRUN <<A <<B\nA\nx\n");
    assert_eq!(problems, [(ProblemKind::Syntax, Span::new(2, 4), "unterminated heredoc `B`".to_owned())]);
    assert_eq!(parse(b"RUN <<'A\nA").problems.len(), 0, "an unclosed quote is the shell's business");
}
