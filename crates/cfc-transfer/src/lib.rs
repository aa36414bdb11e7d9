//! Images between a registry and the store.
