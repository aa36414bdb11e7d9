//! The assembled programs, run by a small machine of the same instructions.

use super::*;

const HOST: u32 = 0xc000_003e;
const ALLOW: Answer = libc::SECCOMP_RET_ALLOW;
const KILL: Answer = libc::SECCOMP_RET_KILL_PROCESS;

fn errno(number: i32) -> Answer {
    libc::SECCOMP_RET_ERRNO | number as u32
}

/// What the kernel would make of a call.
pub(crate) fn run(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> Answer {
    let mut data = vec![number, architecture, 0, 0];
    data.extend(arguments.iter().flat_map(|argument| [*argument as u32, (*argument >> 32) as u32]));
    let (mut accumulator, mut at) = (0, 0);
    loop {
        let Instruction { code, if_true, if_false, k } = program[at];
        let is_true = match code {
            LOAD => {
                accumulator = data[k as usize / 4];
                at += 1;
                continue;
            }
            AND => {
                accumulator &= k;
                at += 1;
                continue;
            }
            JUMP => {
                at += 1 + k as usize;
                continue;
            }
            RETURN => return k,
            JUMP_IF_EQUAL => accumulator == k,
            JUMP_IF_GREATER => accumulator > k,
            JUMP_IF_GREATER_OR_EQUAL => accumulator >= k,
            other => panic!("unknown code {other:#x}"),
        };
        at += 1 + usize::from(if is_true { if_true } else { if_false });
    }
}

fn holds(condition: &Condition, arguments: [u64; 6]) -> bool {
    let argument = arguments[usize::from(condition.argument)] & condition.mask;
    match condition.operator {
        Operator::ScmpCmpNe => argument != condition.value,
        Operator::ScmpCmpLt => argument < condition.value,
        Operator::ScmpCmpLe => argument <= condition.value,
        Operator::ScmpCmpEq | Operator::ScmpCmpMaskedEq => argument == condition.value,
        Operator::ScmpCmpGe => argument >= condition.value,
        Operator::ScmpCmpGt => argument > condition.value,
    }
}

#[test]
fn every_number_finds_its_own_rules() {
    let always = |answer| vec![Rule { conditions: Vec::new(), answer }];
    for calls in [vec![], vec![0], vec![0, 1, 2], vec![3, 5, 6, 7, 9, 11, 300, 301, 450], (0..400).step_by(3).collect()]
    {
        let calls: BTreeMap<u32, Rules> = calls.into_iter().map(|number| (number, always(ALLOW))).collect();
        let program = assemble(HOST, KILL, &calls, errno(38)).expect("is short");
        for number in (0..520).chain([X32_FIRST - 1, u32::MAX >> 2]) {
            let expected = if calls.contains_key(&number) { ALLOW } else { errno(38) };
            assert_eq!(run(&program, HOST, number, [0; 6]), expected, "{number} of {:?}", calls.keys());
        }
        assert_eq!(run(&program, 0x4000_0003, 0, [0; 6]), KILL);
        if cfg!(target_arch = "x86_64") {
            assert_eq!(run(&program, HOST, X32_FIRST, [0; 6]), X32_ANSWER);
            assert_eq!(run(&program, HOST, u32::MAX, [0; 6]), X32_ANSWER);
        }
    }
}

#[test]
fn conditions_compare_all_64_bits() {
    let operators = [
        Operator::ScmpCmpNe,
        Operator::ScmpCmpLt,
        Operator::ScmpCmpLe,
        Operator::ScmpCmpEq,
        Operator::ScmpCmpGe,
        Operator::ScmpCmpGt,
        Operator::ScmpCmpMaskedEq,
    ];
    let values = [0, 1, 5, 6, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0005, 0x2_0000_0004, 0x5_0000_0005, u64::MAX];
    for operator in operators {
        let masks: &[u64] = if operator == Operator::ScmpCmpMaskedEq {
            &[u64::MAX, 0xffff_ffff, 5, 0x5_0000_0000]
        } else {
            &[u64::MAX]
        };
        for (value, mask) in values.iter().flat_map(|value| masks.iter().map(move |mask| (*value, *mask))) {
            let first = Condition { argument: 1, operator, value, mask };
            let second = Condition { argument: 3, operator: Operator::ScmpCmpGe, value: 6, mask: u64::MAX };
            let rules = vec![
                Rule { conditions: vec![first, second], answer: errno(1) },
                Rule { conditions: vec![first], answer: errno(2) },
            ];
            let program = assemble(HOST, KILL, &[(7, rules)].into(), ALLOW).expect("is short");
            for (one, three) in values.iter().flat_map(|one| values.iter().map(move |three| (*one, *three))) {
                let arguments = [0, one, 0, three, 0, 0];
                let expected = match (holds(&first, arguments), holds(&second, arguments)) {
                    (true, true) => errno(1),
                    (true, false) => errno(2),
                    (false, _) => ALLOW,
                };
                let actual = run(&program, HOST, 7, arguments);
                assert_eq!(actual, expected, "{operator:?} {value:#x} & {mask:#x}: {one:#x} {three:#x}");
            }
        }
    }
}
