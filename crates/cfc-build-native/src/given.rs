//! [`GivenContext`]: build contexts that are no directory of this machine: what comes on stdin, and Git repositories.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use cfc_plan::GitSource;
use cfc_store::{Store, TempDir};

use crate::export::ExportError;
use crate::failure::{Failure, OnPath, Result};
use crate::remote::{archive, git, make};

/// A context that was brought into a directory of ours, which goes with it.
pub struct GivenContext {
    _workspace: TempDir,
    /// Where its files are.
    pub directory: PathBuf,
    /// The Dockerfile, where stdin was one.
    pub dockerfile: Option<PathBuf>,
}

impl GivenContext {
    /// The repository that `address` names, as Docker writes it: `https://host/path.git#reference:directory`, `git://`,
    /// `ssh://` or `user@host:path`. None when it names none.
    ///
    /// # Errors
    /// When git is not there, or cannot fetch it.
    pub fn of_repository(store: &Store, address: &str) -> Option<std::result::Result<GivenContext, ExportError>> {
        let source = GitSource::parse(address)?;
        Some(
            fetch(store, source)
                .map_err(|failure| failed(format!("cannot get the build context `{address}`"), failure)),
        )
    }

    /// What `input` holds: a tar archive (as it is, or in gzip, zstd, bzip2 or xz), or a Dockerfile with nothing around it.
    ///
    /// # Errors
    /// When it cannot be read, or an archive is damaged or leads out of its directory.
    pub fn of_stream(store: &Store, input: impl Read) -> std::result::Result<GivenContext, ExportError> {
        read(store, input).map_err(|failure| failed("cannot read the build context on stdin".to_string(), failure))
    }
}

impl GivenContext {
    /// Where the Dockerfile called `name` is. Somebody else made the context: what only seems to be in it is refused.
    ///
    /// # Errors
    /// When it, or the ignore file that goes with it, is a link out of the context, or no file.
    pub fn dockerfile_at(&self, name: &Path) -> std::result::Result<PathBuf, ExportError> {
        let path = self.directory.join(name);
        let mut ignore = name.as_os_str().to_os_string();
        ignore.push(".dockerignore");
        for name in [name, Path::new(&ignore), Path::new(".dockerignore")] {
            self.check(name).map_err(|failure| failed("cannot use the build context".to_string(), failure))?;
        }
        Ok(path)
    }

    /// What is not there is said by who needs it.
    fn check(&self, name: &Path) -> Result<()> {
        let path = self.directory.join(name);
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        let real = inside(&self.directory, &path, &format!("`{}`", name.display()))?;
        if real.metadata().on("look at", &real)?.is_file() {
            return Ok(());
        }
        Err(Failure::new(format!("`{}` is not a file", name.display())))
    }
}

/// What `path` really is, which must be below `root`.
pub(crate) fn inside(root: &Path, path: &Path, what: &str) -> Result<PathBuf> {
    let root = root.canonicalize().on("look at", root)?;
    let real = path.canonicalize().on("follow", path)?;
    if real.starts_with(&root) {
        return Ok(real);
    }
    Err(Failure::new(format!("{what} is a symbolic link that leads out of it")))
}

fn failed(what: String, failure: Failure) -> ExportError {
    // A program that failed has said why.
    let said = (!failure.output.is_empty()).then(|| failure.output.join("\n").into());
    ExportError { message: format!("{what}: {}", failure.message), hint: failure.hint, source: failure.source.or(said) }
}

fn fetch(store: &Store, source: std::result::Result<GitSource, String>) -> Result<GivenContext> {
    let source = source.map_err(Failure::new)?;
    let workspace = store.temp_dir()?;
    let root = workspace.path().join("context");
    make(&root)?;
    git::fetch(&source, &root)?;
    let directory = inside(&root, &root.join(&source.subdirectory), &format!("`{}`", source.subdirectory))?;
    Ok(GivenContext { directory, dockerfile: None, _workspace: workspace })
}

fn read(store: &Store, mut input: impl Read) -> Result<GivenContext> {
    let workspace = store.temp_dir()?;
    let (path, directory) = (workspace.path().join("stdin"), workspace.path().join("context"));
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).on("make", &path)?;
    std::io::copy(&mut input, &mut file).and_then(|_| file.flush()).on("write", &path)?;
    let dockerfile = if archive::unpack(&mut file, Path::new("stdin"), &directory)? {
        std::fs::remove_file(&path).on("remove", &path)?;
        None
    } else {
        make(&directory)?;
        Some(path)
    };
    Ok(GivenContext { directory, dockerfile, _workspace: workspace })
}
