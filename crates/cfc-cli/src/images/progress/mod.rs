//! [`Progress`]: how a build goes, as `--progress` wants it shown.

mod json;
mod live;
mod plain;
mod step;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cfc_oci::Digest;
use cfc_plan::{BuildProgress, LintWarning, Node, NodeOutcome, Op, OutputStream, Plan};

use self::json::Json;
use self::live::Live;
use self::plain::Plain;
use self::step::{Names, Step};
use crate::failure::Failure;
use crate::screen::{self, Mode};

/// How a build is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// [`Style::Live`] on a terminal, else [`Style::Plain`].
    #[default]
    Auto,
    /// Drawn again and again.
    Live,
    /// Line by line.
    Plain,
    /// A JSON object a line.
    Json,
    /// Not at all.
    Quiet,
}

impl Style {
    /// What `--progress` says, else the environment: `CFC_PROGRESS`, else `BUILDKIT_PROGRESS`, of whose values some are
    /// BuildKit's alone.
    pub fn choose(flag: Option<&str>) -> Result<Style, Failure> {
        let variable = |name: &'static str| Some((name, std::env::var(name).ok().filter(|value| !value.is_empty())?));
        let from_flag = flag.map(|value| ("--progress", value.to_string()));
        let chosen = from_flag.or_else(|| variable("CFC_PROGRESS")).or_else(|| variable("BUILDKIT_PROGRESS"));
        let Some((source, value)) = chosen else { return Ok(Style::Auto) };
        match value.as_str() {
            "auto" => Ok(Style::Auto),
            "tty" => Ok(Style::Live),
            "plain" => Ok(Style::Plain),
            "json" => Ok(Style::Json),
            "quiet" => Ok(Style::Quiet),
            _ if source == "BUILDKIT_PROGRESS" => Ok(Style::Auto),
            _ => Err(Failure::new(format!("{source}: there is no progress `{value}`"))
                .hint("there are auto, plain, tty, json and quiet")),
        }
    }

    /// Makes everything that is said agree with it, from now on.
    pub fn begin(self) {
        screen::set_mode(match self {
            Style::Json => Mode::Json,
            Style::Quiet => Mode::Quiet,
            Style::Auto | Style::Live | Style::Plain => Mode::Text,
        });
    }
}

/// Something that shows steps.
trait Display: Send {
    fn started(&mut self, step: &Step);
    /// A line that the step's program wrote, without its end.
    fn output(&mut self, step: &Step, stream: OutputStream, line: &str);
    fn finished(&mut self, step: &Step, outcome: NodeOutcome);
    fn failed(&mut self, step: &Step, reason: &str);
}

/// Shows nothing.
struct Nothing;

impl Display for Nothing {
    fn started(&mut self, _: &Step) {}
    fn output(&mut self, _: &Step, _: OutputStream, _: &str) {}
    fn finished(&mut self, _: &Step, _: NodeOutcome) {}
    fn failed(&mut self, _: &Step, _: &str) {}
}

/// How one build goes.
pub struct Progress {
    state: Mutex<State>,
    /// The Dockerfile, to show what a warning is about.
    dockerfile: String,
    path: PathBuf,
}

struct State {
    names: Names,
    steps: HashMap<Digest, Step>,
    display: Box<dyn Display>,
    has_built: bool,
}

impl Progress {
    /// For the build of `dockerfile`, which is at `path`.
    pub fn new(style: Style, dockerfile: String, path: PathBuf) -> Progress {
        let display: Box<dyn Display> = match style {
            Style::Live => Box::new(Live::start()),
            Style::Auto if screen::is_terminal() => Box::new(Live::start()),
            Style::Auto | Style::Plain => Box::new(Plain::default()),
            Style::Json => Box::new(Json),
            Style::Quiet => Box::new(Nothing),
        };
        let state = State { names: Names::default(), steps: HashMap::new(), display, has_built: false };
        Progress { state: Mutex::new(state), dockerfile, path }
    }

    /// Whether a step was carried out, so that the build cache grew.
    pub fn has_built(&self) -> bool {
        self.lock().has_built
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `act` see the step of `node`, unless that is none that a person knows of.
    fn with(&self, node: &Node, act: impl FnOnce(&mut Step, &mut dyn Display)) {
        if matches!(node.op, Op::Scratch) {
            return;
        }
        let State { names, steps, display, .. } = &mut *self.lock();
        let number = steps.len() + 1;
        let step = steps.entry(node.key.clone()).or_insert_with(|| {
            let step = Step::new(number, names.of(node), node);
            display.started(&step);
            step
        });
        act(step, display.as_mut());
    }
}

impl BuildProgress for Progress {
    fn planned(&self, plan: &Plan) {
        self.lock().names = Names::of_plan(plan);
    }

    fn started(&self, node: &Node) {
        self.with(node, |step, _| step.began = Instant::now());
    }

    fn output(&self, node: &Node, stream: OutputStream, bytes: &[u8]) {
        self.with(node, |step, display| {
            step.lines(bytes).iter().for_each(|line| display.output(step, stream, line));
        });
    }

    fn finished(&self, node: &Node, outcome: NodeOutcome) {
        let makes_layer = !matches!(node.op, Op::Scratch | Op::Image { .. });
        if outcome == NodeOutcome::Built && makes_layer {
            self.lock().has_built = true;
        }
        self.with(node, |step, display| {
            step.rest().iter().for_each(|line| display.output(step, OutputStream::Stdout, line));
            display.finished(step, outcome);
        });
    }

    fn failed(&self, node: &Node, reason: &str) {
        self.with(node, |step, display| {
            step.rest().iter().for_each(|line| display.output(step, OutputStream::Stdout, line));
            display.failed(step, reason);
        });
    }

    fn linted(&self, warning: &LintWarning) {
        let (first, last) = (warning.span.start_line as usize, warning.span.end_line as usize);
        if screen::mode() == Mode::Json {
            return json::warning(Some(warning.rule.name), &warning.message, Some((&self.path, first)));
        }
        screen::tell(&format!("warning: {}: {}", warning.rule.name, warning.message));
        screen::tell(&format!("  --> {}:{first}", self.path.display()));
        for (number, line) in (1..).zip(self.dockerfile.lines()).skip(first - 1).take(last + 1 - first) {
            screen::tell(&format!(" {number:3} | {line}"));
        }
    }

    fn warned(&self, warning: &str) {
        match screen::mode() {
            Mode::Json => json::warning(None, warning, None),
            Mode::Text | Mode::Quiet => screen::tell(&format!("warning: {warning}")),
        }
    }
}

/// Says in its own way that an image was built, where the style has one.
pub fn built(name: &str, digest: &Digest) {
    if screen::mode() == Mode::Json {
        json::built(name, digest);
    }
}

/// Says in its own way that a command failed, where the style has one; says whether it did.
pub fn failed(failure: &Failure) -> bool {
    let is_json = screen::mode() == Mode::Json;
    if is_json {
        json::failure(failure);
    }
    is_json
}

/// What several threads draw of.
type Shared<T> = Arc<Mutex<T>>;
