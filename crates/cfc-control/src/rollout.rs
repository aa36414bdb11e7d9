//! [`RolloutRecord`]: that a new version of an application was asked to take over, and how.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Timestamp;

/// One rollout. cfc gives every start the newest version at once, and has every instance end that runs another image or
/// size; so a rollout is complete when it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutRecord {
    /// Names the rollout.
    pub id: Uuid,
    /// The application.
    pub application_id: Uuid,
    /// The application's version before.
    pub current_version: u64,
    /// The application's version that it brought.
    pub target_version: u64,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// The request as it was sent: description, strategy, kind, steps and target configuration.
    pub request: serde_json::Map<String, serde_json::Value>,
}
