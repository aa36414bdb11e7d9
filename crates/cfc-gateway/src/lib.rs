//! HTTP in, to the right Worker; WebSocket and streaming untouched.
//!
//! Owns the way from a client's connection to a Worker's unix socket: which Worker a host name means, connections that
//! are kept open on both sides, headers that stop here and headers that are added, and what is answered when no Worker
//! can. Leaves Workers and their processes to others, who tell it with [`Gateway::set_route`] and its siblings. Bodies
//! pass through as they come; nothing here holds one.

mod gateway;
mod preface;
mod serve;

mod host;
mod route;

mod forward;
mod headers;
mod upgrade;
mod upstream;
mod websocket;

mod answer;

pub use gateway::{Gateway, GatewayOptions};
