//! Lines of a Dockerfile as BuildKit shows them.

use cfc_dockerfile::Span;

const RULER: &str = "--------------------";

/// The lines of `span` and those around them, marked, below the file's name.
pub fn paint(file: &str, text: &str, span: Span) -> String {
    let lines: Vec<&str> = text.split('\n').collect();
    let (first, last) = (span.start_line as usize, (span.end_line as usize).min(lines.len()));
    if first < 1 || first > lines.len() {
        return String::new();
    }
    let (mut start, mut end) = (first, last);
    let wanted = if first == last { 4 } else { 2 };
    let mut shown = 0;
    while shown < wanted {
        if start > 1 {
            start -= 1;
            shown += 1;
        }
        if end != lines.len() {
            end += 1;
            shown += 1;
        }
        shown += 1;
    }
    let mut painted = format!("{file}:{first}\n{RULER}\n");
    for number in start..=end {
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        painted += &format!(" {number:3} | {mark} {}\n", lines[number - 1]);
    }
    painted + RULER + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_shown_with_those_around_them() {
        let text = "one\ntwo\nthree\nfour\nfive\nsix\n";
        let painted = paint("Dockerfile", text, Span::line(3));
        assert_eq!(
            painted,
            "Dockerfile:3\n--------------------\n   1 |     one\n   2 |     two\n   3 | >>> three\n   4 |     four\n   5 |     five\n--------------------\n"
        );
        assert_eq!(paint("Dockerfile", text, Span::line(99)), "");
        assert!(paint("Dockerfile", "only", Span::line(1)).contains("   1 | >>> only\n"));
    }
}
