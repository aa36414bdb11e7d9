//! The OCI form of a seccomp profile, compiled to a filter for the kernel.

mod device_nodes;
mod numbers;
mod profile;
mod program;

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use crate::error::ErrorKind;
pub(crate) use device_nodes::hold_device_nodes;
pub(crate) use profile::{KEYRINGS, MOUNTS, NAMESPACES, allow, default_profile, forget};
use program::{Answer, Condition, Rule, Rules, assemble};
pub(crate) use program::{Instruction, Program};

/// `AUDIT_ARCH_*` of the machine this is compiled for.
const ARCHITECTURE: Option<u32> = match (cfg!(target_arch = "x86_64"), cfg!(target_arch = "aarch64")) {
    (true, _) => Some(0xc000_003e),
    (_, true) => Some(0xc000_00b7),
    _ => None,
};

/// Compiles `profile`.
///
/// Where several entries name one call, those with conditions come before those without, and stricter answers before
/// milder ones. Unknown system calls are left out, as libseccomp does. Programs of another architecture (32-bit ones) are
/// killed.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Program, ErrorKind> {
    let architecture = ARCHITECTURE.ok_or_else(|| invalid("this machine's architecture is not known"))?;
    let default = answer(profile.default_action(), profile.default_errno_ret())?;
    let mut calls: BTreeMap<u32, Rules> = BTreeMap::new();
    for entry in profile.syscalls().iter().flatten() {
        let rules = rules(entry)?;
        for number in entry.names().iter().filter_map(|name| numbers::number(name)) {
            let number = u32::try_from(number).map_err(invalid)?;
            calls.entry(number).or_default().extend_from_slice(&rules);
        }
    }
    for rules in calls.values_mut() {
        // As a signed number, a stricter answer is a smaller one.
        rules.sort_by_key(|rule| (rule.conditions.is_empty(), rule.answer as i32));
    }
    assemble(architecture, libc::SECCOMP_RET_KILL_PROCESS, &calls, default).ok_or_else(|| invalid("it is too long"))
}

/// The alternatives of one entry. As in libseccomp, conditions on different arguments must hold together, and two on one
/// argument are alternatives.
fn rules(entry: &LinuxSyscall) -> Result<Rules, ErrorKind> {
    let answer = answer(entry.action(), entry.errno_ret())?;
    let arguments = entry.args().as_deref().unwrap_or_default();
    let conditions = arguments.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    let mut indices: Vec<_> = arguments.iter().map(|argument| argument.index()).collect();
    indices.sort_unstable();
    let has_alternatives = indices.windows(2).any(|pair| pair[0] == pair[1]);
    if has_alternatives {
        return Ok(conditions.into_iter().map(|condition| Rule { conditions: vec![condition], answer }).collect());
    }
    Ok(vec![Rule { conditions, answer }])
}

fn condition(argument: &LinuxSeccompArg) -> Result<Condition, ErrorKind> {
    let index = u8::try_from(argument.index()).ok().filter(|index| *index < 6);
    let index = index.ok_or_else(|| invalid("a system call has six arguments"))?;
    let (value, mask) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpMaskedEq => (argument.value_two().unwrap_or(0), argument.value()),
        _ => (argument.value(), u64::MAX),
    };
    Ok(Condition { argument: index, operator: argument.op(), value, mask })
}

fn answer(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Answer, ErrorKind> {
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        LinuxSeccompAction::ScmpActErrno => {
            libc::SECCOMP_RET_ERRNO | (errno.unwrap_or(libc::EPERM as u32) & libc::SECCOMP_RET_DATA)
        }
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        LinuxSeccompAction::ScmpActLog => libc::SECCOMP_RET_LOG,
        other => return Err(invalid(format!("the action `{other}` is not supported"))),
    })
}

fn invalid(reason: impl std::fmt::Display) -> ErrorKind {
    ErrorKind::Invalid(format!("the seccomp profile cannot be compiled: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::program::tests::run;
    use super::*;

    fn check(name: &str, first_argument: u64, expected: Answer) {
        let program = compile(&default_profile()).expect("compiles");
        let number = numbers::number(name).expect(name) as u32;
        let actual = run(&program, ARCHITECTURE.expect("is known"), number, [first_argument, 0, 0, 0, 0, 0]);
        assert_eq!(actual, expected, "{name}({first_argument:#x})");
    }

    #[test]
    fn the_default_profile_allows_and_refuses_what_it_says() {
        let errno = |number: i32| libc::SECCOMP_RET_ERRNO | number as u32;
        for name in ["read", "execve", "futex", "epoll_pwait", "seccomp", "rseq", "writev"] {
            check(name, 0, libc::SECCOMP_RET_ALLOW);
        }
        for name in ["mount", "setns", "bpf", "keyctl", "io_uring_setup", "open_tree", "pivot_root", "init_module"] {
            check(name, 0, errno(libc::EPERM));
        }
        check("clone3", 0, errno(libc::ENOSYS));
        check("clone", libc::CLONE_VM as u64 | libc::SIGCHLD as u64, libc::SECCOMP_RET_ALLOW);
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNET, libc::CLONE_NEWNS, libc::CLONE_NEWCGROUP, 0x80] {
            check("clone", flag as u64 | libc::CLONE_VM as u64, errno(libc::EPERM));
            check("unshare", flag as u64, errno(libc::EPERM));
        }
        check("unshare", libc::CLONE_FS as u64, libc::SECCOMP_RET_ALLOW);
        for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK] {
            check("socket", family as u64, libc::SECCOMP_RET_ALLOW);
        }
        for family in [libc::AF_ALG, libc::AF_VSOCK] {
            check("socket", family as u64, errno(libc::EPERM));
            // The kernel looks at 32 bits only.
            check("socket", family as u64 | 7 << 32, errno(libc::EPERM));
        }
        check("personality", 0, libc::SECCOMP_RET_ALLOW);
        check("personality", 0x004_0000, errno(libc::EPERM));
    }

    #[test]
    fn the_default_profile_names_only_known_calls_and_is_short() {
        let profile = default_profile();
        let names = profile.syscalls().iter().flatten().flat_map(|entry| entry.names());
        let unknown: Vec<_> = names.filter(|name| numbers::number(name).is_none()).collect();
        if cfg!(target_arch = "x86_64") {
            assert!(unknown.is_empty(), "{unknown:?}");
        }
        let length = compile(&profile).expect("compiles").len();
        assert!(length < 600, "{length} instructions");
    }
}
