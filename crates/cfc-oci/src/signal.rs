//! Signals by name, as `STOPSIGNAL`, image configs and Docker's clients give them (moby `pkg/signal`).

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
/// The first and the last of the real-time signals that programs may use, as musl and glibc count them.
const RTMIN: i32 = 34;
const MAX_SIGNAL: i32 = 64;

/// The number of a signal given as `SIGTERM`, `TERM`, `15`, `RTMIN+3` or `SIGRTMAX-1`; `None` where there is none.
pub fn parse_signal(text: &str) -> Option<i32> {
    let is_signal = |number: &i32| (1..=MAX_SIGNAL).contains(number);
    if let Ok(number) = text.parse::<i32>() {
        return Some(number).filter(is_signal);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = NAMES.iter().find(|(other, _)| *other == name).map(|(_, number)| *number);
    named.or_else(|| real_time(name)).filter(is_signal)
}

fn real_time(name: &str) -> Option<i32> {
    let distance = |rest: &str, sign: char| match rest.strip_prefix(sign) {
        Some(digits) => digits.parse::<i32>().ok().filter(|distance| (0..=MAX_SIGNAL - RTMIN).contains(distance)),
        None => rest.is_empty().then_some(0),
    };
    match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => distance(rest, '+').map(|distance| RTMIN + distance),
        (_, Some(rest)) => distance(rest, '-').map(|distance| MAX_SIGNAL - distance),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::parse_signal;

    #[test]
    fn signals_have_three_spellings() {
        assert_eq!([parse_signal("SIGTERM"), parse_signal("term"), parse_signal("15")], [Some(15); 3]);
        assert_eq!([parse_signal("0"), parse_signal("65"), parse_signal("SIGNONE"), parse_signal("")], [None; 4]);
    }

    #[test]
    fn real_time_signals_are_counted_from_both_ends() {
        assert_eq!([parse_signal("SIGRTMIN+3"), parse_signal("rtmax-14")], [Some(37), Some(50)]);
        assert_eq!([parse_signal("RTMIN"), parse_signal("RTMAX")], [Some(34), Some(64)]);
        assert_eq!([parse_signal("RTMIN+31"), parse_signal("RTMIN-1"), parse_signal("RTMAX+1")], [None; 3]);
    }
}
