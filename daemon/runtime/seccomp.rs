//! From a seccomp profile, as OCI spells it, to the kernel's own filter: pure.
//!
//! Invariant: a field, action or comparison that is not known is refused by name, never passed over. Names of system
//! calls that this architecture does not have are passed over, as everywhere.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::Deserialize;
use syscalls::Sysno;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "calls of other architectures are refused whatever the profile says of them"
    )]
    architectures: Vec<String>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Condition>>,
    #[serde(default)]
    #[expect(dead_code, reason = "a remark for people")]
    comment: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// One instruction of a classic BPF program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_AT_LEAST: u16 = 0x35;

const ERRNO: u32 = 0x0005_0000;
const ENOSYS: u32 = ERRNO | 38;
const EPERM: u32 = 1;

const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// Numbers from here on are the x32 calls of the same architecture.
const X32: u32 = 0x4000_0000;
const INSTRUCTIONS_MAX: usize = 4096;

#[cfg(target_arch = "x86_64")]
const THIS_ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const THIS_ARCH: u32 = 0xC000_00B7;

/// Where a jump leads before it is known how far that is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    Holds,
    Fails,
}

/// The filter of a profile: the kernel's instructions, each as one number.
pub(crate) fn compile(profile: &[u8]) -> Result<Vec<u64>, String> {
    let profile: Profile = serde_json::from_slice(profile).map_err(|error| error.to_string())?;
    if let Some(flag) = profile.flags.iter().find(|flag| *flag != "SECCOMP_FILTER_FLAG_TSYNC") {
        return Err(format!("flag {flag} is not served"));
    }
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut program = vec![
        load(ARCH),
        jump(JUMP_EQUAL, THIS_ARCH, 1, 0),
        give(ENOSYS),
        load(NUMBER),
        jump(JUMP_AT_LEAST, X32, 0, 1),
        give(ENOSYS),
    ];
    let mut plain = BTreeMap::new();
    for rule in &profile.syscalls {
        let act = action(&rule.action, rule.errno_ret)?;
        let numbers = rule.names.iter().filter_map(|name| Sysno::from_str(name).ok());
        let numbers: Vec<u32> = numbers.map(|call| call as u32).collect();
        match rule.args.as_deref().unwrap_or_default() {
            [] => plain.extend(numbers.into_iter().map(|number| (number, act))),
            conditions => {
                for number in numbers {
                    guarded(number, conditions, act, &mut program)?;
                }
            }
        }
    }
    program.push(load(NUMBER));
    for (first, last, act) in ranges(&plain) {
        program.extend([jump(JUMP_AT_LEAST, first, 0, 2), jump(JUMP_GREATER, last, 1, 0), give(act)]);
    }
    program.push(give(default));
    if program.len() > INSTRUCTIONS_MAX {
        return Err(format!("it makes {} instructions; the kernel takes {INSTRUCTIONS_MAX}", program.len()));
    }
    Ok(program.into_iter().map(number).collect())
}

fn action(name: &str, errno: Option<u32>) -> Result<u32, String> {
    let errno = errno.unwrap_or(EPERM) & 0xffff;
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => 0,
        "SCMP_ACT_KILL_PROCESS" => 0x8000_0000,
        "SCMP_ACT_TRAP" => 0x0003_0000,
        "SCMP_ACT_ERRNO" => ERRNO | errno,
        "SCMP_ACT_TRACE" => 0x7ff0_0000 | errno,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        "SCMP_ACT_ALLOW" => 0x7fff_0000,
        other => return Err(format!("action {other} is not served")),
    })
}

/// Neighbours with one action together.
fn ranges(plain: &BTreeMap<u32, u32>) -> Vec<(u32, u32, u32)> {
    let mut ranges: Vec<(u32, u32, u32)> = Vec::new();
    for (number, act) in plain {
        match ranges.last_mut() {
            Some((_, last, same)) if *last + 1 == *number && same == act => *last = *number,
            _ => ranges.push((*number, *number, *act)),
        }
    }
    ranges
}

/// The rule of one call under conditions on its arguments, all of which must hold.
fn guarded(
    call: u32,
    conditions: &[Condition],
    act: u32,
    program: &mut Vec<Instruction>,
) -> Result<(), String> {
    let mut body: Vec<Instruction> = Vec::new();
    let mut fails = Vec::new();
    for condition in conditions {
        let steps = steps(condition)?;
        let end = body.len() + steps.len();
        for (code, k, yes, no) in steps {
            let at = body.len();
            let mut far = |to: To, side: u8| match to {
                To::Next => 0,
                To::Holds => u8::try_from(end - at - 1).unwrap_or(u8::MAX),
                To::Fails => {
                    fails.push((at, side));
                    0
                }
            };
            let (jt, jf) = (far(yes, 0), far(no, 1));
            body.push(Instruction { code, jt, jf, k });
        }
    }
    body.push(give(act));
    let end = body.len();
    for (at, side) in fails {
        let far = u8::try_from(end - at - 1).map_err(|_| "a rule has too many conditions".to_owned())?;
        if side == 0 { body[at].jt = far } else { body[at].jf = far }
    }
    let whole = u8::try_from(end).map_err(|_| "a rule has too many conditions".to_owned())?;
    program.extend([load(NUMBER), jump(JUMP_EQUAL, call, 0, whole)]);
    program.append(&mut body);
    Ok(())
}

/// The comparison of a 64-bit argument, half by half.
fn steps(condition: &Condition) -> Result<Vec<(u16, u32, To, To)>, String> {
    use To::{Fails, Holds, Next};
    if condition.index > 5 {
        return Err(format!("argument {} does not exist", condition.index));
    }
    // Both architectures served here keep the low half first.
    let low = ARGUMENTS + 8 * condition.index;
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (high_value, low_value) = halves(condition.value);
    let take = |offset| (LOAD, offset, Next, Next);
    let more = |last: u16, yes: To, no: To| {
        vec![
            take(low + 4),
            (JUMP_GREATER, high_value, yes, Next),
            (JUMP_EQUAL, high_value, Next, no),
            take(low),
            (last, low_value, yes, no),
        ]
    };
    Ok(match condition.op.as_str() {
        "SCMP_CMP_EQ" => vec![
            take(low + 4),
            (JUMP_EQUAL, high_value, Next, Fails),
            take(low),
            (JUMP_EQUAL, low_value, Holds, Fails),
        ],
        "SCMP_CMP_NE" => vec![
            take(low + 4),
            (JUMP_EQUAL, high_value, Next, Holds),
            take(low),
            (JUMP_EQUAL, low_value, Fails, Holds),
        ],
        "SCMP_CMP_GT" => more(JUMP_GREATER, Holds, Fails),
        "SCMP_CMP_GE" => more(JUMP_AT_LEAST, Holds, Fails),
        "SCMP_CMP_LE" => more(JUMP_GREATER, Fails, Holds),
        "SCMP_CMP_LT" => more(JUMP_AT_LEAST, Fails, Holds),
        "SCMP_CMP_MASKED_EQ" => {
            let (high_wanted, low_wanted) = halves(condition.value_two);
            vec![
                take(low + 4),
                (AND, high_value, Next, Next),
                (JUMP_EQUAL, high_wanted, Next, Fails),
                take(low),
                (AND, low_value, Next, Next),
                (JUMP_EQUAL, low_wanted, Holds, Fails),
            ]
        }
        other => return Err(format!("comparison {other} is not served")),
    })
}

const fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jt: 0, jf: 0, k: offset }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

const fn give(action: u32) -> Instruction {
    Instruction { code: RETURN, jt: 0, jf: 0, k: action }
}

fn number(from: Instruction) -> u64 {
    u64::from(from.code) << 48 | u64::from(from.jt) << 40 | u64::from(from.jf) << 32 | u64::from(from.k)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would make of a call: a small machine for the few instructions used here.
    fn verdict(program: &[u64], call: u32, arguments: [u64; 6]) -> u32 {
        let (mut at, mut a) = (0, 0_u32);
        loop {
            let step = program[at];
            let (code, jt, jf, k) = (
                (step >> 48) as u16,
                (step >> 40 & 0xff) as usize,
                (step >> 32 & 0xff) as usize,
                step as u32,
            );
            at += 1;
            match code {
                LOAD if k == NUMBER => a = call,
                LOAD if k == ARCH => a = THIS_ARCH,
                LOAD => {
                    let argument = arguments[((k - ARGUMENTS) / 8) as usize];
                    a = if k.is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 };
                }
                AND => a &= k,
                RETURN => return k,
                JUMP_EQUAL => at += if a == k { jt } else { jf },
                JUMP_GREATER => at += if a > k { jt } else { jf },
                JUMP_AT_LEAST => at += if a >= k { jt } else { jf },
                other => panic!("no instruction {other}"),
            }
        }
    }

    fn check(condition: &str, argument: u64, expected: bool) {
        let profile = format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"names": ["personality", "no_such_call"],
               "action": "SCMP_ACT_ALLOW", "args": [{condition}]}}]}}"#
        );
        let program = compile(profile.as_bytes()).expect("a profile");
        let found = verdict(&program, Sysno::personality as u32, [argument, 0, 0, 0, 0, 0]);
        assert_eq!(found == 0x7fff_0000, expected, "{condition} {argument:#x}");
        assert_eq!(verdict(&program, Sysno::read as u32, [0; 6]), ERRNO | 1);
    }

    #[test]
    fn arguments_are_compared_with_all_their_bits() {
        let rule = |op: &str, value: u64, two: u64| {
            format!(r#"{{"index": 0, "value": {value}, "valueTwo": {two}, "op": "SCMP_CMP_{op}"}}"#)
        };
        let big = 0x1_0000_0005_u64;
        for (op, below, same, above) in [
            ("EQ", false, true, false),
            ("NE", true, false, true),
            ("LT", true, false, false),
            ("LE", true, true, false),
            ("GT", false, false, true),
            ("GE", false, true, true),
        ] {
            check(&rule(op, big, 0), big - 1, below);
            check(&rule(op, big, 0), 5, below);
            check(&rule(op, big, 0), big, same);
            check(&rule(op, big, 0), big + 1, above);
            check(&rule(op, big, 0), big + (1 << 32), above);
        }
        check(&rule("MASKED_EQ", 0xff00_0000_000f, 0x1200_0000_0003), 0x12ab_cdef_0013, true);
        check(&rule("MASKED_EQ", 0xff00_0000_000f, 0x1200_0000_0003), 0x13ab_cdef_0013, false);
        let both = format!("{}, {}", rule("GE", 2, 0), rule("LE", 4, 0));
        check(&both, 3, true);
        check(&both, 5, false);
        check(&both, 1, false);
    }

    #[test]
    fn calls_get_the_action_of_their_rule_or_the_default() {
        let profile =
            br#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#;
        let program = compile(profile).expect("a profile");
        assert_eq!(verdict(&program, Sysno::mkdirat as u32, [0; 6]), ERRNO | 13);
        assert_eq!(verdict(&program, Sysno::reboot as u32, [0; 6]), 0x8000_0000);
        assert_eq!(verdict(&program, Sysno::read as u32, [0; 6]), 0x7fff_0000);
        assert_eq!(verdict(&program, X32 + 1, [0; 6]), ENOSYS);
    }

    #[test]
    fn what_is_not_served_is_named() {
        for (profile, part) in [
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "action SCMP_ACT_NOTIFY"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}"#, "listenerPath"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}"#, "FLAG_LOG"),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#,
                "argument 9",
            ),
        ] {
            let error = compile(profile.as_bytes()).expect_err("it is refused");
            assert!(error.contains(part), "{error}");
        }
    }
}
