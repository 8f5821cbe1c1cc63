use std::collections::BTreeMap;

use proptest::prelude::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::{graph, optimize};

/// `struct seccomp_data` (seccomp(2)) in words.
type Data = [u32; 16];

/// What `program` returns for `data`; `None` if it does not return. At each step it must
/// have got further: the kernel takes no program that goes back.
fn run(program: &[sock_filter], data: &Data) -> Option<u32> {
    let mut accumulator = 0;
    let mut at = 0;
    loop {
        let sock_filter { code, jt, jf, k } = *program.get(at)?;
        let mut branch = |condition: bool| at += usize::from(if condition { jt } else { jf });
        match code {
            0x20 => accumulator = data[k as usize / 4],
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x06 => return Some(k),
            0x15 => branch(accumulator == k),
            0x25 => branch(accumulator > k),
            0x35 => branch(accumulator >= k),
            0x45 => branch(accumulator & k != 0),
            _ => return None,
        }
        at += 1;
    }
}

fn any_condition() -> impl Strategy<Value = SeccompCondition> {
    let length = prop_oneof![Just(SeccompCmpArgLen::Dword), Just(SeccompCmpArgLen::Qword)];
    let operator = prop_oneof![
        Just(SeccompCmpOp::Eq),
        Just(SeccompCmpOp::Ne),
        Just(SeccompCmpOp::Ge),
        Just(SeccompCmpOp::Gt),
        Just(SeccompCmpOp::Le),
        Just(SeccompCmpOp::Lt),
        (0..8_u64).prop_map(SeccompCmpOp::MaskedEq),
    ];
    (0..6_u8, length, operator, any_word()).prop_map(|(index, length, operator, value)| {
        SeccompCondition::new(index, length, operator, value).unwrap()
    })
}

/// Few values, so that data meets conditions, and both halves of long ones count.
fn any_word() -> impl Strategy<Value = u64> {
    prop_oneof![0..4_u64, (0..3_u64).prop_map(|value| value << 32 | 1)]
}

fn any_filter() -> impl Strategy<Value = BpfProgram> {
    let rule = prop::collection::vec(any_condition(), 1..4)
        .prop_map(|conditions| SeccompRule::new(conditions).unwrap());
    let rules = prop::collection::vec(rule, 0..4);
    prop::collection::vec((0..30_i64, rules), 0..12).prop_map(|rules| {
        let rules: BTreeMap<_, _> = rules.into_iter().collect();
        let (kill, allow) = (SeccompAction::KillProcess, SeccompAction::Allow);
        let filter = SeccompFilter::new(rules, kill, allow, TargetArch::x86_64).unwrap();
        filter.try_into().unwrap()
    })
}

fn any_data() -> impl Strategy<Value = Data> {
    let machine = prop_oneof![9 => Just(0xc000_003e_u32), 1 => Just(0x4000_0003)];
    let arguments = prop::collection::vec(any_word(), 6);
    (0..32_u32, machine, arguments).prop_map(|(number, machine, arguments)| {
        let mut data = [0; 16];
        data[0] = number;
        data[1] = machine;
        for (argument, words) in arguments.iter().zip(data[4..].chunks_mut(2)) {
            words[0] = *argument as u32;
            words[1] = (*argument >> 32) as u32;
        }
        data
    })
}

proptest! {
    #[test]
    fn a_filter_returns_what_it_did_and_is_not_longer(
        program in any_filter(),
        data in prop::collection::vec(any_data(), 200),
    ) {
        let shorter = optimize(&program);
        prop_assert!(shorter.len() <= program.len());
        for data in data {
            prop_assert_eq!(run(&shorter, &data), run(&program, &data));
            prop_assert!(run(&shorter, &data).is_some());
        }
    }

    #[test]
    fn a_program_returns_what_it_did_whatever_its_shape(
        program in any_program(),
        data in prop::collection::vec(any_data(), 50),
    ) {
        prop_assert!(graph::read(&program).is_some());
        let optimized = optimize(&program);
        for data in data {
            prop_assert_eq!(run(&optimized, &data), run(&program, &data));
        }
    }

    #[test]
    fn what_is_no_program_stays_as_it_is(
        program in any_program(),
        at in any::<prop::sample::Index>(),
        harm in prop::sample::select(vec![(0x87, 0), (0x05, 100)]),
    ) {
        let mut program = program;
        let (code, k) = harm;
        let at = at.index(program.len());
        program[at] = sock_filter { code, jt: 0, jf: 0, k };
        prop_assert_eq!(optimize(&program), program);
    }
}

/// All jumps lead forwards within it, and its last instruction returns, as the kernel
/// demands.
fn any_program() -> impl Strategy<Value = BpfProgram> {
    let code = prop::sample::select(vec![0x20_u16, 0x20, 0x54, 0x05, 0x06, 0x15, 0x25, 0x45]);
    let instruction = (code, 0..6_u8, 0..6_u8, 0..4_u32);
    prop::collection::vec(instruction, 0..30).prop_map(|instructions| {
        let count = instructions.len();
        let instructions = instructions.into_iter().enumerate();
        let mut program: BpfProgram = instructions
            .map(|(at, (code, jt, jf, k))| {
                let furthest = count - at - 1;
                let clamp = |offset: u8| offset.min(furthest.try_into().unwrap_or(u8::MAX));
                let k = match code {
                    // Loads are of whole words.
                    0x20 => k * 4,
                    0x05 => k.min(furthest as u32),
                    _ => k,
                };
                sock_filter {
                    code,
                    jt: clamp(jt),
                    jf: clamp(jf),
                    k,
                }
            })
            .collect();
        program.push(sock_filter {
            code: 0x06,
            jt: 0,
            jf: 0,
            k: 9,
        });
        program
    })
}

fn of_numbers(numbers: std::ops::Range<i64>) -> BpfProgram {
    let rules = numbers.map(|number| (number, Vec::new())).collect();
    let (kill, allow) = (SeccompAction::KillProcess, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, kill, allow, TargetArch::x86_64);
    filter.unwrap().try_into().unwrap()
}

#[test]
fn a_number_costs_one_instruction() {
    // The machine's load, comparison and return, the number's load, and two returns, of
    // which one is that of the machine's.
    assert_eq!(optimize(&of_numbers(0..20)).len(), 20 + 5);
}

#[test]
fn a_program_too_long_to_be_laid_out_anew_stays_as_it_is() {
    let long = of_numbers(0..400);
    assert_eq!(optimize(&long), long);
}
