//! The control API's token: made on first start, readable by its owner alone.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;

use crate::failure::Failure;
use crate::settings::Settings;

/// The token of this data directory; made if there is none.
pub fn load_or_create(settings: &Settings) -> Result<String, Failure> {
    let path = settings.token_file();
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_string()),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(Failure::because(format!("cannot read the token `{}`", path.display()), &error)),
    }
    let token = random_token()?;
    let temporary = settings.data.join(format!(".token-{}", std::process::id()));
    let write = || {
        let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        writeln!(file, "{token}")?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)
    };
    write().map_err(|error| Failure::because(format!("cannot write the token `{}`", path.display()), &error))?;
    Ok(token)
}

/// 256 bits from the kernel as hexadecimal digits.
fn random_token() -> Result<String, Failure> {
    let mut bytes = [0_u8; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Failure::because("cannot get random bytes for the token", &std::io::Error::from(error)))?;
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
