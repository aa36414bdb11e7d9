//! Lines into nodes.

mod heredoc;

pub use heredoc::Heredoc;

/// The `# key=value` lines at the top of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives {
    /// `# syntax=…`: the frontend image the author asked for.
    pub syntax: Option<String>,
    /// `# escape=…`: a backslash, or a backquote.
    pub escape: char,
    /// `# check=…`: options of the linter.
    pub check: Option<String>,
}
