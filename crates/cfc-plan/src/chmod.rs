//! [`ModeChange`]: the value of `--chmod`, octal or symbolic.

use std::fmt;

use serde::Serialize;

const ALL: u32 = 0o777;

/// What becomes of permission bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModeChange {
    /// These bits, whatever they were.
    Bits(u32),
    /// One change after the other.
    Changes(Vec<SymbolicChange>),
}

/// One change, as `g+rX`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SymbolicChange {
    /// The bits it is about: 0o700 for `u`, 0o070 for `g`, 0o007 for `o`.
    who: u32,
    operator: Operator,
    /// Bits for everybody, which `who` masks.
    bits: u32,
    /// `X`: execute and search, for directories and for what somebody may execute already.
    is_conditional_execute: bool,
    /// `u`, `g`, `o` behind the operator: the bits that these have.
    copied_from: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Operator {
    Add,
    Remove,
    Set,
}

impl ModeChange {
    /// Reads `755`, `0644`, `u=rwX,go=rX`, `+x`; a message says why not.
    pub fn parse(text: &str) -> Result<ModeChange, String> {
        let expected = || "expected an octal number up to 7777, or letters as in `u=rwX,go=rX`".to_string();
        if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
            let bits = u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o7777);
            return bits.map(ModeChange::Bits).ok_or_else(expected);
        }
        let mut changes = Vec::new();
        for clause in text.split(',') {
            parse_clause(clause, &mut changes).ok_or_else(expected)?;
        }
        Ok(ModeChange::Changes(changes))
    }

    /// What `mode` becomes.
    pub fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        match self {
            ModeChange::Bits(bits) => *bits,
            ModeChange::Changes(changes) => changes.iter().fold(mode, |mode, change| change.apply(mode, is_directory)),
        }
    }
}

/// As [`ModeChange::parse`] reads it.
impl fmt::Display for ModeChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModeChange::Bits(bits) => write!(f, "{bits:o}"),
            ModeChange::Changes(changes) => {
                let clauses: Vec<String> = changes.iter().map(SymbolicChange::to_string).collect();
                f.write_str(&clauses.join(","))
            }
        }
    }
}

impl fmt::Display for SymbolicChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = |mask: u32| {
            let letters = [(0o700, 'u'), (0o070, 'g'), (0o007, 'o')];
            letters.into_iter().filter(move |(bits, _)| mask & bits != 0).map(|(_, letter)| letter).collect::<String>()
        };
        let operator = match self.operator {
            Operator::Add => '+',
            Operator::Remove => '-',
            Operator::Set => '=',
        };
        write!(f, "{}{operator}", groups(self.who))?;
        let letters = [(0o444, 'r'), (0o222, 'w'), (0o111, 'x'), (0o6000, 's'), (0o1000, 't')];
        letters.iter().filter(|(bits, _)| self.bits & bits != 0).try_for_each(|(_, letter)| write!(f, "{letter}"))?;
        if self.is_conditional_execute {
            f.write_str("X")?;
        }
        self.copied_from.map_or(Ok(()), |mask| f.write_str(&groups(mask)))
    }
}

/// `[ugoa]*` and then, once or several times, an operator and what it is about.
fn parse_clause(clause: &str, changes: &mut Vec<SymbolicChange>) -> Option<()> {
    let operators = ['+', '-', '='];
    let (who, mut rest) = clause.split_at(clause.find(operators)?);
    let mut mask = 0;
    for letter in who.chars() {
        mask |= if letter == 'a' { ALL } else { group_of(letter)? };
    }
    // BuildKit's builders have no umask of their own: nobody means everybody.
    let who = if mask == 0 { ALL } else { mask };
    while let Some(operator) = rest.chars().next() {
        let operator = match operator {
            '+' => Operator::Add,
            '-' => Operator::Remove,
            _ => Operator::Set,
        };
        let end = rest[1..].find(operators).map_or(rest.len(), |end| end + 1);
        changes.push(parse_bits(who, operator, &rest[1..end])?);
        rest = &rest[end..];
    }
    Some(())
}

fn parse_bits(who: u32, operator: Operator, letters: &str) -> Option<SymbolicChange> {
    let mut change = SymbolicChange { who, operator, bits: 0, is_conditional_execute: false, copied_from: None };
    for letter in letters.chars() {
        match letter {
            'r' => change.bits |= 0o444,
            'w' => change.bits |= 0o222,
            'x' => change.bits |= 0o111,
            'X' => change.is_conditional_execute = true,
            's' => change.bits |= 0o6000,
            't' => change.bits |= 0o1000,
            _ if letters.len() == 1 => change.copied_from = Some(group_of(letter)?),
            _ => return None,
        }
    }
    Some(change)
}

fn group_of(letter: char) -> Option<u32> {
    match letter {
        'u' => Some(0o700),
        'g' => Some(0o070),
        'o' => Some(0o007),
        _ => None,
    }
}

impl SymbolicChange {
    fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        let mut bits = self.bits;
        if self.is_conditional_execute && (is_directory || mode & 0o111 != 0) {
            bits |= 0o111;
        }
        if let Some(group) = self.copied_from {
            let shift = group.trailing_zeros();
            bits |= ((mode & group) >> shift) * 0o111;
        }
        let special = (if self.who & 0o700 != 0 { 0o4000 } else { 0 })
            | (if self.who & 0o070 != 0 { 0o2000 } else { 0 })
            | (if self.who == ALL || self.who & 0o007 != 0 { 0o1000 } else { 0 });
        let bits = bits & (self.who | special);
        match self.operator {
            Operator::Add => mode | bits,
            Operator::Remove => mode & !bits,
            // chmod(1) keeps a directory's set-id bits where they are not spoken of.
            Operator::Set if is_directory => (mode & !self.who & !(special & 0o1000)) | bits,
            Operator::Set => (mode & !(self.who | special)) | bits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ModeChange;

    #[test]
    fn modes_change_as_with_chmod() {
        let cases = [
            ("755", 0o600, false, 0o755),
            ("01777", 0o600, true, 0o1777),
            ("+x", 0o644, false, 0o755),
            ("a-w", 0o666, false, 0o444),
            ("u=rwX,go=rX", 0o640, false, 0o644),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("u=rwX,go=rX", 0o640, true, 0o755),
            ("g=u", 0o640, false, 0o660),
            ("u+s,g-r+x", 0o755, false, 0o4715),
            ("o=", 0o777, false, 0o770),
        ];
        for (text, mode, is_directory, expected) in cases {
            let change = ModeChange::parse(text).expect(text);
            assert_eq!(change.apply(mode, is_directory), expected, "{text} of {mode:o}");
        }
    }

    #[test]
    fn changes_are_written_as_they_are_read() {
        for text in ["755", "1777", "ugo+x", "u=rwX,go=rX", "g=u", "u+s,g-r,g+x", "o=", "ugo+t"] {
            assert_eq!(ModeChange::parse(text).expect(text).to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "888", "77777", "u", "rwx", "u+q", "u~x", "z+x", "u+x,", "g=uo"] {
            assert!(ModeChange::parse(text).is_err(), "{text}");
        }
    }
}
