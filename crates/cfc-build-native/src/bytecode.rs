//! Python's compiled modules. Each holds its source's modification time, and Python compiles again at every start what has
//! another one: where the source's time is taken back, what is remembered of it must be too. Flatpak's builder does the same.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::failure::{OnPath, Result};

/// Magic number, flags, modification time and size of the source, four bytes each (PEP 552).
const HEADER_BYTES: usize = 16;
const TIME_AT: u64 = 8;

/// Takes the time of its source that the compiled module `path` holds back to `latest`, in seconds since 1970. A file that
/// is none stays as it is. So does one whose source is not in the same tree, unless that has a time since `renewed_at`, which
/// it only had for a program's sake (see [`renewal`](crate::renewal)).
pub(crate) fn clamp_source_time(path: &Path, latest: i64, renewed_at: Option<u32>) -> Result<()> {
    let is_compiled = path.extension().is_some_and(|extension| extension == "pyc");
    let Some(latest) = u32::try_from(latest).ok().filter(|_| is_compiled) else { return Ok(()) };
    // A source below has the time that it has there.
    let is_beside = source(path).is_some_and(|source| source.symlink_metadata().is_ok());
    if !is_beside && renewed_at.is_none() {
        return Ok(());
    }
    let file = OpenOptions::new().read(true).write(true).open(path).on("open", path)?;
    match late_time(&file, latest) {
        Some(time) if is_beside || renewed_at.is_some_and(|at| time >= at) => {
            file.write_all_at(&latest.to_le_bytes(), TIME_AT).on("write", path)
        }
        _ => Ok(()),
    }
}

/// The time of the source, when there is one and it is later than `latest`.
fn late_time(file: &File, latest: u32) -> Option<u32> {
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0).ok()?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let has_time = &header[2..4] == b"\r\n" && word(4) == 0;
    Some(word(TIME_AT as usize)).filter(|time| has_time && *time > latest)
}

/// `a/b.py` of `a/__pycache__/b.cpython-311.pyc` (PEP 3147).
fn source(compiled: &Path) -> Option<PathBuf> {
    let directory = compiled.parent().filter(|directory| directory.ends_with("__pycache__"))?;
    let name = compiled.file_name()?.to_str()?.split('.').next()?;
    Some(directory.with_file_name(format!("{name}.py")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn module(flags: u32, time: u32) -> Vec<u8> {
        let words = [u32::from_le_bytes(*b"\xa7\x0d\r\n"), flags, time, 5];
        [&words.map(u32::to_le_bytes).concat()[..], b"code"].concat()
    }

    #[test]
    fn what_a_module_knows_of_its_source_follows_it() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir(root.path().join("__pycache__")).expect("mkdir");
        fs::write(root.path().join("a.py"), "x = 1").expect("write");
        for (name, before, after) in [
            ("a.cpython-311.pyc", module(0, 2_000_000_000), module(0, 1000)),
            ("a.cpython-311.opt-1.pyc", module(0, 999), module(0, 999)),
            // With a hash of the source in place of its time.
            ("a.cpython-312.pyc", module(3, 2_000_000_000), module(3, 2_000_000_000)),
            // Its source is in a layer below.
            ("b.cpython-311.pyc", module(0, 2_000_000_000), module(0, 2_000_000_000)),
            ("a.cpython-310.pyc", b"short".to_vec(), b"short".to_vec()),
        ] {
            let path = root.path().join("__pycache__").join(name);
            fs::write(&path, before).expect("write");
            clamp_source_time(&path, 1000, None).expect("clamps");
            assert_eq!(fs::read(&path).expect("read"), after, "{name}");
        }
    }

    #[test]
    fn of_sources_below_only_the_renewed_ones_are_taken_back() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("__pycache__/b.cpython-311.pyc");
        fs::create_dir(root.path().join("__pycache__")).expect("mkdir");
        for (before, after) in [(1999, 1999), (2000, 1000), (2001, 1000), (999, 999)] {
            fs::write(&path, module(0, before)).expect("write");
            clamp_source_time(&path, 1000, Some(2000)).expect("clamps");
            assert_eq!(fs::read(&path).expect("read"), module(0, after), "{before}");
        }
    }
}
