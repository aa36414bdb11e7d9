//! [`Watch`]: what the daemon says of its operations, told as the plan's steps.

use std::collections::{HashMap, HashSet, VecDeque};

use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog, VertexStatus};
use cfc_plan::{BuildError, BuildProgress, Node, NodeId, NodeOutcome, Op, OutputStream, Plan};

use crate::failure::Failure;
use crate::llb::State;
use crate::lowering::{CONTEXT, Lowered};

/// How many lines an error message shows.
const TAIL_LINES: usize = 20;
/// A longer line is cut, in bytes.
const MAX_LINE_BYTES: usize = 1000;
/// How the daemon calls the stream of errors.
const STDERR: i64 = 2;

/// Follows one build.
pub(crate) struct Watch<'a> {
    plan: &'a Plan,
    progress: &'a dyn BuildProgress,
    nodes: HashMap<String, NodeId>,
    groups: HashMap<String, NodeId>,
    ends: HashSet<String>,
    names: Vec<String>,
    started: HashSet<NodeId>,
    finished: HashSet<NodeId>,
    /// Whose results come out of a shared cache, layer by layer: each is said to be the end of the operation.
    brought: HashSet<NodeId>,
    tails: HashMap<NodeId, Tail>,
    /// The first operation that failed, and why.
    failed: Option<(Option<NodeId>, String)>,
}

#[derive(Default)]
struct Tail {
    lines: VecDeque<String>,
    unfinished: Vec<u8>,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(plan: &'a Plan, progress: &'a dyn BuildProgress) -> Watch<'a> {
        Watch {
            plan,
            progress,
            nodes: HashMap::new(),
            groups: HashMap::new(),
            ends: HashSet::new(),
            names: Vec::new(),
            started: HashSet::new(),
            finished: HashSet::new(),
            brought: HashSet::new(),
            tails: HashMap::new(),
            failed: None,
        }
    }

    /// From now on the daemon speaks of these operations.
    pub(crate) fn knows(&mut self, lowered: &Lowered) {
        self.nodes = lowered.nodes.clone();
        self.groups = lowered.groups.clone();
        self.ends = lowered.ends.iter().filter_map(State::digest).map(str::to_string).collect();
        self.names = lowered.names.clone();
    }

    pub(crate) fn hear(&mut self, said: &StatusResponse) {
        // Whose they are is known from operations that are told of at the same time.
        for vertex in &said.vertexes {
            self.node(vertex);
        }
        said.statuses.iter().for_each(|status| self.status(status));
        said.vertexes.iter().for_each(|vertex| self.vertex(vertex));
        said.logs.iter().for_each(|log| self.log(log));
        for warning in &said.warnings {
            let warning = String::from_utf8_lossy(&warning.short).into_owned();
            self.progress.warned(&warning);
        }
    }

    fn vertex(&mut self, vertex: &Vertex) {
        tracing::trace!(?vertex, "the daemon says this of an operation");
        let node = self.node(vertex);
        if !vertex.error.is_empty() {
            let is_consequence = vertex.error.contains("context canceled");
            if self.failed.is_none() && !is_consequence {
                self.failed = Some((node, vertex.error.clone()));
            }
            return;
        }
        if let Some(node) = node.filter(|_| vertex.started.is_some()) {
            self.start(node);
        }
        let outcome = if vertex.cached { NodeOutcome::Cached } else { NodeOutcome::Built };
        let is_over = |node: &NodeId| vertex.cached || !self.brought.contains(node);
        if let Some(node) =
            node.filter(|node| vertex.completed.is_some() && self.is_end(vertex, *node) && is_over(node))
        {
            self.finish(node, outcome);
        }
    }

    /// What is on its way to the daemon. Only what is known already comes to an operation that makes something.
    fn status(&mut self, status: &VertexStatus) {
        let Some(node) = self.nodes.get(&status.vertex).copied() else { return };
        let is_layer = status.id.contains("sha256:");
        let makes = !matches!(self.plan.node(node).op, Op::Scratch | Op::Image { .. } | Op::Context { .. });
        if is_layer && makes {
            self.brought.insert(node);
        }
    }

    /// Whose operation it is: by our digest of it, or by its group where the daemon has a digest of its own.
    fn node(&mut self, vertex: &Vertex) -> Option<NodeId> {
        if let Some(node) = self.nodes.get(&vertex.digest) {
            return Some(*node);
        }
        let node = *self.groups.get(&vertex.progress_group.as_ref()?.id)?;
        // What a program writes is told by digest only.
        self.nodes.insert(vertex.digest.clone(), node);
        Some(node)
    }

    fn is_end(&self, vertex: &Vertex, node: NodeId) -> bool {
        self.ends.contains(&vertex.digest) || self.names.get(node.0).is_some_and(|name| *name == vertex.name)
    }

    fn start(&mut self, node: NodeId) {
        if self.started.insert(node) {
            self.progress.started(self.plan.node(node));
        }
    }

    fn finish(&mut self, node: NodeId, outcome: NodeOutcome) {
        self.start(node);
        if self.finished.insert(node) {
            self.progress.finished(self.plan.node(node), outcome);
        }
    }

    fn log(&mut self, log: &VertexLog) {
        let Some(node) = self.nodes.get(&log.vertex).copied() else { return };
        self.start(node);
        let stream = if log.stream == STDERR { OutputStream::Stderr } else { OutputStream::Stdout };
        self.progress.output(self.plan.node(node), stream, &log.msg);
        self.tails.entry(node).or_default().add(&log.msg);
    }

    /// It went well: what the daemon did not speak of, it had already.
    pub(crate) fn succeed(&mut self) {
        for index in 0..self.plan.nodes.len() {
            self.finish(NodeId(index), NodeOutcome::Cached);
        }
    }

    /// It did not, as `answer` says: the error of the instruction that is to blame.
    pub(crate) fn fail(mut self, answer: Failure) -> BuildError {
        let Some((node, error)) = self.failed.take() else { return answer.of(self.plan, None) };
        // Of a lost connection or a full disk more is known than of what it did to an operation.
        let (failure, node) = match answer.hint.is_some() {
            true => (answer, node),
            false => (explained(&error), node),
        };
        let Some(node) = node else { return failure.of(self.plan, None) };
        let output = self.tails.remove(&node).map(Tail::into_lines).unwrap_or_default();
        let node: &Node = self.plan.node(node);
        self.progress.failed(node, &failure.message);
        Failure { output, ..failure }.of(self.plan, Some(node))
    }

    /// The same for an instruction that was not even begun.
    pub(crate) fn refuse(self, node: NodeId, failure: Failure) -> BuildError {
        let node = self.plan.node(node);
        self.progress.started(node);
        self.progress.failed(node, &failure.message);
        failure.of(self.plan, Some(node))
    }
}

/// What the daemon says of a program or a path, in the words in which the native executor says it.
fn explained(error: &str) -> Failure {
    if let Some(code) = error.rsplit_once("exit code: ").and_then(|(_, code)| code.trim().parse::<u32>().ok()) {
        let failure = Failure::new(format!("it exited with code {code}"));
        return match code {
            127 => failure.hint("the shell found no such command in the image"),
            126 => failure.hint("the command is in the image, but it cannot be executed"),
            137 => failure.hint("code 137 is SIGKILL: often there was not enough memory"),
            _ => failure,
        };
    }
    if let Some(path) = missing_path(error) {
        return Failure::new(format!("there is no `{path}`")).hint(format!(
            "sources are relative to the build {CONTEXT}, not to the Dockerfile; with --from, to what that names"
        ));
    }
    Failure::new(error.to_string())
}

/// `… "/path": not found`, and `"/path" not found` of older daemons.
fn missing_path(error: &str) -> Option<&str> {
    let before = error.strip_suffix(": not found").unwrap_or(error);
    let before = before.strip_suffix(" not found").unwrap_or(before).trim_end_matches(':');
    let is_missing = before.len() < error.len();
    let quoted = before.strip_suffix('"').filter(|_| is_missing)?;
    quoted.rsplit_once('"').map(|(_, path)| path.trim_start_matches('/'))
}

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                _ if self.unfinished.len() < MAX_LINE_BYTES => self.unfinished.push(*byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        if self.unfinished.is_empty() {
            return;
        }
        if self.lines.len() == TAIL_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(String::from_utf8_lossy(&self.unfinished).trim_end_matches('\r').to_string());
        self.unfinished.clear();
    }

    fn into_lines(mut self) -> Vec<String> {
        self.end_line();
        self.lines.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_old_and_new_daemons_read_like_our_own() {
        for (error, message) in [
            ("executor failed running [/bin/sh -c exit 3]: exit code: 3", "it exited with code 3"),
            ("process \"/bin/sh -c exit 3\" did not complete successfully: exit code: 3", "it exited with code 3"),
            ("failed to compute cache key: \"/x y\" not found: not found", "there is no `x y`"),
            ("failed to calculate checksum of ref a::b: \"/x\": not found", "there is no `x`"),
            ("something else: not found", "something else: not found"),
        ] {
            assert_eq!(explained(error).message, message);
        }
    }
}
