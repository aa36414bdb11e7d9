//! [`Step`]: a step as a person knows it, and [`Names`]: what BuildKit would call it.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use cfc_oci::Digest;
use cfc_plan::{Node, Op, Plan};

/// A line that does not end is cut here, in bytes.
const MAX_LINE_BYTES: usize = 64 << 10;

/// A step of a build.
pub struct Step {
    /// From 1, in the order in which they began.
    pub number: usize,
    /// `[base 2/3] RUN …`.
    pub name: String,
    pub stage: String,
    /// Its first line in the Dockerfile.
    pub line: u32,
    pub began: Instant,
    unfinished: Vec<u8>,
}

impl Step {
    pub fn new(number: usize, name: String, node: &Node) -> Step {
        let (stage, line) = (node.stage.clone(), node.span.start_line);
        Step { number, name, stage, line, began: Instant::now(), unfinished: Vec::new() }
    }

    /// How long it has been going on, in seconds.
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// The lines that `bytes` complete.
    pub fn lines(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.unfinished.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.unfinished.len() > MAX_LINE_BYTES {
                lines.extend(self.rest());
            }
        }
        lines
    }

    /// The line that has no end yet.
    pub fn rest(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.unfinished);
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        (!line.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
    }
}

/// What steps are called: stage, place in it, instruction.
#[derive(Default)]
pub struct Names(HashMap<Digest, String>);

impl Names {
    /// Those of a plan: `[2/4] RUN …`, with several stages `[build 2/4] RUN …`.
    pub fn of_plan(plan: &Plan) -> Names {
        // As with BuildKit, nothing and other stages are no steps to begin with.
        let shown = || plan.nodes.iter().filter(|node| !matches!(node.op, Op::Context { .. } | Op::Scratch));
        let mut totals: BTreeMap<&str, usize> = BTreeMap::new();
        shown().for_each(|node| *totals.entry(&node.stage).or_default() += 1);
        let has_stages = totals.len() > 1;
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        let names = shown().map(|node| {
            let place = places.entry(&node.stage).or_default();
            *place += 1;
            let stage = if has_stages { format!("{} ", stage_name(&node.stage)) } else { String::new() };
            (node.key.clone(), format!("[{stage}{place}/{}] {}", totals[node.stage.as_str()], one_line(&node.display)))
        });
        Names(names.collect())
    }

    pub fn of(&self, node: &Node) -> String {
        match &node.op {
            Op::Context { name: Some(name), .. } => format!("[context {name}] load from client"),
            Op::Context { name: None, .. } => "[internal] load build context".to_string(),
            _ => self.0.get(&node.key).cloned().unwrap_or_else(|| one_line(&node.display)),
        }
    }
}

/// As BuildKit calls a stage without a name.
fn stage_name(stage: &str) -> String {
    let is_number = !stage.is_empty() && stage.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { format!("stage-{stage}") } else { stage.to_string() }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
