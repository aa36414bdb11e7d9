//! The sources of a `COPY` or `ADD`, each put where it can be copied from, and then copied.

use std::path::{Path, PathBuf};

use cfc_dockerfile::IgnoreFile;
use cfc_plan::{Copy, Downloads, Source};
use cfc_store::Store;

use crate::context::ContextTree;
use crate::copy::{Copier, From};
use crate::entry::Entries;
use crate::failure::{Failure, Result};
use crate::remote::{Staged, Stager, archive};
use crate::tree::{Kind, Last, Tree, resolve};

/// Makes sources ready.
pub(crate) struct Assembler<'a> {
    pub(crate) store: &'a Store,
    pub(crate) downloads: Option<&'a dyn Downloads>,
    pub(crate) workspace: &'a Path,
    /// Where paths are looked for.
    pub(crate) tree: &'a dyn Tree,
}

/// Sources that are ready, in order.
pub(crate) struct Assembled<'a> {
    tree: &'a dyn Tree,
    is_image: bool,
    parts: Vec<Part<'a>>,
}

enum Part<'a> {
    /// Of the tree that is copied from.
    Path {
        path: PathBuf,
        was_matched: bool,
    },
    Parents {
        pivot: &'a str,
        pattern: &'a str,
    },
    /// From elsewhere.
    Staged {
        staged: Staged,
        keeps_times: bool,
    },
    /// An archive, unpacked.
    Unpacked(ContextTree<'static>),
}

impl<'a> Assembler<'a> {
    /// Fetches and unpacks what `copy` wants; `is_image` says whether paths are an image's.
    pub(crate) fn stage(&self, copy: &'a Copy, is_image: bool) -> Result<Assembled<'a>> {
        let stager = Stager { store: self.store, downloads: self.downloads, workspace: self.workspace };
        let mut assembled = Assembled { tree: self.tree, is_image, parts: Vec::new() };
        for (number, source) in copy.sources.iter().enumerate() {
            let staged = stager.stage(number, source)?;
            match (source, staged) {
                (Source::Path { parents: Some(parents), .. }, _) => {
                    assembled.parts.push(Part::Parents { pivot: &parents.pivot, pattern: &parents.pattern });
                }
                (Source::Path { path, unpack, .. }, _) => {
                    let from = assembled.of_tree();
                    let was_matched = crate::glob::has_wildcard(path);
                    for path in Copier::matches(from, path)? {
                        let unpacked = if *unpack { self.unpacked(&mut assembled, self.tree, &path)? } else { false };
                        if !unpacked {
                            assembled.parts.push(Part::Path { path, was_matched });
                        }
                    }
                }
                (Source::Url { unpack: true, .. }, Some(staged)) => {
                    if !self.unpacked(&mut assembled, &staged.tree, &staged.path)? {
                        assembled.parts.push(Part::Staged { staged, keeps_times: true });
                    }
                }
                (source, Some(staged)) => {
                    let keeps_times = matches!(source, Source::Url { .. });
                    assembled.parts.push(Part::Staged { staged, keeps_times });
                }
                (_, None) => {}
            }
        }
        Ok(assembled)
    }

    /// Whether `path` of `tree` was an archive, which is unpacked then.
    fn unpacked(&self, assembled: &mut Assembled<'a>, tree: &dyn Tree, path: &Path) -> Result<bool> {
        let source = resolve(tree, path, Last::Followed)?;
        if tree.lookup(&source)?.is_none_or(|info| info.kind != Kind::File) {
            return Ok(false);
        }
        let directory = self.workspace.join(format!("archive-{}", assembled.parts.len()));
        if !archive::unpack(&mut tree.open(&source)?, path, &directory)? {
            return Ok(false);
        }
        assembled.parts.push(Part::Unpacked(ContextTree::of_directory(&directory)?));
        Ok(true)
    }
}

impl Assembled<'_> {
    fn of_tree(&self) -> From<'_> {
        From { tree: self.tree, number: 0, keeps_owners: self.is_image, keeps_times: false }
    }

    /// The trees that files of the layer are in: the one that is copied from, and those from elsewhere.
    pub(crate) fn trees(&self) -> Vec<&dyn Tree> {
        let others = self.parts.iter().filter_map(|part| -> Option<&dyn Tree> {
            match part {
                Part::Staged { staged, .. } => Some(&staged.tree),
                Part::Unpacked(tree) => Some(tree),
                Part::Path { .. } | Part::Parents { .. } => None,
            }
        });
        std::iter::once(self.tree).chain(others).collect()
    }

    /// The entries of the layer that has all of it at `destination`.
    pub(crate) fn copy(&self, mut copier: Copier<'_>, destination: &str) -> Result<Entries> {
        let is_several = self.parts.len() > 1;
        if is_several && !self.parts.iter().any(|part| matches!(part, Part::Parents { .. })) {
            copier.refuse_file_for_several(destination)?;
        }
        let mut number = 0;
        for part in &self.parts {
            match part {
                Part::Path { path, was_matched } => {
                    copier.copy_into(self.of_tree(), path, destination, *was_matched)?;
                }
                Part::Parents { pivot, pattern } => {
                    copier.copy_with_parents(self.of_tree(), pivot, pattern, destination)?;
                }
                Part::Staged { staged, keeps_times } => {
                    number += 1;
                    let from = From { tree: &staged.tree, number, keeps_owners: false, keeps_times: *keeps_times };
                    copier.copy_into(from, &staged.path, destination, false)?;
                }
                Part::Unpacked(tree) => {
                    number += 1;
                    let from = From { tree, number, keeps_owners: true, keeps_times: true };
                    copier.copy_contents(from, Path::new("/"), destination)?;
                }
            }
        }
        Ok(copier.into_entries())
    }
}

/// The patterns of `--exclude` as what an ignore file of them says.
pub(crate) fn exclude_patterns(patterns: &[String]) -> Result<IgnoreFile> {
    // A `#` at the beginning of a pattern is part of a name here.
    let lines = patterns.iter().map(|pattern| match pattern.starts_with('#') {
        true => format!("./{pattern}\n"),
        false => format!("{pattern}\n"),
    });
    IgnoreFile::parse(lines.collect::<String>().as_bytes())
        .map_err(|problem| Failure::new(format!("`--exclude`: {}", problem.message)))
}
