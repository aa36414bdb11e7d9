//! The integration tests: one binary, with real parts at every station.

mod add;
mod arrows;
mod clock;
mod descriptors;
mod exec;
mod flatten;
mod golden;
mod golden_engine;
mod helpers;
mod images;
mod licences;
mod limits;
mod messages;
mod operations;
mod ordinary_user;
mod outputs;
mod registry;
mod rootless;
mod runtimes;
mod settings;
mod starter;
mod support;
mod upgrade;
