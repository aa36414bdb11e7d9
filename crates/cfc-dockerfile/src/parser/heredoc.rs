//! Here-documents.

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
    /// The content with the leading tabs of each line removed where `<<-` asks for it.
    pub fn body(&self) -> String {
        todo!()
    }
}
