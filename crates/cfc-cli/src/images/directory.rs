//! Outputs that are directories: what is written appears when it is whole, however we end. Called by `outputs.rs`.
//!
//! A directory that is not there is filled beside its place (`NAME.<mark>.partial`) and renamed. Into one that is there,
//! `type=local` merges, as BuildKit does: files are written below it (`.cfc-<mark>.partial`), since it may be a filesystem
//! of its own, and each is renamed into its place.

use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use cfc_build_native::export_root_for;
use cfc_oci::{Descriptor, ManifestOrIndex};
use cfc_store::{Store, UnpackLimits, unpack_layer};

use crate::failure::Failure;
use crate::images::outputs::files_failure;
use crate::interrupt;

/// Writes the files of `image`, owned by whoever runs us; of several platforms, each in a directory called after it
/// (`linux_arm64`). What is in `directory` already and not in the image stays.
pub fn write_files(store: &Store, image: &Descriptor, directory: &Path) -> Result<(), Failure> {
    let is_there = directory.is_dir();
    let partial = if is_there { directory.join(format!(".cfc-{}.partial", mark())) } else { beside(directory) };
    fill(
        directory,
        &partial,
        |partial| unpack_all(store, image, partial),
        |partial| {
            if is_there { merge(partial, directory) } else { fs::rename(partial, directory) }
        },
    )
}

/// Has `content` write to a directory that nobody sees under its name before it is whole; one that is there gets the
/// content as it comes.
pub fn write_whole(directory: &Path, content: impl FnOnce(&Path) -> Result<(), Failure>) -> Result<(), Failure> {
    if directory.exists() {
        return content(directory);
    }
    fill(directory, &beside(directory), content, |partial| fs::rename(partial, directory))
}

/// Where a file or directory is made that gets the name `path` when it is whole.
pub(super) fn beside(path: &Path) -> PathBuf {
    // Without a slash at the end.
    let mut name = path.components().as_path().to_path_buf().into_os_string();
    name.push(format!(".{}.partial", mark()));
    PathBuf::from(name)
}

/// What nobody else's unfinished output is called. In containers process ids come again, and after a kill what had
/// that id has left something.
fn mark() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}

fn fill(
    directory: &Path,
    partial: &Path,
    content: impl FnOnce(&Path) -> Result<(), Failure>,
    place: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), Failure> {
    let at = |error: io::Error| Failure::because(format!("cannot write to `{}`", directory.display()), &error);
    interrupt::removes(partial.to_path_buf());
    let made = partial.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::create_dir(partial));
    let filled = made.map_err(at).and_then(|()| content(partial));
    let filled = filled.and_then(|()| cfc_sandbox::fail_point("build.output.directory").map_err(at));
    let placed = filled.and_then(|()| place(partial).map_err(at));
    if placed.is_err() {
        let _ = fs::remove_dir_all(partial);
    }
    interrupt::finished(partial);
    placed
}

/// Moves what is below `from` to `into`, over what is there, and removes `from`.
fn merge(from: &Path, into: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), into.join(entry.file_name()));
        let is_directory = entry.file_type()?.is_dir();
        match target.symlink_metadata().map(|there| there.is_dir()) {
            Ok(true) if is_directory => {
                merge_directory(&source, &target)?;
                continue;
            }
            Ok(true) => fs::remove_dir_all(&target)?,
            Ok(false) if is_directory => fs::remove_file(&target)?,
            _ => {}
        }
        fs::rename(&source, &target)?;
    }
    fs::remove_dir(from)
}

fn merge_directory(source: &Path, target: &Path) -> io::Result<()> {
    let metadata = source.metadata()?;
    merge(source, target)?;
    let there = target.metadata()?;
    if (there.uid(), there.gid()) != (metadata.uid(), metadata.gid()) {
        chown(target, Some(metadata.uid()), Some(metadata.gid()))?;
    }
    fs::set_permissions(target, metadata.permissions())?;
    File::open(target)?.set_times(FileTimes::new().set_modified(metadata.modified()?))
}

fn unpack_all(store: &Store, image: &Descriptor, directory: &Path) -> Result<(), Failure> {
    let ManifestOrIndex::Index(index) = ManifestOrIndex::parse(&image.media_type, &store.blobs().read(&image.digest)?)?
    else {
        return unpack(store, image, directory);
    };
    for manifest in &index.manifests {
        let platform = manifest.platform.as_ref().map(|platform| platform.to_string()).unwrap_or_default();
        unpack(store, manifest, &directory.join(platform.replace('/', "_")))?;
    }
    Ok(())
}

/// The archive goes through a pipe into the directory: one way of writing files is enough.
fn unpack(store: &Store, image: &Descriptor, directory: &Path) -> Result<(), Failure> {
    let at = |error: io::Error| Failure::because(format!("cannot write to `{}`", directory.display()), &error);
    fs::create_dir_all(directory).map_err(at)?;
    let (reader, mut writer) = io::pipe().map_err(at)?;
    let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    std::thread::scope(|scope| {
        let unpacked = scope
            .spawn(|| unpack_layer(reader, directory, cfc_oci::Algorithm::Sha256, &UnpackLimits::default()).map(drop));
        let exported = export_root_for(store, image, owner, &mut writer).map_err(files_failure);
        drop(writer);
        let unpacked = unpacked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        unpacked.map_err(|error| Failure::because(format!("cannot write to `{}`", directory.display()), &error))?;
        exported?;
        // A layer's own directory is made for a sandbox's root.
        chown(directory, Some(owner.0), Some(owner.1)).map_err(at)
    })
}
