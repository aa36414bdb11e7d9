//! [`Plain`]: line by line, as BuildKit's plain progress writes it (`util/progress/progressui`).

use std::collections::HashSet;

use cfc_plan::{NodeOutcome, OutputStream};

use super::Display;
use super::step::Step;
use crate::screen;

/// `#5 [2/4] RUN …`, `#5 0.123 output`, `#5 DONE 0.3s`.
#[derive(Default)]
pub struct Plain {
    /// Whose lines were written last.
    current: Option<usize>,
    finished: HashSet<usize>,
}

impl Plain {
    /// Writes a line of `step`, under its name where another's came before.
    fn line(&mut self, step: &Step, text: &str) {
        if self.current != Some(step.number) {
            if let Some(other) = self.current {
                let goes_on = !self.finished.contains(&other);
                screen::write_lines(&if goes_on { format!("#{other} ...\n") } else { String::new() });
            }
            self.current = Some(step.number);
            screen::write_lines(&format!("#{} {}", step.number, step.name));
        }
        if !text.is_empty() {
            screen::write_lines(&format!("#{} {text}", step.number));
        }
    }
}

impl Display for Plain {
    fn started(&mut self, step: &Step) {
        self.line(step, "");
    }

    fn output(&mut self, step: &Step, _: OutputStream, line: &str) {
        self.line(step, &format!("{:.3} {line}", step.seconds()));
    }

    fn finished(&mut self, step: &Step, outcome: NodeOutcome) {
        self.line(
            step,
            &match outcome {
                NodeOutcome::Built => format!("DONE {:.1}s", step.seconds()),
                NodeOutcome::Cached => "CACHED".to_string(),
            },
        );
        self.finished.insert(step.number);
    }

    fn failed(&mut self, step: &Step, reason: &str) {
        self.line(step, &format!("ERROR: {reason}"));
        self.finished.insert(step.number);
    }
}
