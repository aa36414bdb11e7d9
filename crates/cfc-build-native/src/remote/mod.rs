//! What `ADD` takes from elsewhere, put into directories of ours first: files of the network, Git repositories, archives,
//! and files that the Dockerfile itself holds.

pub(crate) mod archive;
pub(crate) mod git;
pub(crate) mod url;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cfc_plan::{Downloads, Source};
use cfc_store::Store;

use crate::context::ContextTree;
use crate::failure::{OnPath, Result};

/// A source as a directory.
pub(crate) struct Staged {
    pub(crate) tree: ContextTree<'static>,
    /// What of it is copied.
    pub(crate) path: PathBuf,
}

/// Puts sources into directories.
pub(crate) struct Stager<'a> {
    pub(crate) store: &'a Store,
    pub(crate) downloads: Option<&'a dyn Downloads>,
    pub(crate) workspace: &'a Path,
}

impl Stager<'_> {
    /// `source` as a directory called after its `number`; none when it is in the tree that is copied from anyway.
    pub(crate) fn stage(&self, number: usize, source: &Source) -> Result<Option<Staged>> {
        let directory = self.workspace.join(format!("source-{number}"));
        let path = match source {
            Source::Path { .. } => return Ok(None),
            Source::File { name, content } => {
                make(&directory)?;
                // The name may have directories in it, of which only the last part is a file's name at the destination.
                let name = Path::new(name).file_name().unwrap_or_default();
                write(&directory.join(name), content.as_bytes(), 0o644)?;
                Path::new("/").join(name)
            }
            Source::Url { source, .. } => {
                make(&directory)?;
                url::fetch(self.store, self.downloads, source, &directory.join(&source.name))?;
                Path::new("/").join(&source.name)
            }
            Source::Git(source) => {
                make(&directory)?;
                git::fetch(source, &directory)?;
                Path::new("/").join(&source.subdirectory)
            }
        };
        Ok(Some(Staged { tree: ContextTree::of_directory(&directory)?, path }))
    }
}

pub(crate) fn make(directory: &Path) -> Result<()> {
    fs::create_dir(directory).on("make the directory", directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).on("open up", directory)
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    fs::write(path, content).on("write", path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).on("set the mode of", path)
}
