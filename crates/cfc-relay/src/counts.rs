//! [`Group`]: whose tunnels are counted together, and [`Counts`]: what was counted.

use serde::{Deserialize, Serialize};

/// Whether a tunnel was opened towards an instance or by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Somebody connected to the instance.
    Ingress,
    /// The instance connected to somebody.
    Egress,
}

/// The tunnels of one instance and one kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Group {
    /// The instance's name.
    pub instance: String,
    /// Which way its tunnels were opened.
    pub kind: Kind,
}

/// What a group's tunnels have carried. Bytes lag behind by up to half a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tunnels that are open now.
    pub open: u64,
    /// Tunnels that were ever opened.
    pub opened: u64,
    /// Bytes carried into the instance.
    pub bytes_in: u64,
    /// Bytes carried out of the instance.
    pub bytes_out: u64,
}
