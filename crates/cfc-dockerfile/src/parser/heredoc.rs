//! Here-documents.

use crate::words::Expander;

/// A here-document: `<<NAME`, and the lines up to `NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The word after `<<`, quotes removed.
    pub name: String,
    /// The file descriptor before `<<`; 0 when there is none.
    pub file_descriptor: u32,
    /// `<<-`: leading tabs do not count.
    pub strip_tabs: bool,
    /// Variables in the body are expanded: the word was not quoted.
    pub expand: bool,
    /// The lines as they stand in the file, each with its end of line, without the terminator.
    pub content: String,
}

impl Heredoc {
    /// The heredoc that `word` opens, its content still empty; `None` when it opens none.
    ///
    /// The backslash escapes in such a word, whatever the escape directive says.
    pub fn parse(word: &str) -> Result<Option<Heredoc>, String> {
        let Some((descriptor, strip_tabs, name)) = parts(word) else { return Ok(None) };
        let plain = Expander { keep_unset: true, ..Expander::new('\\') };
        let names = split(plain, name)?;
        let [unquoted] = names.as_slice() else { return Ok(None) };
        let with_quotes = split(Expander { keep_quotes: true, ..plain }, name)?;
        let is_quoted = with_quotes.first().map_or(0, |word| quotes(word)) != quotes(unquoted);
        Ok(Some(Heredoc {
            name: unquoted.clone(),
            file_descriptor: descriptor,
            strip_tabs,
            expand: !is_quoted,
            content: String::new(),
        }))
    }

    /// The content with the leading tabs of each line removed where `<<-` asks for it.
    pub fn body(&self) -> String {
        if !self.strip_tabs {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }

    /// Whether a line, without its end of line, ends this heredoc.
    pub(super) fn is_terminated_by(&self, line: &[u8]) -> bool {
        let tabs = if self.strip_tabs { line.iter().take_while(|&&b| b == b'\t').count() } else { 0 };
        &line[tabs..] == self.name.as_bytes()
    }
}

/// The heredocs that an instruction's text opens, in order, their contents still empty.
pub(super) fn heredocs_of_line(text: &str) -> Result<Vec<Heredoc>, String> {
    if !text.contains("<<") {
        return Ok(Vec::new());
    }
    let raw = Expander { keep_unset: true, keep_quotes: true, keep_escapes: true, ..Expander::new('\\') };
    // Text for the shell may well be what our words cannot read; then it has no heredocs.
    let words = split(raw, text).unwrap_or_default();
    words.iter().filter_map(|word| Heredoc::parse(word).transpose()).collect()
}

/// `3<<-NAME` into 3, whether there is a dash, and the name, which has no `<` and is not empty.
fn parts(word: &str) -> Option<(u32, bool, &str)> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    let rest = word[digits..].strip_prefix("<<")?;
    let (strip_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let name = rest.trim_start_matches(['\t', '\n', '\u{c}', '\r', ' ']);
    let descriptor = if digits == 0 { 0 } else { word[..digits].parse().unwrap_or(u32::MAX) };
    (!name.is_empty() && !name.contains('<')).then_some((descriptor, strip_tabs, name))
}

fn split(expander: Expander, text: &str) -> Result<Vec<String>, String> {
    match expander.expand(text, &|_| None) {
        Ok(expansion) => Ok(expansion.words),
        Err(error) => Err(error.to_string()),
    }
}

fn quotes(word: &str) -> usize {
    word.matches(['\'', '"']).count()
}
