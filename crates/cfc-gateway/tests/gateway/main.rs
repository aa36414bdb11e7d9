//! The gateway between real TCP clients and real HTTP servers on unix sockets.

mod bounds;
mod client;
mod lifetime;
mod routing;
mod streaming;
mod worker;
