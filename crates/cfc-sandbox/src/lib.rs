//! Runs one process in one root filesystem under namespaces, cgroups and seccomp; the only crate with `unsafe`.
