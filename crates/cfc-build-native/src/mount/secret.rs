//! Secrets: read when a program needs them, kept in memory only, shown as files that no filesystem of ours holds.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use cfc_plan::{Context, FileOwner, SecretSource};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::failure::{Failure, OnPath, Result};

/// As much as BuildKit lets a secret have, in bytes.
const MAX_BYTES: u64 = 500 << 10;

/// A secret as an open file without a name.
pub(crate) struct Secret(OwnedFd);

impl Secret {
    /// The secret `id`; none when there is none and none is needed.
    pub(crate) fn open(context: &Context, id: &str, is_required: bool) -> Result<Option<Secret>> {
        let Some(bytes) = read(context, id, is_required)? else { return Ok(None) };
        let place = Path::new("memory");
        let file = memfd_create("secret", MemfdFlags::CLOEXEC).on("keep a secret in", place)?;
        let mut file = File::from(file);
        file.write_all(&bytes).on("keep a secret in", place)?;
        Ok(Some(Secret(file.into())))
    }

    /// Where the launcher can open it.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }
}

/// The options of the mount that shows a secret.
pub(crate) fn options(owner: FileOwner) -> Vec<String> {
    vec![format!("mode={:o}", owner.mode), format!("uid={}", owner.uid), format!("gid={}", owner.gid)]
}

/// The secret `id` as a variable's value.
pub(crate) fn variable(context: &Context, id: &str, is_required: bool) -> Result<Option<String>> {
    let Some(bytes) = read(context, id, is_required)? else { return Ok(None) };
    let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    let unfit = || Failure::new(format!("the secret `{id}` is no text, as a variable's value must be"));
    text.ok_or_else(|| unfit().hint("mount it as a file: leave out `env=`")).map(Some)
}

fn read(context: &Context, id: &str, is_required: bool) -> Result<Option<Vec<u8>>> {
    let Some(source) = context.secrets.get(id) else {
        if !is_required {
            return Ok(None);
        }
        let failure = Failure::new(format!("there is no secret `{id}`, which is required"));
        return Err(failure.hint(format!("give it with `--secret id={id},src=FILE` or `--secret id={id},env=NAME`")));
    };
    let bytes = match source {
        SecretSource::Variable(name) => {
            let value = std::env::var_os(name).ok_or_else(|| {
                Failure::new(format!("the variable `{name}`, which is to be the secret `{id}`, is not set"))
            })?;
            value.into_encoded_bytes()
        }
        SecretSource::File(path) => {
            let mut bytes = Vec::new();
            let file = File::open(path).on("read the secret", path)?;
            file.take(MAX_BYTES + 1).read_to_end(&mut bytes).on("read the secret", path)?;
            bytes
        }
    };
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Failure::new(format!("the secret `{id}` is larger than {MAX_BYTES} bytes")));
    }
    Ok(Some(bytes))
}
