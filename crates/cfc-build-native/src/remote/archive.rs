//! Archives: told by their content, unpacked below a directory that nothing in them can leave.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use cfc_store::{UnpackLimits, is_tar, unpack_archive};

use crate::failure::{Failure, OnPath, Result};
use crate::remote::make;

/// Encodings that the store does not read itself, by their first bytes, and the program that does.
const PROGRAMS: [(&[u8], &str); 2] = [(b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz")];

/// Unpacks `file` into the new `directory` if it is a tar archive: as it is, or in gzip, zstd, bzip2 or xz. Whether it is.
///
/// Names and links that lead out, whiteouts, and more entries or bytes than a layer may have, are failures.
pub(crate) fn unpack(file: &mut File, name: &Path, directory: &Path) -> Result<bool> {
    let Some(first) = open(file, name)? else { return Ok(false) };
    if !first.begins_as_tar().on("read", name)? {
        return Ok(false);
    }
    let Some(archive) = open(file, name)? else { return Ok(false) };
    make(directory)?;
    let free = rustix::fs::statvfs(directory).on("look at", directory)?;
    let size = file.metadata().on("look at", name)?.len();
    let limits = UnpackLimits::default().lowered_for(size, free.f_bavail.saturating_mul(free.f_frsize));
    archive.unpack(directory, &limits).map_err(|error| {
        let message = format!("cannot unpack the archive `{}`", name.display());
        Failure { source: Some(error), ..Failure::new(message) }
    })?;
    Ok(true)
}

/// An archive's bytes, from the beginning.
enum Archive {
    Plain(File),
    Program(Decompressor),
}

/// A program that decompresses; ended when dropped.
struct Decompressor {
    process: Child,
    output: ChildStdout,
}

impl Drop for Decompressor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// None when the file is in an encoding that nothing here reads.
fn open(file: &mut File, name: &Path) -> Result<Option<Archive>> {
    let mut magic = Vec::new();
    file.rewind().on("read", name)?;
    Read::by_ref(file).take(6).read_to_end(&mut magic).on("read", name)?;
    file.rewind().on("read", name)?;
    let file = file.try_clone().on("read", name)?;
    let Some((_, program)) = PROGRAMS.iter().find(|(first, _)| magic.starts_with(first)) else {
        return Ok(Some(Archive::Plain(file)));
    };
    let spawned = Command::new(program).arg("-dc").stdin(file).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut process = spawned.map_err(|error| {
        let failure = Failure::new(format!("`{}` is in {program}, which this machine has not", name.display()));
        let failure = failure
            .hint(format!("install {program} (package {program}{})", if *program == "xz" { "-utils" } else { "" }));
        Failure { source: Some(Box::new(error)), ..failure }
    })?;
    let output = process.stdout.take();
    Ok(output.map(|output| Archive::Program(Decompressor { process, output })))
}

impl Archive {
    fn begins_as_tar(self) -> std::io::Result<bool> {
        match self {
            Archive::Plain(file) => is_tar(file),
            Archive::Program(mut program) => is_tar(&mut program.output),
        }
    }

    fn unpack(
        self,
        directory: &Path,
        limits: &UnpackLimits,
    ) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        match self {
            Archive::Plain(file) => unpack_archive(file, directory, limits)?,
            Archive::Program(mut program) => {
                unpack_archive(&mut program.output, directory, limits)?;
                let status = program.process.wait()?;
                if !status.success() {
                    return Err(format!("the program that decompresses it ended with {status}").into());
                }
            }
        }
        Ok(())
    }
}
