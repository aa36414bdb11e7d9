//! Carries the bytes of open connections, in small processes of its own.
//!
//! Whoever has connected both sides of a connection hands both sockets to [`Relays`] and is done with it: no task, no
//! buffer and no descriptor of its own remains. A *relay* is a single-threaded process that moves what comes in on one
//! socket out on the other. A machine that gives a process 20,000 descriptors then carries more connections than one
//! process could hold. Small messages are copied through one buffer that all tunnels of a relay share; a stream is
//! moved by `splice(2)` through a pipe that its tunnel has only while data flows, so its bytes never enter our memory.
//!
//! The program that embeds this crate must call [`relay_main`] first thing when its `argv[0]` is [`RELAY_ARGV0`].
//!
//! What is absent: nothing here decides who may connect where, and nobody here reads what is carried.

mod counts;
mod pacing;
mod relays;

mod event_loop;
mod flow;
mod message;
mod pipes;
mod process;
mod tunnel;

pub use counts::{Counts, Group, Kind};
pub use pacing::unpaced;
pub use process::{RELAY_ARGV0, relay_main};
pub use relays::Relays;
