//! [`Rollout`]: how a new version reaches running instances.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::table::{Table, described, list, whole};

/// How a new version reaches running instances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Percentages of the instances, ascending, the last one 100. With `uniform`, the one size of each step.
    pub step_percentages: Vec<u32>,
    /// Whether the config gave one number instead of a list: each step is then that large.
    pub uniform: bool,
    /// Who advances it.
    pub kind: RolloutKind,
    /// Seconds that a running instance may go on after it was chosen.
    pub active_grace_period_seconds: u64,
}

/// Who advances a rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutKind {
    /// The platform, step after step.
    #[default]
    FullAuto,
    /// A person.
    FullManual,
    /// Nobody: running instances keep their version.
    None,
}

/// The sizes that a uniform step may have.
const UNIFORM_STEPS: &[u64] = &[5, 10, 20, 25, 50, 100];

/// Reads the `rollout_…` fields of a container.
pub(crate) fn read(table: &Table, max_instances: u32) -> Rollout {
    for field in ["rollout_kind", "rollout_step_percentage", "rollout_active_grace_period"] {
        if table.value(field).is_some() {
            table.warning(field, "has no effect yet: a deploy replaces all instances at once");
        }
    }
    let kind = match table.one_of("rollout_kind", &["full_auto", "full_manual", "none"]) {
        Some("full_manual") => RolloutKind::FullManual,
        Some("none") => RolloutKind::None,
        _ => RolloutKind::FullAuto,
    };
    let (step_percentages, uniform) = steps(table, max_instances);
    let active_grace_period_seconds = table.whole_number("rollout_active_grace_period").unwrap_or(0);
    Rollout { step_percentages, uniform, kind, active_grace_period_seconds }
}

fn steps(table: &Table, max_instances: u32) -> (Vec<u32>, bool) {
    const FIELD: &str = "rollout_step_percentage";
    let default = if max_instances < 2 { (vec![100], true) } else { (vec![10, 100], false) };
    match table.value(FIELD) {
        None => default,
        Some(Value::Array(items)) => {
            let steps: Option<Vec<u64>> = items.iter().map(whole).collect();
            let steps = steps.unwrap_or_default();
            let ascends = steps.windows(2).all(|pair| pair[0] < pair[1]);
            let in_range = steps.iter().all(|step| (10..=100).contains(step));
            if !ascends || !in_range || steps.last() != Some(&100) {
                table.problem(
                    FIELD,
                    "expected ascending percentages from 10 to 100, the last one 100",
                    "for example `[10, 50, 100]`",
                );
            } else if steps.len() as u64 > u64::from(max_instances.max(1)) {
                let message = format!("{} steps are more than `max_instances` ({max_instances})", steps.len());
                table.problem(FIELD, message, "use fewer steps");
            }
            (steps.into_iter().map(|step| step as u32).collect(), false)
        }
        Some(value) => match whole(value).filter(|step| UNIFORM_STEPS.contains(step)) {
            Some(step) => (vec![step as u32], true),
            None => {
                let words: Vec<String> = UNIFORM_STEPS.iter().map(u64::to_string).collect();
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                table.problem(
                    FIELD,
                    format!("expected one of {}, or a list, found {}", list(&words), described(value)),
                    "",
                );
                default
            }
        },
    }
}
