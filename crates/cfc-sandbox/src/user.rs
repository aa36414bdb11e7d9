//! Resolves an image's `USER` against the passwd and group files of its root filesystem.

use std::path::PathBuf;

use crate::error::Result;

/// A user of the sandbox, as numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvedUser {
    /// The user id.
    pub uid: u32,
    /// The primary group id.
    pub gid: u32,
    /// Further groups, the primary one included.
    pub additional_gids: Vec<u32>,
    /// The home directory, `/` when the user has no entry.
    pub home: String,
}

/// Resolves `user[:group]`, names or numbers, against `lowers` (topmost first; an overlay upper may lead).
///
/// An empty `user` is root. A number without an entry keeps group 0; a name without an entry is an error.
#[allow(clippy::todo)]
pub fn resolve_user(_lowers: &[PathBuf], _user: &str) -> Result<ResolvedUser> {
    todo!()
}
