//! [`open_inside`]: the one way in which a path of somebody else's is opened below a directory of ours.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Tries before the kernel's answer is taken as final; one that fails costs microseconds.
const TRIES: u32 = 10_000;

/// Opens `path` below `root` with `resolve` deciding what may be followed. The kernel answers EAGAIN when a rename or a
/// mount anywhere on the machine made it unsure about a `..` on the way (openat2(2)), which says nothing about the path;
/// it is asked again.
pub(crate) fn open_inside(
    root: impl AsFd,
    path: impl AsRef<Path>,
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    for _ in 0..TRIES {
        let opened = rustix::fs::openat2(root.as_fd(), path.as_ref(), flags | OFlags::CLOEXEC, Mode::empty(), resolve);
        match opened {
            Err(Errno::AGAIN | Errno::INTR) => std::thread::yield_now(),
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_rename_elsewhere_does_not_fail_a_path_with_dots() {
        let directory = tempfile::tempdir().expect("a directory");
        let inside = directory.path().join("root/a/b");
        std::fs::create_dir_all(&inside).expect("makes");
        let root = std::fs::File::open(directory.path().join("root")).expect("opens");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let [one, two] = ["one", "two"].map(|name| directory.path().join(name));
                std::fs::write(&one, "").expect("writes");
                while !done.load(Ordering::Relaxed) {
                    std::fs::rename(&one, &two).expect("renames");
                    std::fs::rename(&two, &one).expect("renames");
                }
            });
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            let failed =
                (0..20_000).find_map(|_| open_inside(&root, "a/b/../../a/../a/b", OFlags::PATH, resolve).err());
            done.store(true, Ordering::Relaxed);
            assert_eq!(failed, None);
        });
    }
}
