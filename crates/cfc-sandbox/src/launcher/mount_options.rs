//! fstab-style mount options, as the spec writes them, sorted into what the kernel wants.

/// A mount's options.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// `MOUNT_ATTR_*`.
    pub(crate) attributes: u64,
    /// The filesystem's own options: key, and value if it has one.
    pub(crate) data: Vec<(String, Option<String>)>,
    pub(crate) is_bind: bool,
    pub(crate) is_recursive: bool,
}

impl MountOptions {
    /// Sorts `options`. Propagation is left out: a sandbox's mounts are always private.
    pub(crate) fn parse(options: &[String]) -> MountOptions {
        let mut parsed = MountOptions::default();
        for option in options {
            match option.as_str() {
                "ro" => parsed.attributes |= libc::MOUNT_ATTR_RDONLY,
                "nosuid" => parsed.attributes |= libc::MOUNT_ATTR_NOSUID,
                "nodev" => parsed.attributes |= libc::MOUNT_ATTR_NODEV,
                "noexec" => parsed.attributes |= libc::MOUNT_ATTR_NOEXEC,
                "nodiratime" => parsed.attributes |= libc::MOUNT_ATTR_NODIRATIME,
                "noatime" => parsed.attributes |= libc::MOUNT_ATTR_NOATIME,
                "strictatime" => parsed.attributes |= libc::MOUNT_ATTR_STRICTATIME,
                "bind" => parsed.is_bind = true,
                "rbind" => (parsed.is_bind, parsed.is_recursive) = (true, true),
                "rw" | "suid" | "dev" | "exec" | "atime" | "relatime" | "diratime" | "defaults" | "" => {}
                "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" | "unbindable" => {}
                // Every bind mount with ids is mapped.
                "idmap" | "ridmap" => {}
                other => parsed.data.push(match other.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (other.to_owned(), None),
                }),
            }
        }
        parsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_data_part() {
        let options = ["ro", "nosuid", "rbind", "rprivate", "mode=755", "newinstance"].map(str::to_owned);
        let parsed = MountOptions::parse(&options);
        assert_eq!(parsed.attributes, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID);
        assert!(parsed.is_bind && parsed.is_recursive);
        assert_eq!(parsed.data, [("mode".to_owned(), Some("755".to_owned())), ("newinstance".to_owned(), None)]);
    }
}
