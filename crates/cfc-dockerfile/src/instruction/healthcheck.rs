//! `HEALTHCHECK`, and durations as Go writes them.

use std::time::Duration;

use super::convert::Converted;
use super::flags::{Flags, Kind, Known};
use super::{Check, Command, Healthcheck};
use crate::parser::Node;
use crate::{Problem, ProblemKind};

const FLAGS: Known = &[
    ("interval", Kind::Text),
    ("timeout", Kind::Text),
    ("start-period", Kind::Text),
    ("start-interval", Kind::Text),
    ("retries", Kind::Text),
];

const MINIMUM: Duration = Duration::from_millis(1);

pub(super) fn healthcheck(node: &Node, problems: &mut Vec<Problem>) -> Converted<Healthcheck> {
    let flags = Flags::read(node, FLAGS, problems);
    let mut words = node.words().map(str::to_owned);
    let Some(kind) = words.next() else { return Err("HEALTHCHECK requires at least one argument".to_owned()) };
    let words: Vec<String> = words.collect();
    match kind.to_uppercase().as_str() {
        "NONE" if words.is_empty() => return Ok(Healthcheck::None),
        "NONE" => return Err("HEALTHCHECK NONE takes no arguments".to_owned()),
        "CMD" if words.is_empty() => return Err("missing command after HEALTHCHECK CMD".to_owned()),
        "CMD" => {}
        other => return Err(format!("unknown type `{other}` in HEALTHCHECK (try CMD)")),
    }
    let mut read = |name: &str| {
        interval(name, &flags).unwrap_or_else(|message| {
            let problem = Problem::new(ProblemKind::BadFlag, node.span, message);
            problems.push(problem.with_hint("a duration is a number with a unit: `500ms`, `30s`, `1m30s`"));
            None
        })
    };
    let check = Check {
        command: match node.is_json {
            true => Command::Exec(words),
            false => Command::Shell { text: words.join(" "), heredocs: Vec::new() },
        },
        interval: read("interval"),
        timeout: read("timeout"),
        start_period: read("start-period"),
        start_interval: read("start-interval"),
        retries: retries(&flags)?,
    };
    Ok(Healthcheck::Check(check))
}

/// The duration a flag gives; nothing and zero both mean the runtime's default.
fn interval(name: &str, flags: &Flags) -> Converted<Option<Duration>> {
    let Some(text) = flags.text(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    match parse_duration(&text) {
        None => Err(format!("invalid duration `{text}` on flag --{name}")),
        Some(duration) if duration.is_zero() => Ok(None),
        Some(duration) if duration < MINIMUM => Err(format!("interval --{name} cannot be less than 1ms")),
        Some(duration) => Ok(Some(duration)),
    }
}

fn retries(flags: &Flags) -> Converted<u32> {
    let Some(text) = flags.text("retries").filter(|text| !text.is_empty()) else { return Ok(0) };
    match text.parse::<i32>() {
        Ok(retries) => u32::try_from(retries).map_err(|_| format!("--retries cannot be negative ({retries})")),
        Err(_) => Err(format!("invalid number `{text}` on flag --retries")),
    }
}

/// `1h30m`, `1.5s`, `500ms`: numbers with units, one behind the other. `None` for anything else, negative ones too.
fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if text == "0" || text == "-0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut nanoseconds = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).filter(|&length| length > 0)?;
        let (number, after) = rest.split_at(digits);
        let length = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(length);
        nanoseconds += number.parse::<f64>().ok()? * unit_in_nanoseconds(unit)?;
        rest = after;
    }
    let is_in_range = !text.is_empty() && nanoseconds < i64::MAX as f64;
    is_in_range.then(|| Duration::from_nanos(nanoseconds as u64))
}

fn unit_in_nanoseconds(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1.0,
        "us" | "µs" | "μs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 60e9,
        "h" => 3600e9,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let milliseconds = |text| parse_duration(text).map(|duration| duration.as_millis());
        assert_eq!(milliseconds("1h30m"), Some(5_400_000));
        assert_eq!(milliseconds("1.5s"), Some(1_500));
        assert_eq!(milliseconds(".5s"), Some(500));
        assert_eq!(milliseconds("250ms"), Some(250));
        assert_eq!(milliseconds("0"), Some(0));
        for wrong in ["", "5", "-5s", "5 s", "s", "5d", "1..5s", "9999999999h"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }
}
