//! Where what sandboxes send out may go, and what goes there without a Worker.
//!
//! [`EgressPolicy`] says which addresses can be reached at all. [`answer_questions`] answers questions of names and
//! [`carry_datagrams`] carries datagrams, both as a [`Gate`] allows. [`Direct`] is the whole way out of a sandbox that belongs
//! to no Worker: a build's, or one of `cfc run`.
//!
//! What is absent: nothing here knows workerd, whose part is in `cfc-engine`.

mod gate;
mod policy;

mod datagrams;
mod direct;
mod names;

pub use datagrams::carry_datagrams;
pub use direct::Direct;
pub use gate::{Gate, Stance};
pub use names::{DNS_PORT, answer_questions, answer_stream, matches_name};
pub use policy::{AddressRange, EgressPolicy, STAND_IN, is_stand_in};
