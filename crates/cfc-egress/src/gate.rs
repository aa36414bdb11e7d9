//! [`Gate`]: what one sandbox may do at the moment.

use crate::policy::EgressPolicy;

/// What is to become of a question for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stance {
    /// This machine's resolvers are asked.
    Ask,
    /// As [`Stance::Ask`]; a name that they do not know gets the address that stands in for it.
    AskOrStandIn,
    /// It gets the address that stands in for it.
    StandIn,
    /// There is no such name.
    NoSuchName,
    /// Nobody can say yet.
    Unknown,
}

/// What one sandbox may do at the moment.
pub trait Gate: Send + Sync + 'static {
    /// What is to become of a question for `name`, which is in lower case and ends without a dot.
    fn stance(&self, name: &str) -> impl Future<Output = Stance> + Send;

    /// Whether datagrams may leave.
    fn lets_datagrams_out(&self) -> bool;

    /// Which addresses can be reached.
    fn policy(&self) -> &EgressPolicy;

    /// The sandbox, for messages.
    fn name(&self) -> &str;
}
