//! The integration tests: one binary, with real parts at every station.

mod arrows;
mod licences;
