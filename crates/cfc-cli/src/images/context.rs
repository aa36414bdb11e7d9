//! Where `cfc build` takes context and Dockerfile from: a directory, stdin, or a Git repository.

use std::io::Read;
use std::path::{Path, PathBuf};

use cfc_build_native::GivenContext;
use cfc_store::{Store, TempDir};

use crate::args::Build;
use crate::failure::Failure;
use crate::images::outputs::files_failure;
use crate::output;

const STDIN: &str = "-";

/// A context and its Dockerfile, in files.
pub struct ImageContext {
    pub directory: PathBuf,
    pub dockerfile: PathBuf,
    /// What was brought here for this build, and goes with it.
    _given: Option<GivenContext>,
    _dockerfile: Option<TempDir>,
}

impl ImageContext {
    /// What the command line says.
    pub fn open(store: &Store, arguments: &Build) -> Result<ImageContext, Failure> {
        let given = given(store, &arguments.path)?;
        let directory = given.as_ref().map_or(&arguments.path, |given| &given.directory).clone();
        let from_stdin = given.as_ref().and_then(|given| given.dockerfile.clone());
        let is_remote = given.is_some();
        let (dockerfile, kept) = match (&arguments.file, from_stdin) {
            (Some(file), _) if file == Path::new(STDIN) => {
                if arguments.path == Path::new(STDIN) {
                    return Err(Failure::new("context and Dockerfile cannot both come on stdin")
                        .hint("put the Dockerfile into the archive, or name a directory"));
                }
                let kept = dockerfile_on_stdin(store)?;
                (kept.path().join("Dockerfile"), Some(kept))
            }
            (Some(_), Some(_)) => {
                return Err(Failure::new("what came on stdin is a Dockerfile, so --file cannot name another")
                    .hint("leave out --file, or send a tar archive"));
            }
            // As with Docker: beside a directory it is a path of this machine, otherwise of the context.
            (Some(file), None) if is_remote => (in_given(given.as_ref(), file)?, None),
            (Some(file), None) => (file.clone(), None),
            (None, Some(dockerfile)) => (dockerfile, None),
            (None, None) if is_remote => (in_given(given.as_ref(), usual_name(&directory))?, None),
            (None, None) => (directory.join(usual_name(&directory)), None),
        };
        Ok(ImageContext { directory, dockerfile, _given: given, _dockerfile: kept })
    }
}

/// What the Dockerfile of a context is called where nobody says so: BuildKit takes it in small letters too.
fn usual_name(directory: &Path) -> &'static Path {
    let has = |name: &str| directory.join(name).symlink_metadata().is_ok();
    Path::new(if has("dockerfile") && !has("Dockerfile") { "dockerfile" } else { "Dockerfile" })
}

/// A Dockerfile of a context that somebody else made.
fn in_given(given: Option<&GivenContext>, name: &Path) -> Result<PathBuf, Failure> {
    let path = given.map(|given| given.dockerfile_at(name).map_err(files_failure)).transpose()?;
    Ok(path.unwrap_or_else(|| name.to_path_buf()))
}

fn given(store: &Store, path: &Path) -> Result<Option<GivenContext>, Failure> {
    if path == Path::new(STDIN) {
        return GivenContext::of_stream(store, std::io::stdin().lock()).map(Some).map_err(files_failure);
    }
    let Some(address) = path.to_str().filter(|_| !path.exists()) else { return Ok(None) };
    match GivenContext::of_repository(store, address) {
        None if address.contains("://") => Err(Failure::new(format!(
            "`{address}` is no build context that cfc can get"
        ))
        .hint(
            "name a directory, `-` for an archive on stdin, or a Git repository (`https://….git#reference:directory`)",
        )),
        None => Ok(None),
        Some(given) => {
            output::tell(format!("fetching {address}"));
            given.map(Some).map_err(files_failure)
        }
    }
}

fn dockerfile_on_stdin(store: &Store) -> Result<TempDir, Failure> {
    let directory = store.temp_dir()?;
    let mut text = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut text);
    read.map_err(|error| Failure::because("cannot read the Dockerfile on stdin".to_string(), &error))?;
    let path = directory.path().join("Dockerfile");
    std::fs::write(&path, text)
        .map_err(|error| Failure::because(format!("cannot write `{}`", path.display()), &error))?;
    Ok(directory)
}
