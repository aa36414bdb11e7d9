//! [`Json`]: a JSON object a line, on stderr. Names of events and fields stay; new ones may come.
//!
//! Every event has `event` and `time` (seconds since 1970). `step-started`: `step` (a number), `name`, `stage`, `line`.
//! `step-output`: `step`, `stream`, `text`. `step-finished`: `step`, `outcome` (`built`, `cached`), `seconds`.
//! `step-failed`: `step`, `reason`. `warning`: `text`, and of a rule `rule`, `path`, `line`. `message`: `text`. `built`:
//! `name`, `digest`. `failed`: `message`, `causes`, `hint`.

use std::path::Path;

use cfc_oci::Digest;
use cfc_plan::{NodeOutcome, OutputStream};
use serde_json::json;

use super::Display;
use super::step::Step;
use crate::failure::Failure;
use crate::screen::write_event;

/// Writes events.
pub struct Json;

impl Display for Json {
    fn started(&mut self, step: &Step) {
        let Step { number, name, stage, line, .. } = step;
        write_event(json!({ "event": "step-started", "step": number, "name": name, "stage": stage, "line": line }));
    }

    fn output(&mut self, step: &Step, stream: OutputStream, line: &str) {
        let stream = match stream {
            OutputStream::Stdout => "stdout",
            OutputStream::Stderr => "stderr",
        };
        write_event(json!({ "event": "step-output", "step": step.number, "stream": stream, "text": line }));
    }

    fn finished(&mut self, step: &Step, outcome: NodeOutcome) {
        let outcome = match outcome {
            NodeOutcome::Built => "built",
            NodeOutcome::Cached => "cached",
        };
        let seconds = (step.seconds() * 1000.0).round() / 1000.0;
        write_event(json!({ "event": "step-finished", "step": step.number, "outcome": outcome, "seconds": seconds }));
    }

    fn failed(&mut self, step: &Step, reason: &str) {
        write_event(json!({ "event": "step-failed", "step": step.number, "reason": reason }));
    }
}

pub fn warning(rule: Option<&str>, text: &str, place: Option<(&Path, usize)>) {
    let mut event = json!({ "event": "warning", "text": text });
    if let (Some(rule), Some((path, line))) = (rule, place) {
        event["rule"] = rule.into();
        event["path"] = path.display().to_string().into();
        event["line"] = line.into();
    }
    write_event(event);
}

pub fn built(name: &str, digest: &Digest) {
    write_event(json!({ "event": "built", "name": name, "digest": digest }));
}

pub fn failure(failure: &Failure) {
    let Failure { message, causes, hint, .. } = failure;
    write_event(json!({ "event": "failed", "message": message, "causes": causes, "hint": hint }));
}
