//! [`Control`]: the control API as a whole.

use std::sync::Arc;

use object_store::ObjectStore;

use crate::{Deployment, Platform};

/// What the control API must be told.
#[derive(Clone, Debug)]
pub struct ControlOptions {
    /// What a client must send as `Authorization: Bearer …`.
    pub token: String,
    /// 32 hexadecimal digits that stand in every path; any account is accepted, this one is answered.
    pub account_id: String,
    /// Where the gateway answers, for example `http://localhost:8787`.
    pub gateway_url: String,
    /// Host and port of the registry.
    pub registry_host: String,
    /// What the credentials endpoint hands out as password; `None` for a registry that asks for none.
    pub registry_password: Option<String>,
}

/// The control API over records in a bucket. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    _platform: Arc<dyn Platform>,
}

/// Why the bucket cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the control records")]
pub struct OpenError {}

impl Control {
    /// Opens the records of `bucket`.
    pub async fn open(
        _bucket: Arc<dyn ObjectStore>,
        _platform: Arc<dyn Platform>,
        _options: ControlOptions,
    ) -> Result<Control, OpenError> {
        todo!()
    }

    /// Everything below `/client/v4`.
    pub fn router(&self) -> axum::Router {
        todo!()
    }

    /// Everything that is recorded and should serve. The caller activates each; see [`Control::activate_all`].
    pub async fn restore(&self) -> Result<Vec<Deployment>, OpenError> {
        todo!()
    }
}
