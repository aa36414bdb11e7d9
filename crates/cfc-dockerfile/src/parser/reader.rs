//! The walk over the lines: which of them make one instruction.

use super::arguments::cut;
use super::command::split_command;
use super::directives::{BadDirective, DirectiveParser, Directives, escape_character, syntax_and_check};
use super::heredoc::{Heredoc, heredocs_of_line};
use super::lines::{Line, Lines, too_long};
use super::node::{Argument, Ast, Node};
use crate::{Problem, ProblemKind, Span};

/// `ONBUILD ONBUILD …` deeper than this is refused: each level takes a stack frame.
const MAX_NESTING: u32 = 16;

/// The state of one parse.
pub(super) struct Reader<'a> {
    lines: Lines<'a>,
    directive_parser: DirectiveParser,
    escape: char,
    comments: Vec<String>,
    ast: Ast,
}

/// One instruction's lines, joined.
struct Statement {
    text: String,
    first_line: u32,
    is_utf8: bool,
    has_empty_line: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a [u8]) -> Reader<'a> {
        let (syntax, check) = syntax_and_check(text);
        let directives = Directives { syntax, check, ..Directives::default() };
        Reader {
            lines: Lines::new(text),
            directive_parser: DirectiveParser::default(),
            escape: directives.escape,
            comments: Vec::new(),
            ast: Ast { nodes: Vec::new(), directives, problems: too_long(text), warnings: Vec::new() },
        }
    }

    pub(super) fn run(mut self) -> Ast {
        while let Some(line) = self.lines.next() {
            if let Some(statement) = self.statement(line) {
                self.instruction(statement);
            }
        }
        if self.ast.nodes.is_empty() && self.ast.problems.is_empty() {
            let last = Span::line(self.lines.number().max(1));
            let problem = Problem::new(ProblemKind::Empty, last, "file with no instructions")
                .with_hint("begin with `FROM <image>`");
            self.ast.problems.push(problem);
        }
        self.ast.directives.escape = self.escape;
        self.ast
    }

    /// The instruction that begins at `line`; `None` for a comment or an empty line.
    fn statement(&mut self, line: Line<'a>) -> Option<Statement> {
        let (text, is_utf8) = decode(line.content());
        let text = text.trim_start();
        let is_directive = self.directive(text, line.number);
        if let Some(comment) = text.strip_prefix('#') {
            if !is_directive {
                self.comment(comment.trim());
            }
            return None;
        }
        let (first, mut is_continued) = trim_continuation(text, self.escape);
        if first.is_empty() && !is_continued {
            // What stands apart describes nothing.
            self.comments.clear();
            return None;
        }
        let mut statement =
            Statement { text: first.to_owned(), first_line: line.number, is_utf8, has_empty_line: false };
        while is_continued && let Some(line) = self.lines.next() {
            if line.is_comment() {
                continue;
            }
            let (text, is_utf8) = decode(line.content());
            if text.trim_start().is_empty() {
                statement.has_empty_line = true;
                continue;
            }
            let (more, goes_on) = trim_continuation(&text, self.escape);
            statement.text.push_str(more);
            statement.is_utf8 &= is_utf8;
            is_continued = goes_on;
        }
        Some(statement)
    }

    /// Whether the line is a directive; its effect is taken.
    fn directive(&mut self, text: &str, number: u32) -> bool {
        let result = self.directive_parser.read(text).and_then(|directive| match directive {
            Some((key, value)) if key == "escape" => escape_character(value).map(Some),
            other => Ok(other.map(|_| self.escape)),
        });
        match result {
            Ok(Some(escape)) => {
                self.escape = escape;
                true
            }
            Ok(None) => false,
            Err(bad) => {
                let problem = Problem::new(BadDirective::KIND, Span::line(number), bad.message).with_hint(bad.hint);
                self.ast.problems.push(problem);
                true
            }
        }
    }

    /// Remembers a comment: a block of them directly before an instruction describes it.
    fn comment(&mut self, comment: &str) {
        if comment.is_empty() {
            self.comments.clear();
        } else {
            self.comments.push(comment.to_owned());
        }
    }

    fn instruction(&mut self, statement: Statement) {
        let result = node(&statement.text, self.escape, 0);
        let takes_heredocs = match &result {
            Ok(node) => node.may_have_heredocs(),
            Err(_) => false,
        };
        let (heredocs, heredoc_problem) = if takes_heredocs { self.heredocs(&statement) } else { (Vec::new(), None) };
        let span = Span::new(statement.first_line, self.lines.number());
        let comments = std::mem::take(&mut self.comments);
        if statement.has_empty_line {
            let message = format!("empty continuation line found in: {}", statement.text);
            self.ast.warnings.push(Problem::new(ProblemKind::Syntax, span, message));
        }
        if !statement.is_utf8 {
            let problem = Problem::new(ProblemKind::Encoding, span, "the instruction is not UTF-8")
                .with_hint("save the file as UTF-8");
            self.ast.problems.push(problem);
        }
        self.ast.problems.extend(heredoc_problem.map(|problem| Problem { span, ..problem }));
        match result {
            Ok(node) => self.ast.nodes.push(Node { heredocs, span, comments, ..node }),
            Err(message) => self.ast.problems.push(Problem::new(ProblemKind::Syntax, span, message)),
        }
    }

    /// Reads the bodies of the statement's heredocs.
    fn heredocs(&mut self, statement: &Statement) -> (Vec<Heredoc>, Option<Problem>) {
        let problem = |message: String| Problem::new(ProblemKind::Syntax, Span::default(), message);
        let opened = match heredocs_of_line(&statement.text) {
            Ok(opened) => opened,
            Err(message) => return (Vec::new(), Some(problem(message))),
        };
        let mut heredocs = Vec::new();
        for mut heredoc in opened {
            if !self.body(&mut heredoc) {
                let hint = format!("end it with a line that is just `{}`", heredoc.name);
                let message = format!("unterminated heredoc `{}`", heredoc.name);
                return (heredocs, Some(problem(message).with_hint(hint)));
            }
            heredocs.push(heredoc);
        }
        (heredocs, None)
    }

    /// Reads the body of one heredoc; whether its end was found.
    fn body(&mut self, heredoc: &mut Heredoc) -> bool {
        let Some(length) = self.lines.distance_to(|line| heredoc.is_terminated_by(line.content())) else {
            self.lines.by_ref().for_each(drop);
            return false;
        };
        for line in self.lines.by_ref().take(length) {
            heredoc.content.push_str(&String::from_utf8_lossy(line.bytes));
        }
        self.lines.next();
        true
    }
}

/// The node of one instruction's text, without its lines and heredocs.
fn node(text: &str, escape: char, depth: u32) -> Result<Node, String> {
    let command = split_command(text, escape);
    let (arguments, is_json) = match command.name.to_lowercase().as_str() {
        "onbuild" if command.arguments.is_empty() => (Vec::new(), false),
        "onbuild" if depth >= MAX_NESTING => return Err("`ONBUILD` is nested too deeply".to_owned()),
        "onbuild" => {
            let inner = node(&command.arguments, escape, depth + 1)?;
            (vec![Argument::Instruction(Box::new(inner))], false)
        }
        name => cut(name, &command.arguments, escape)?,
    };
    Ok(Node {
        value: command.name,
        flags: command.flags,
        arguments,
        is_json,
        original: text.to_owned(),
        ..Node::default()
    })
}

/// The line without the escape that continues it, and whether there was one. An escaped escape continues nothing.
fn trim_continuation(line: &str, escape: char) -> (&str, bool) {
    let Some(before) = line.trim_end_matches([' ', '\t']).strip_suffix(escape) else { return (line, false) };
    if before.ends_with(escape) { (line, false) } else { (before, true) }
}

fn decode(bytes: &[u8]) -> (String, bool) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), true),
        Err(_) => (String::from_utf8_lossy(bytes).into_owned(), false),
    }
}
