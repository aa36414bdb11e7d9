//! [`MetricFamily`]: numbers for Prometheus, as values.

/// A metric with all its samples.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricFamily {
    /// `cfc_container_starts_total`.
    pub name: &'static str,
    /// What it counts, in one sentence.
    pub help: &'static str,
    /// How it may change.
    pub kind: MetricKind,
    /// One for each combination of labels.
    pub samples: Vec<Sample>,
}

/// How a metric may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// It counts by buckets.
    Histogram,
}

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// What follows the metric's name: `_bucket`, `_sum`, `_count`, or nothing.
    pub suffix: &'static str,
    /// Names and values.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: f64,
}

impl MetricFamily {
    /// A metric without samples yet.
    pub fn new(name: &'static str, kind: MetricKind, help: &'static str) -> MetricFamily {
        MetricFamily { name, help, kind, samples: Vec::new() }
    }

    /// Adds a sample.
    pub fn add(&mut self, labels: &[(&'static str, &str)], value: f64) {
        self.add_part("", labels, value);
    }

    /// Adds a sample of a histogram.
    pub fn add_part(&mut self, suffix: &'static str, labels: &[(&'static str, &str)], value: f64) {
        let labels = labels.iter().map(|(name, value)| (*name, value.to_string())).collect();
        self.samples.push(Sample { suffix, labels, value });
    }
}
