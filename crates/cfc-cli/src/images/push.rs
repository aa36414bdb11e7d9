//! Pushing with a progress bar a blob.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cfc_oci::{Descriptor, Digest, Reference};
use cfc_store::Store;
use cfc_transfer::{Options, Outcome, Progress, PushError, TransferErrorKind};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::failure::Failure;
use crate::output;
use crate::screen::{self, Mode};

/// Uploads `image` to `destination` and returns the reference by digest.
pub async fn push_image(
    store: &Store,
    image: &Descriptor,
    destination: &Reference,
    options: &Options,
) -> Result<Reference, Failure> {
    let bars = Bars::default();
    let digest = cfc_transfer::push(store, image, destination, options, &bars).await.map_err(push_failure)?;
    Ok(destination.with_digest(digest))
}

fn push_failure(error: PushError) -> Failure {
    let hint = error.kind.hint().map(str::to_string);
    Failure::from(error).maybe_hint(hint)
}

/// A bar for each blob on the way; indicatif draws nothing where stderr is not a terminal.
pub struct Bars {
    all: MultiProgress,
    each: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Default for Bars {
    fn default() -> Bars {
        let target = match screen::mode() {
            Mode::Text => ProgressDrawTarget::stderr(),
            Mode::Json | Mode::Quiet => ProgressDrawTarget::hidden(),
        };
        Bars { all: MultiProgress::with_draw_target(target), each: Mutex::default() }
    }
}

impl Progress for Bars {
    fn blob_started(&self, blob: &Descriptor) {
        let style = ProgressStyle::with_template("{prefix} {bar:30} {bytes:>10}/{total_bytes:10} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar =
            self.all.add(ProgressBar::new(blob.size)).with_style(style).with_prefix(blob.digest.short().to_string());
        bar.enable_steady_tick(Duration::from_millis(100));
        self.each.lock().unwrap_or_else(PoisonError::into_inner).insert(blob.digest.clone(), bar);
    }

    fn mirror_failed(&self, mirror: &Reference, error: &TransferErrorKind) {
        output::tell(format!("warning: the mirror has no `{mirror}`: {error}"));
    }

    fn blob_advanced(&self, digest: &Digest, bytes: u64) {
        if let Some(bar) = self.each.lock().unwrap_or_else(PoisonError::into_inner).get(digest) {
            bar.set_position(bytes);
        }
    }

    fn blob_finished(&self, digest: &Digest, outcome: Outcome) {
        let Some(bar) = self.each.lock().unwrap_or_else(PoisonError::into_inner).remove(digest) else { return };
        bar.finish_with_message(match outcome {
            Outcome::Uploaded => "uploaded",
            Outcome::Downloaded => "downloaded",
            Outcome::Existed => "already there",
            Outcome::Mounted => "mounted",
        });
    }
}
