//! `cfc containers stats`: what live instances use.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use cfc_control::{Client, InstanceStats};

use super::{print_json, short};
use crate::args::Stats;
use crate::failure::Failure;
use crate::output;
use crate::server::client::control_failure;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(2);
/// A processor's share is told by two readings this far apart, where there are no others.
const FIRST_INTERVAL: Duration = Duration::from_millis(500);
const HEADER: [&str; 8] =
    ["INSTANCE", "APPLICATION", "CPU", "MEMORY / LIMIT", "DISK / LIMIT", "NET IN / OUT", "TUNNELS", "PIDS"];

/// Prints a table every two seconds; with `--no-stream` one. JSON is one array a look, each in a line.
pub async fn run(client: &Client, arguments: &Stats) -> Result<ExitCode, Failure> {
    let mut before = Readings::default();
    if !arguments.json {
        before.keep(&read(client, arguments).await?);
        tokio::time::sleep(FIRST_INTERVAL).await;
    }
    loop {
        let stats = read(client, arguments).await?;
        match (arguments.json, arguments.no_stream) {
            (true, true) => print_json(&stats)?,
            (true, false) => output::data(serde_json::to_string(&stats)?),
            (false, _) => show(&stats, &before, arguments.no_stream),
        }
        if arguments.no_stream {
            return Ok(ExitCode::SUCCESS);
        }
        before.keep(&stats);
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn read(client: &Client, arguments: &Stats) -> Result<Vec<InstanceStats>, Failure> {
    client.stats(arguments.application.as_deref()).await.map_err(control_failure)
}

fn show(stats: &[InstanceStats], before: &Readings, is_only: bool) {
    if !is_only && std::io::stdout().is_terminal() {
        // Back to the top, and clear what was there.
        output::bytes(b"\x1b[H\x1b[J");
    }
    let rows: Vec<Vec<String>> = stats.iter().map(|stats| row(stats, before)).collect();
    output::table(&HEADER, &rows);
}

fn row(stats: &InstanceStats, before: &Readings) -> Vec<String> {
    let disk = match (stats.disk_bytes, stats.disk_limit_bytes) {
        (Some(used), Some(limit)) => format!("{} / {}", size(used), size(limit)),
        _ => "-".to_string(),
    };
    vec![
        short(&stats.name),
        stats.application.clone(),
        before.cpu_percent(stats).map_or("-".to_string(), |percent| format!("{percent:.1}%")),
        format!("{} / {}", size(stats.memory_bytes), size(stats.memory_limit_bytes)),
        disk,
        format!("{} / {}", size(stats.received_bytes), size(stats.sent_bytes)),
        stats.tunnels_open.to_string(),
        stats.pids.to_string(),
    ]
}

/// What each instance had used at the look before.
#[derive(Default)]
struct Readings(HashMap<String, (u64, u64)>);

impl Readings {
    fn keep(&mut self, stats: &[InstanceStats]) {
        self.0 = stats.iter().map(|stats| (stats.id.clone(), (stats.read_at_ms, stats.cpu_usec))).collect();
    }

    /// The share of one processor since the look before; 200 is two processors.
    fn cpu_percent(&self, stats: &InstanceStats) -> Option<f64> {
        let (read_at_ms, cpu_usec) = self.0.get(&stats.id)?;
        let elapsed_ms = stats.read_at_ms.checked_sub(*read_at_ms).filter(|elapsed| *elapsed > 0)?;
        // Less than before: it was started anew.
        let used_usec = stats.cpu_usec.checked_sub(*cpu_usec)?;
        Some(used_usec as f64 / 10.0 / elapsed_ms as f64)
    }
}

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_digit_behind_the_point() {
        assert_eq!([size(0), size(1023), size(1536), size(4 << 30)], ["0 B", "1023 B", "1.5 KiB", "4.0 GiB"]);
    }

    #[test]
    fn a_processors_share_is_what_was_used_since_the_look_before() {
        let json = serde_json::json!({
            "id": "i", "name": "i", "application": "a", "cpu_usec": 1_500_000, "read_at_ms": 3_000, "vcpu": 1.0,
            "memory_bytes": 0, "memory_peak_bytes": 0, "memory_anonymous_bytes": 0, "memory_limit_bytes": 0,
            "pids": 1, "network_bytes": 0
        });
        let stats: InstanceStats = serde_json::from_value(json).expect("has its form");
        let readings = |read_at_ms, cpu_usec| Readings([("i".to_string(), (read_at_ms, cpu_usec))].into());
        assert_eq!(readings(1_000, 500_000).cpu_percent(&stats), Some(50.0));
        assert_eq!(readings(3_000, 500_000).cpu_percent(&stats), None, "no time has passed");
        assert_eq!(readings(1_000, 2_000_000).cpu_percent(&stats), None, "it was started anew");
        assert_eq!(Readings::default().cpu_percent(&stats), None);
    }
}
