//! [`hold_device_nodes`]: the filter by which calls that make device nodes wait for whoever carries them out.

use std::collections::BTreeMap;

use oci_spec::runtime::LinuxSeccompOperator as Operator;

use super::program::{Condition, Program, Rule, Rules, assemble};
use super::{ARCHITECTURE, numbers};

/// A second filter beside that of the profile; of two answers the kernel takes the stricter one. Calls that make other files
/// pass, and so do whiteouts (character devices 0:0), which are no devices: any user may make them, and an overlay refuses
/// them itself.
///
/// `None` on a machine whose calls are not known, where no profile can be compiled either.
pub(crate) fn hold_device_nodes() -> Option<Program> {
    // Where the mode is among the arguments; the device follows.
    let calls = [("mknod", 1), ("mknodat", 2)];
    let number = |name| numbers::number(name).and_then(|number| u32::try_from(number).ok());
    let calls: BTreeMap<u32, Rules> =
        calls.into_iter().filter_map(|(name, mode)| Some((number(name)?, rules(mode)))).collect();
    assemble(ARCHITECTURE?, libc::SECCOMP_RET_KILL_PROCESS, &calls, libc::SECCOMP_RET_ALLOW)
}

fn rules(mode: u8) -> Rules {
    let is = |argument, value, mask| Condition { argument, operator: Operator::ScmpCmpMaskedEq, value, mask };
    let is_kind = |kind: libc::mode_t| is(mode, kind.into(), libc::S_IFMT.into());
    let is_zero = is(mode + 1, 0, u32::MAX.into());
    vec![
        Rule { conditions: vec![is_kind(libc::S_IFCHR), is_zero], answer: libc::SECCOMP_RET_ALLOW },
        Rule { conditions: vec![is_kind(libc::S_IFCHR)], answer: libc::SECCOMP_RET_USER_NOTIF },
        Rule { conditions: vec![is_kind(libc::S_IFBLK)], answer: libc::SECCOMP_RET_USER_NOTIF },
    ]
}

#[cfg(test)]
mod tests {
    use super::super::program::tests::run;
    use super::*;

    #[test]
    fn devices_wait_and_nothing_else_does() {
        let program = hold_device_nodes().expect("this machine is known");
        let answer = |name: &str, arguments| {
            let number = numbers::number(name).expect("is known") as u32;
            run(&program, ARCHITECTURE.expect("is known"), number, arguments)
        };
        let check = |mode: u64, device: u64, expected: u32| {
            let what = format!("{mode:#o} {device:#x}");
            assert_eq!(answer("mknodat", [0, 1, mode, device, 0, 0]), expected, "{what}");
            if cfg!(target_arch = "x86_64") {
                assert_eq!(answer("mknod", [1, mode, device, 0, 0, 0]), expected, "{what}");
            }
        };
        let (hold, pass) = (libc::SECCOMP_RET_USER_NOTIF, libc::SECCOMP_RET_ALLOW);
        // What is above the bits that the kernel looks at changes nothing.
        for high in [0, 1 << 16, 1 << 32, u64::MAX << 16] {
            check(high | 0o020_644, 0x103, hold);
            check(high | 0o027_777, 1, hold);
            check(high | 0o060_600, 0x800, hold);
            check(high | 0o060_600, 0, hold);
            check(high | 0o020_000, 0, pass);
            check(high | 0o020_000, 1 << 32, pass);
            for kind in [0, 0o010_000, 0o040_000, 0o100_000, 0o120_000, 0o140_000, 0o170_000] {
                check(high | kind | 0o644, 0x103, pass);
            }
        }
        for name in ["read", "openat", "mkdirat", "seccomp", "execve"] {
            assert_eq!(answer(name, [0, 0o020_644, 0o020_644, 0x103, 0, 0]), pass, "{name}");
        }
    }
}
