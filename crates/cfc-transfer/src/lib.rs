//! Images between a registry and the store.

mod error;
mod options;
mod progress;
mod pull;
mod push;

pub use error::{PullError, PushError, TransferErrorKind};
pub use options::{Credentials, Options};
pub use progress::{NoProgress, Outcome, Progress};
pub use pull::pull;
pub use push::push;
