//! What happens to an overlay's upper directory between a program's end and the layer: nothing of the sandbox itself
//! and no clock gets into it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use crate::bytecode;
use crate::failure::{OnPath, Result};

/// Files that the sandbox mounts over; where the image had none, an empty one was made to mount on.
const MOUNTED_FILES: [&str; 2] = ["etc/resolv.conf", "etc/hosts"];

/// Removes the files that were only made to be mounted on.
pub(crate) fn remove_stubs(upper: &Path, lowers: &[PathBuf]) -> Result<()> {
    for name in MOUNTED_FILES {
        let path = upper.join(name);
        let Ok(metadata) = path.symlink_metadata() else { continue };
        let is_in_image = lowers.iter().any(|lower| lower.join(name).symlink_metadata().is_ok());
        if metadata.is_file() && metadata.len() == 0 && !is_in_image {
            fs::remove_file(&path).on("remove", &path)?;
        }
    }
    Ok(())
}

/// Takes every time later than `latest`, in seconds since 1970, back to it; those that Python's bytecode remembers too, also
/// of sources below that were renewed at `renewed_at`.
pub(crate) fn clamp_times(upper: &Path, latest: i64, renewed_at: Option<u32>) -> Result<()> {
    // A stack of our own: the depth is up to the program.
    let mut pending = vec![upper.to_path_buf()];
    while let Some(path) = pending.pop() {
        let metadata = path.symlink_metadata().on("look at", &path)?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).on("list", &path)? {
                pending.push(entry.on("list", &path)?.path());
            }
        }
        if metadata.is_file() {
            bytecode::clamp_source_time(&path, latest, renewed_at)?;
        }
        if metadata.mtime() >= latest {
            let time = Timespec { tv_sec: latest, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).on("set the times of", &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_times_are_taken_back_and_early_ones_stay() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir(root.path().join("a")).expect("mkdir");
        fs::write(root.path().join("a/late"), "").expect("write");
        let early = root.path().join("a/early");
        let file = fs::File::create(&early).expect("write");
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(5)).expect("sets");
        std::os::unix::fs::symlink("nowhere", root.path().join("link")).expect("symlink");

        clamp_times(root.path(), 1000, None).expect("clamps");

        let mtime = |name: &str| root.path().join(name).symlink_metadata().expect("there").mtime();
        assert_eq!([mtime("a"), mtime("a/late"), mtime("a/early"), mtime("link")], [1000, 1000, 5, 1000]);
    }

    #[test]
    fn only_empty_files_that_the_image_had_not_are_removed() {
        let root = tempfile::tempdir().expect("a directory");
        let (upper, lower) = (root.path().join("upper"), root.path().join("lower"));
        for directory in ["upper/etc", "lower/etc"] {
            fs::create_dir_all(root.path().join(directory)).expect("mkdir");
        }
        fs::write(upper.join("etc/resolv.conf"), "").expect("write");
        fs::write(upper.join("etc/hosts"), "").expect("write");
        fs::write(lower.join("etc/hosts"), "x").expect("write");

        remove_stubs(&upper, &[lower]).expect("removes");

        assert!(!upper.join("etc/resolv.conf").exists());
        assert!(upper.join("etc/hosts").exists());
    }
}
