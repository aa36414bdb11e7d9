//! Prometheus's text format, version 0.0.4. Written here: a crate for it would bring a registry, its own clock and
//! quantiles, of which nothing is needed to print numbers that are already counted.

use std::fmt::Write;

use crate::{MetricFamily, MetricKind};

pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All of a scrape.
pub(crate) fn render(families: &[MetricFamily]) -> String {
    let mut text = String::new();
    for family in families {
        let kind = match family.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {} {}\n# TYPE {} {kind}", family.name, family.help, family.name);
        for sample in &family.samples {
            let labels: Vec<String> =
                sample.labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(text, "{}{}{labels} {}", family.name, sample.suffix, sample.value);
        }
    }
    text
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_reads_as_prometheus_writes_it() {
        let mut counter = MetricFamily::new("cfc_starts_total", MetricKind::Counter, "Starts.");
        counter.add(&[("application", "a\"b\\c")], 3.0);
        let mut histogram = MetricFamily::new("cfc_start_seconds", MetricKind::Histogram, "How long.");
        histogram.add_part("_bucket", &[("le", "0.005")], 1.0);
        histogram.add_part("_sum", &[], 0.25);
        let expected = "# HELP cfc_starts_total Starts.\n# TYPE cfc_starts_total counter\n\
                        cfc_starts_total{application=\"a\\\"b\\\\c\"} 3\n\
                        # HELP cfc_start_seconds How long.\n# TYPE cfc_start_seconds histogram\n\
                        cfc_start_seconds_bucket{le=\"0.005\"} 1\ncfc_start_seconds_sum 0.25\n";
        assert_eq!(render(&[counter, histogram]), expected);
    }
}
