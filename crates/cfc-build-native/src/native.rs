//! [`NativeBuilder`]: executes a plan on this machine, into the store.

use cfc_plan::{BuildError, BuildProgress, Builder, BuiltImage, Context, Plan};
use cfc_sandbox::Launcher;
use cfc_store::Store;

/// How to build.
#[derive(Clone, Debug, Default)]
pub struct NativeOptions {
    /// Carries every operation out, even those whose result is known.
    pub no_cache: bool,
}

/// Builds images into a store, with sandboxes for `RUN`.
pub struct NativeBuilder {
    store: Store,
    launcher: Launcher,
    options: NativeOptions,
}

impl NativeBuilder {
    /// A builder that keeps everything in `store` and runs programs through `launcher`.
    pub fn new(store: Store, launcher: Launcher, options: NativeOptions) -> NativeBuilder {
        NativeBuilder { store, launcher, options }
    }
}

impl Builder for NativeBuilder {
    fn build(
        &mut self,
        plan: &Plan,
        context: &Context,
        progress: &dyn BuildProgress,
    ) -> Result<BuiltImage, BuildError> {
        let _ = (plan, context, progress, &self.store, &self.launcher, &self.options);
        todo!()
    }
}
