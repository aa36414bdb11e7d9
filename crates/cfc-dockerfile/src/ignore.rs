//! `.dockerignore`: which paths of a build context are left out.

use crate::Problem;

/// The patterns of a `.dockerignore` file: the last one that matches a path, or a directory above it, decides.
#[derive(Clone, Debug, Default)]
pub struct IgnoreFile {}

/// Which patterns matched a directory: saves asking again for what is in it.
#[derive(Clone, Debug, Default)]
pub struct DirectoryMatches(Vec<bool>);

impl IgnoreFile {
    /// Reads the file; the problem names the line of a pattern that is none.
    pub fn parse(text: &[u8]) -> Result<IgnoreFile, Problem> {
        let _ = text;
        todo!()
    }

    /// Whether nothing is ignored, whatever the path.
    pub fn is_empty(&self) -> bool {
        todo!()
    }

    /// Whether `path` (relative to the context, `/` between parts) is left out, looking at its parents too.
    pub fn is_ignored(&self, path: &str) -> bool {
        let _ = path;
        todo!()
    }

    /// The same as [`is_ignored`](Self::is_ignored) for walkers: `parent` is what this function gave for the directory of `path`
    /// (the root's is `DirectoryMatches::default()`).
    pub fn is_ignored_below(&self, path: &str, parent: &DirectoryMatches) -> (bool, DirectoryMatches) {
        let _ = (path, parent);
        todo!()
    }

    /// Whether something below the ignored directory `directory` may be taken back in by a `!` pattern; when not, it
    /// need not be walked.
    pub fn may_contain_reincluded(&self, directory: &str) -> bool {
        let _ = directory;
        todo!()
    }
}
