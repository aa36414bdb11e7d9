//! `VOLUME`, `SHELL`, `HEALTHCHECK` and `MAINTAINER`: what only changes the config.

use std::time::Duration;

use cfc_dockerfile::{Check, Command, Healthcheck, Span};
use cfc_oci::Empty;

use crate::PlanError;
use crate::stage::StageLowering;

impl StageLowering<'_, '_> {
    pub(crate) fn volume(&mut self, words: &[String], span: Span) -> Result<(), PlanError> {
        let paths: Vec<String> = words.iter().map(|word| self.expand(word, span)).collect::<Result<_, _>>()?;
        if paths.iter().any(String::is_empty) {
            return Err(self.error(span, "`VOLUME` names nothing: its variables are empty".to_string()));
        }
        let known = self.container().volumes.get_or_insert_default();
        known.extend(paths.iter().map(|path| (path.clone(), Empty {})));
        self.commit_config(format!("VOLUME [{}]", paths.join(" ")));
        Ok(())
    }

    pub(crate) fn shell(&mut self, words: &[String]) {
        self.container().shell = Some(words.to_vec());
        self.commit_config(format!("SHELL [{}]", words.join(" ")));
    }

    pub(crate) fn maintainer(&mut self, word: &str, span: Span) -> Result<(), PlanError> {
        let name = self.expand(word, span)?;
        self.state.config.author = Some(name.clone());
        self.commit_config(format!("MAINTAINER {name}"));
        Ok(())
    }

    pub(crate) fn healthcheck(&mut self, healthcheck: &Healthcheck) {
        let healthcheck = match healthcheck {
            Healthcheck::None => {
                cfc_oci::Healthcheck { test: vec!["NONE".to_string()], ..cfc_oci::Healthcheck::default() }
            }
            Healthcheck::Check(check) => of_check(check),
        };
        self.commit_config(format!("HEALTHCHECK {}", shown(&healthcheck)));
        self.container().healthcheck = Some(healthcheck);
    }
}

fn of_check(check: &Check) -> cfc_oci::Healthcheck {
    let test = match &check.command {
        Command::Exec(args) => std::iter::once("CMD".to_string()).chain(args.iter().cloned()).collect(),
        Command::Shell { text, .. } => vec!["CMD-SHELL".to_string(), text.clone()],
    };
    let nanoseconds = |duration: Option<Duration>| duration.map_or(0, |duration| duration.as_nanos() as i64);
    cfc_oci::Healthcheck {
        test,
        interval: nanoseconds(check.interval),
        timeout: nanoseconds(check.timeout),
        start_period: nanoseconds(check.start_period),
        start_interval: nanoseconds(check.start_interval),
        retries: i64::from(check.retries),
    }
}

/// As Go prints the structure with `%+v`.
fn shown(healthcheck: &cfc_oci::Healthcheck) -> String {
    format!(
        "{{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        healthcheck.test.join(" "),
        go_duration(healthcheck.interval),
        go_duration(healthcheck.timeout),
        go_duration(healthcheck.start_period),
        go_duration(healthcheck.start_interval),
        healthcheck.retries
    )
}

/// Nanoseconds as Go writes a duration: `1h2m0s`, `1.5s`, `20ms`, `0s`.
fn go_duration(nanoseconds: i64) -> String {
    let fraction = |number: i64, unit: i64, name: &str| {
        let digits = unit.ilog10() as usize;
        let rest = format!("{:0digits$}", number % unit);
        let rest = rest.trim_end_matches('0');
        let point = if rest.is_empty() || digits == 0 { "" } else { "." };
        let rest = if digits == 0 { "" } else { rest };
        format!("{}{point}{rest}{name}", number / unit)
    };
    match nanoseconds {
        0 => "0s".to_string(),
        1..1_000 => format!("{nanoseconds}ns"),
        1_000..1_000_000 => fraction(nanoseconds, 1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(nanoseconds, 1_000_000, "ms"),
        _ => {
            let minutes = nanoseconds / 60_000_000_000;
            let seconds = fraction(nanoseconds % 60_000_000_000, 1_000_000_000, "s");
            match minutes {
                0 => seconds,
                1..60 => format!("{minutes}m{seconds}"),
                _ => format!("{}h{}m{seconds}", minutes / 60, minutes % 60),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::go_duration;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        let cases = [
            (0, "0s"),
            (1_500_000, "1.5ms"),
            (20_000_000, "20ms"),
            (1_500_000_000, "1.5s"),
            (30_000_000_000, "30s"),
            (60_000_000_000, "1m0s"),
            (3_720_000_000_000, "1h2m0s"),
        ];
        for (nanoseconds, expected) in cases {
            assert_eq!(go_duration(nanoseconds), expected);
        }
    }
}
