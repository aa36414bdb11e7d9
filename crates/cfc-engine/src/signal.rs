//! Signals by the names that Docker's clients send.

/// The signals that have a name, on Linux.
const NAMES: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];
const MAX_SIGNAL: i32 = 64;

/// The number of a signal given as `SIGTERM`, `TERM` or `15`.
pub(crate) fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=MAX_SIGNAL).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    NAMES.iter().find(|(other, _)| *other == name).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn signals_have_three_spellings() {
        assert_eq!([parse("SIGTERM"), parse("term"), parse("15")], [Some(15); 3]);
        assert_eq!([parse("0"), parse("65"), parse("SIGNONE"), parse("")], [None; 4]);
    }
}
