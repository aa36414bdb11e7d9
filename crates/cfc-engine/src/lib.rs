//! The Docker Engine API socket and the in-process sidecar, for workerd.
