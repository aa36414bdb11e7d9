//! Since when nobody owns an instance that was restarted from outside: kept with it, for whoever adopts it.

use std::fs;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{AtPath, Result, RuntimeErrorKind};
use crate::runtime::Runtime;

impl Runtime {
    /// Keeps with the instance that nobody owns it, since now. Nothing where there is no such instance.
    pub fn keep_ownerless(&self, name: &str) -> Result<()> {
        if self.phase(name).is_none() {
            return Ok(());
        }
        let path = self.shared().directories.of(name).ownerless();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let temporary = path.with_extension("new");
        let written = fs::write(&temporary, format!("{}\n", since.as_secs())).at("write", &temporary);
        let kept = written.and_then(|()| fs::rename(&temporary, &path).at("replace", &path));
        kept.map_err(|kind: RuntimeErrorKind| kind.of("keep that nobody owns", name))
    }

    /// Since when nobody owns the instance, where [`Runtime::keep_ownerless`] has kept that.
    pub fn kept_ownerless(&self, name: &str) -> Option<SystemTime> {
        self.phase(name)?;
        let text = fs::read_to_string(self.shared().directories.of(name).ownerless()).ok()?;
        UNIX_EPOCH.checked_add(Duration::from_secs(text.trim().parse().ok()?))
    }

    /// Somebody owns the instance from now on.
    pub fn forget_ownerless(&self, name: &str) {
        match fs::remove_file(self.shared().directories.of(name).ownerless()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(instance = name, %error, "cannot forget that nobody owned it");
            }
            _ => {}
        }
    }
}
