//! Git repositories, by the git program of the machine.

use std::path::Path;
use std::process::Command;

use cfc_plan::GitSource;

use crate::failure::{Failure, OnPath, Result};

/// Checks `source` out into the empty `directory`.
pub(crate) fn fetch(source: &GitSource, directory: &Path) -> Result<()> {
    let git = Git { directory };
    let reference = if source.reference.is_empty() { "HEAD" } else { &source.reference };
    git.run(&["init", "--quiet", "--initial-branch=main"])?;
    let commit = git.fetch(&source.remote, reference)?;
    git.run(&["rev-parse", "--quiet", "--verify", &format!("{commit}^{{commit}}")])
        .map_err(|_| Failure::new(format!("`{}` has no `{reference}`", source.remote)))?;
    git.run(&["-c", "advice.detachedHead=false", "checkout", "--quiet", "--detach", &commit, "--"])?;
    check(&git, source)?;
    if !source.skips_submodules && directory.join(".gitmodules").exists() {
        git.run(&["remote", "add", "origin", &source.remote])?;
        git.run(&["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"])?;
    }
    if !source.keeps_git_directory {
        remove_git_directories(directory)?;
    }
    let part = directory.join(&source.subdirectory);
    if !part.is_dir() {
        let message = format!("`{}` has no directory `{}` at `{reference}`", source.remote, source.subdirectory);
        return Err(Failure::new(message));
    }
    Ok(())
}

fn check(git: &Git<'_>, source: &GitSource) -> Result<()> {
    let Some(expected) = &source.checksum else { return Ok(()) };
    let actual = git.run(&["rev-parse", "HEAD"])?;
    let actual = actual.trim();
    if actual.starts_with(expected.as_str()) && expected.len() >= 7 {
        return Ok(());
    }
    Err(Failure::new(format!("`{}` is not what was expected: expected {expected}, found {actual}", source.remote))
        .hint("`--checksum` is a commit's name, or its beginning of at least 7 digits"))
}

/// A submodule has a file of that name.
fn remove_git_directories(directory: &Path) -> Result<()> {
    let mut pending = vec![directory.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).on("list", &directory)? {
            let entry = entry.on("list", &directory)?;
            let (path, kind) = (entry.path(), entry.file_type().on("look at", &directory)?);
            match entry.file_name() == ".git" {
                true if kind.is_dir() => std::fs::remove_dir_all(&path).on("remove", &path)?,
                true => std::fs::remove_file(&path).on("remove", &path)?,
                false if kind.is_dir() => pending.push(path),
                false => {}
            }
        }
    }
    Ok(())
}

struct Git<'a> {
    directory: &'a Path,
}

impl Git<'_> {
    /// Gets `reference` of `remote`, and returns what it is called then. One commit is enough where the server can give just
    /// one; then the reference with what is behind it; a commit that nothing is called after is among all branches and tags.
    fn fetch(&self, remote: &str, reference: &str) -> Result<String> {
        let one = self.run(&["fetch", "--quiet", "--depth=1", "--no-tags", "--", remote, reference]);
        let fetched = one.or_else(|_| self.run(&["fetch", "--quiet", "--no-tags", "--", remote, reference]));
        let Err(failure) = fetched else { return Ok("FETCH_HEAD".to_string()) };
        let everything = "+refs/heads/*:refs/remotes/origin/*";
        self.run(&["fetch", "--quiet", "--tags", "--", remote, everything]).map_err(|_| failure)?;
        Ok(reference.to_string())
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        // Modes of files follow the umask, and must not follow ours. The shell takes a place as `$0` first.
        let mut command = Command::new("sh");
        command.args(["-c", "umask 022 && exec git \"$@\"", "git"]).args(arguments).current_dir(self.directory);
        command.env("GIT_TERMINAL_PROMPT", "0").env("GIT_CONFIG_NOSYSTEM", "1").env("LC_ALL", "C");
        // An attribute of the repository must not run a program of the user's configuration, nor its hooks.
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_TEMPLATE_DIR", "");
        command.env("GIT_ALLOW_PROTOCOL", "http:https:git:ssh").env_remove("GIT_DIR");
        let output = command.output().on("run git in", self.directory)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        if output.status.code() == Some(127) {
            return Err(Failure::new("there is no git on this machine").hint("install git (package git)"));
        }
        let said = String::from_utf8_lossy(&output.stderr).lines().map(str::to_string).collect::<Vec<_>>();
        let what = arguments.iter().find(|argument| !argument.starts_with('-')).unwrap_or(&"");
        Err(Failure { output: said, ..Failure::new(format!("git {what} failed")) })
    }
}
