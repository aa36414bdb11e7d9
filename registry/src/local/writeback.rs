//! [`Writeback`]: an upload that is put on stable storage while it still grows.

use std::fs::File;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::session::SessionPaths;

/// After so many bytes the disk gets to work.
const BYTES: u64 = 4 << 20;

/// Has the kernel write a growing file down in the background, so that the sync at its end has little left to do.
///
/// The sync at the end still sees all errors, since each open file description is told of those since it was opened
/// (`Documentation/core-api/errseq.rst` of the kernel). Who opens the file after somebody was told is not: so an upload whose
/// bytes are lost ends here.
pub(super) struct Writeback {
    paths: SessionPaths,
    file: Option<Arc<File>>,
    running: Option<JoinHandle<()>>,
    /// How long the file was when the disk got to work last.
    started: u64,
}

impl Writeback {
    /// For an upload of which `size` bytes were written before. Its file is opened when there is something to do.
    pub(super) fn new(paths: SessionPaths, size: u64) -> Writeback {
        Writeback { paths, file: None, running: None, started: size }
    }

    /// Says that the file has `size` bytes by now.
    pub(super) fn note(&mut self, size: u64) {
        let is_running = self.running.as_ref().is_some_and(|running| !running.is_finished());
        if is_running || size - self.started < BYTES {
            return;
        }
        if self.file.is_none() {
            self.file = File::open(self.paths.data()).ok().map(Arc::new);
        }
        let Some(file) = self.file.clone() else { return };
        let paths = self.paths.clone();
        self.started = size;
        self.running = Some(tokio::task::spawn_blocking(move || drop(paths.sync(&file))));
    }
}

#[cfg(test)]
mod tests {
    use cfc_oci::Algorithm;
    use uuid::Uuid;

    use super::*;

    fn upload(directory: &std::path::Path) -> SessionPaths {
        let paths = SessionPaths::new(directory.to_path_buf(), Uuid::new_v4());
        paths.create(&"a".parse().expect("a name"), Algorithm::Sha256).expect("is created");
        paths
    }

    async fn sizes_are_noted(paths: &SessionPaths) {
        let mut writeback = Writeback::new(paths.clone(), 7);
        writeback.note(BYTES);
        assert!(writeback.running.is_none(), "too little has come for that");
        writeback.note(BYTES + 7);
        writeback.running.take().expect("it is written down").await.expect("does not panic");
    }

    #[tokio::test]
    async fn an_upload_that_the_disk_does_not_take_ends() {
        let directory = tempfile::tempdir().expect("a directory");
        let paths = upload(directory.path());
        sizes_are_noted(&paths).await;
        assert_eq!(paths.durable_size(&"a".parse().expect("a name")).expect("is read"), Some(0));

        // What cannot be synced at all.
        std::fs::remove_file(paths.data()).expect("is there");
        std::os::unix::fs::symlink("/dev/null", paths.data()).expect("is made");
        sizes_are_noted(&paths).await;
        assert_eq!(std::fs::read_dir(directory.path()).expect("is read").count(), 0);
    }
}
