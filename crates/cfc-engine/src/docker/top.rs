//! A container's processes, as `GET /containers/<name>/top` tells them: what `ps -ef` prints.

use std::time::{Duration, SystemTime};

use cfc_runtime::{Process, rfc3339};
use serde_json::{Value, json};

/// The processes, of which each is numbered as the machine numbers it.
pub(crate) fn top(processes: &[Process]) -> Value {
    let rows: Vec<[String; 8]> = processes.iter().map(row).collect();
    json!({ "Titles": ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"], "Processes": rows })
}

fn row(process: &Process) -> [String; 8] {
    let age = process.started.elapsed().unwrap_or_default();
    let share = process.cpu.as_secs_f64() / age.as_secs_f64().max(1.0) * 100.0;
    [
        process.uid.to_string(),
        process.pid.to_string(),
        process.parent.to_string(),
        format!("{:.0}", share.min(99.0)),
        started(process.started, age),
        "?".to_string(),
        clock(process.cpu),
        process.command.clone(),
    ]
}

/// The hour and minute; of one that is older than a day, the date.
fn started(time: SystemTime, age: Duration) -> String {
    const DAY: Duration = Duration::from_secs(86_400);
    let text = rfc3339(time);
    let part = if age < DAY { text.get(11..16) } else { text.get(5..10) };
    part.unwrap_or_default().to_string()
}

fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}
