//! Executes a plan on this machine.
