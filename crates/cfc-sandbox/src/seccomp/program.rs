//! Writes one BPF program for a whole profile: a binary search over ranges of system calls.
//!
//! Of a linear chain, the kernel would run a thousand instructions for each of its 450 calls when it is installed (it
//! remembers which are always allowed): 1.5 ms at every start. A search takes a tenth of that, and one program does for all
//! actions.

use std::collections::BTreeMap;
use std::rc::Rc;

use oci_spec::runtime::LinuxSeccompOperator as Operator;
use serde::{Deserialize, Serialize};

/// One instruction, in the kernel's layout.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u64", from = "u64")]
pub(crate) struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    k: u32,
}

impl From<Instruction> for u64 {
    fn from(instruction: Instruction) -> u64 {
        let Instruction { code, if_true, if_false, k } = instruction;
        u64::from(code) << 48 | u64::from(if_true) << 40 | u64::from(if_false) << 32 | u64::from(k)
    }
}

impl From<u64> for Instruction {
    fn from(word: u64) -> Instruction {
        Instruction {
            code: (word >> 48) as u16,
            if_true: (word >> 40) as u8,
            if_false: (word >> 32) as u8,
            k: word as u32,
        }
    }
}

/// A program in the kernel's form. Shared: many sandboxes have the same.
pub(crate) type Program = Rc<[Instruction]>;

/// A `SECCOMP_RET_*` value.
pub(crate) type Answer = u32;

/// What decides about one system call: the first rule that applies, else the default.
pub(crate) type Rules = Vec<Rule>;

/// An answer, given when all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) answer: Answer,
}

/// A comparison of one 64-bit argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) argument: u8,
    pub(crate) operator: Operator,
    pub(crate) value: u64,
    /// What is left of the argument for [`Operator::ScmpCmpMaskedEq`]; else all ones.
    pub(crate) mask: u64,
}

// The kernel's encoding: class, size or operation, source.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_GREATER: u16 = 0x25;
const JUMP_IF_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// The x86_64 calls' second numbering, by which a filter must not be passed. Kernels are built without it.
const X32_FIRST: u32 = 0x4000_0000;
const X32_ANSWER: Answer = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The longest program that the kernel takes.
const LENGTH_MAX: usize = 4096;

/// Where a comparison goes on, before positions are known.
#[derive(Clone, Copy)]
enum To {
    Next,
    Holds,
    Fails,
}

/// An instruction of a condition, before positions are known.
enum Draft {
    Plain(Instruction),
    Compare { code: u16, k: u32, yes: To, no: To },
}

/// The program for `calls`. Other architectures' calls are answered with `foreign`, unknown calls with `default`.
///
/// `None` when it would be longer than the kernel takes.
pub(crate) fn assemble(
    architecture: u32,
    foreign: Answer,
    calls: &BTreeMap<u32, Rules>,
    default: Answer,
) -> Option<Program> {
    let mut program = vec![
        plain(LOAD, ARCHITECTURE),
        Instruction { code: JUMP_IF_EQUAL, if_true: 1, if_false: 0, k: architecture },
        plain(RETURN, foreign),
        plain(LOAD, NUMBER),
    ];
    search(&ranges(calls, default), default, &mut program);
    (program.len() <= LENGTH_MAX).then(|| program.into())
}

/// The rules of all numbers from 0 on: each holds from its number to before the next one's.
fn ranges(calls: &BTreeMap<u32, Rules>, default: Answer) -> Vec<(u32, Rules)> {
    let always = |answer| vec![Rule { conditions: Vec::new(), answer }];
    let mut ranges: Vec<(u32, Rules)> = vec![(0, always(default))];
    let mut add = |start: u32, rules: Rules| match ranges.last_mut() {
        Some((_, last)) if *last == rules => {}
        Some((last_start, last)) if *last_start == start => *last = rules,
        _ => ranges.push((start, rules)),
    };
    let mut end = 0;
    for (number, rules) in calls {
        if *number > end {
            add(end, always(default));
        }
        add(*number, rules.clone());
        end = number.saturating_add(1);
    }
    add(end, always(default));
    if cfg!(target_arch = "x86_64") {
        add(X32_FIRST, always(X32_ANSWER));
    }
    ranges
}

fn search(ranges: &[(u32, Rules)], default: Answer, program: &mut Vec<Instruction>) {
    if let [(_, rules)] = ranges {
        return answer(rules, default, program);
    }
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    // A conditional jump reaches 255 instructions, an unconditional one all.
    program.push(Instruction { code: JUMP_IF_GREATER_OR_EQUAL, if_true: 0, if_false: 1, k: upper[0].0 });
    let jump = program.len();
    program.push(plain(JUMP, 0));
    search(lower, default, program);
    program[jump].k = (program.len() - jump - 1) as u32;
    search(upper, default, program);
}

fn answer(rules: &Rules, default: Answer, program: &mut Vec<Instruction>) {
    for rule in rules {
        let tests: Vec<Vec<Draft>> = rule.conditions.iter().map(test).collect();
        // Behind the tests comes the answer, and behind that whatever is next when a test fails.
        let fails = tests.iter().map(Vec::len).sum::<usize>() + 1;
        let (mut at, mut holds) = (0, 0);
        for drafts in tests {
            holds += drafts.len();
            for draft in drafts {
                program.push(settle(draft, at, holds, fails));
                at += 1;
            }
        }
        program.push(plain(RETURN, rule.answer));
        if rule.conditions.is_empty() {
            return;
        }
    }
    program.push(plain(RETURN, default));
}

/// The instruction at `at`, where a test that holds goes on at `holds` and one that fails at `fails`.
fn settle(draft: Draft, at: usize, holds: usize, fails: usize) -> Instruction {
    // A rule has at most six conditions of seven instructions: the distances fit.
    let distance = |to: To| match to {
        To::Next => 0,
        To::Holds => (holds - at - 1) as u8,
        To::Fails => (fails - at - 1) as u8,
    };
    match draft {
        Draft::Plain(instruction) => instruction,
        Draft::Compare { code, k, yes, no } => Instruction { code, if_true: distance(yes), if_false: distance(no), k },
    }
}

/// The drafts that decide one condition.
fn test(condition: &Condition) -> Vec<Draft> {
    let offset = ARGUMENTS + 8 * u32::from(condition.argument);
    let (low_offset, high_offset) =
        if cfg!(target_endian = "little") { (offset, offset + 4) } else { (offset + 4, offset) };
    let (low, high) = (condition.value as u32, (condition.value >> 32) as u32);
    let masked = |at: u32, mask: u32| {
        let load = Draft::Plain(plain(LOAD, at));
        if mask == u32::MAX { vec![load] } else { vec![load, Draft::Plain(plain(AND, mask))] }
    };
    let compare = |code, k, yes, no| Draft::Compare { code, k, yes, no };
    let mut drafts = masked(high_offset, (condition.mask >> 32) as u32);
    // How equality and order of the high halves, then of the low halves, decide.
    let (greater, equal_high, low_code, low_yes, low_no) = match condition.operator {
        Operator::ScmpCmpEq | Operator::ScmpCmpMaskedEq => (None, To::Fails, JUMP_IF_EQUAL, To::Holds, To::Fails),
        Operator::ScmpCmpNe => (None, To::Holds, JUMP_IF_EQUAL, To::Fails, To::Holds),
        Operator::ScmpCmpGt => (Some(To::Holds), To::Fails, JUMP_IF_GREATER, To::Holds, To::Fails),
        Operator::ScmpCmpGe => (Some(To::Holds), To::Fails, JUMP_IF_GREATER_OR_EQUAL, To::Holds, To::Fails),
        Operator::ScmpCmpLt => (Some(To::Fails), To::Holds, JUMP_IF_GREATER_OR_EQUAL, To::Fails, To::Holds),
        Operator::ScmpCmpLe => (Some(To::Fails), To::Holds, JUMP_IF_GREATER, To::Fails, To::Holds),
    };
    if let Some(greater) = greater {
        drafts.push(compare(JUMP_IF_GREATER, high, greater, To::Next));
    }
    drafts.push(compare(JUMP_IF_EQUAL, high, To::Next, equal_high));
    drafts.extend(masked(low_offset, condition.mask as u32));
    drafts.push(compare(low_code, low, low_yes, low_no));
    drafts
}

fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, k }
}

#[cfg(test)]
#[path = "program_tests.rs"]
pub(crate) mod tests;
