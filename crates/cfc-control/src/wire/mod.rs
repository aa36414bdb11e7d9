//! Cloudflare's REST shapes, and nothing else: JSON into our values and back. The only module that knows them.

pub(crate) mod application;
pub(crate) mod dash;
pub(crate) mod envelope;
pub(crate) mod metrics;
pub(crate) mod script;
pub(crate) mod script_views;
