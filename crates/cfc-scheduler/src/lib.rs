//! Decides, as a pure function of events and the time, which instances may start, wait, stop or be replaced.
//!
//! Owns the states of instances and the limits: `max_instances` of an application, the size of its instance type, and
//! what the machine has. [`Scheduler::step`] takes what happened and gives what must be done; whoever calls it (the
//! runtime) does it and reports back. This crate never does I/O and reads no clock.

mod application;
mod capacity;
mod event;
mod instance;
mod scheduler;

pub use application::{Application, InstanceType, UnknownInstanceType};
pub use capacity::{Capacity, Resource};
pub use event::{Action, Event, Refusal};
pub use instance::{Instance, State, Then};
pub use scheduler::Scheduler;
