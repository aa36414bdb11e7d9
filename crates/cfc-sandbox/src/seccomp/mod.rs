//! The OCI form of a seccomp profile, compiled to filters for the kernel.

mod numbers;
mod profile;

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::error::ErrorKind;
pub(crate) use profile::default_profile;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Compiles `profile` to filters, to be installed in order.
///
/// One filter can have one action besides its default, so each further action gets a filter of its own, installed later:
/// of equally strict answers the kernel takes the one of the newest filter. Unknown system calls are left out of the
/// profile, as libseccomp does. Programs of another architecture (32-bit ones) are killed.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Vec<BpfProgram>, ErrorKind> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut allowed = Rules::new();
    let mut others: Vec<(SeccompAction, Rules)> = Vec::new();
    for entry in profile.syscalls().iter().flatten() {
        let action = action(entry.action(), entry.errno_ret())?;
        if action == default {
            continue;
        }
        let rules = match others.iter_mut().find(|(known, _)| *known == action) {
            _ if action == SeccompAction::Allow => &mut allowed,
            Some((_, rules)) => rules,
            None => {
                others.push((action, Rules::new()));
                &mut others.last_mut().expect("it was just pushed").1
            }
        };
        for number in entry.names().iter().filter_map(|name| numbers::number(name)) {
            let entry_rules = conditions(entry.args().as_deref().unwrap_or_default())?;
            let known = rules.entry(number).or_default();
            // In the library's terms an empty chain means "always": it must not be narrowed by a later condition.
            if entry_rules.is_empty() {
                known.clear();
            }
            known.extend(entry_rules);
        }
    }
    let mut programs = Vec::new();
    if default != SeccompAction::Allow {
        programs.push(program(allowed, default, SeccompAction::Allow)?);
    }
    for (action, rules) in others {
        programs.push(program(rules, SeccompAction::Allow, action)?);
    }
    Ok(programs)
}

fn program(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, ErrorKind> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(invalid)?;
    SeccompFilter::new(rules, otherwise, matched, architecture).and_then(|filter| filter.try_into()).map_err(invalid)
}

/// The alternatives under which an entry applies; none means always.
///
/// As in libseccomp, conditions on different arguments must hold together, and two on one argument are alternatives.
fn conditions(arguments: &[LinuxSeccompArg]) -> Result<Vec<SeccompRule>, ErrorKind> {
    let conditions = arguments.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    let mut indices: Vec<_> = arguments.iter().map(|argument| argument.index()).collect();
    indices.sort_unstable();
    let has_alternatives = indices.windows(2).any(|pair| pair[0] == pair[1]);
    let groups = match (conditions.is_empty(), has_alternatives) {
        (true, _) => Vec::new(),
        (false, true) => conditions.into_iter().map(|condition| vec![condition]).collect(),
        (false, false) => vec![conditions],
    };
    groups.into_iter().map(|group| SeccompRule::new(group).map_err(invalid)).collect()
}

fn condition(argument: &LinuxSeccompArg) -> Result<SeccompCondition, ErrorKind> {
    let index = u8::try_from(argument.index()).map_err(invalid)?;
    let (operator, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (SeccompCmpOp::Ne, argument.value()),
        LinuxSeccompOperator::ScmpCmpLt => (SeccompCmpOp::Lt, argument.value()),
        LinuxSeccompOperator::ScmpCmpLe => (SeccompCmpOp::Le, argument.value()),
        LinuxSeccompOperator::ScmpCmpEq => (SeccompCmpOp::Eq, argument.value()),
        LinuxSeccompOperator::ScmpCmpGe => (SeccompCmpOp::Ge, argument.value()),
        LinuxSeccompOperator::ScmpCmpGt => (SeccompCmpOp::Gt, argument.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (SeccompCmpOp::MaskedEq(argument.value()), argument.value_two().unwrap_or(0))
        }
    };
    SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value).map_err(invalid)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<SeccompAction, ErrorKind> {
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => SeccompAction::Allow,
        LinuxSeccompAction::ScmpActErrno => SeccompAction::Errno(errno.unwrap_or(libc::EPERM as u32)),
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => SeccompAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => SeccompAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => SeccompAction::Trap,
        LinuxSeccompAction::ScmpActLog => SeccompAction::Log,
        other => return Err(ErrorKind::Invalid(format!("the seccomp action `{other}` is not supported"))),
    })
}

fn invalid(error: impl std::fmt::Display) -> ErrorKind {
    ErrorKind::Invalid(format!("the seccomp profile cannot be compiled: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_profile_compiles_and_names_only_known_calls() {
        let profile = default_profile();
        let programs = compile(&profile).expect("compiles");
        assert_eq!(programs.len(), 2, "allow with a default of ENOSYS, and EPERM");
        assert!(programs.iter().all(|program| program.len() < 4096));
        let names = profile.syscalls().iter().flatten().flat_map(|entry| entry.names());
        let unknown: Vec<_> = names.filter(|name| numbers::number(name).is_none()).collect();
        if cfg!(target_arch = "x86_64") {
            assert!(unknown.is_empty(), "{unknown:?}");
        }
    }
}
