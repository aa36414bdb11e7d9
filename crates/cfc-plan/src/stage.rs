//! [`StageLowering`]: one stage, instruction by instruction.
//!
//! Each instruction sees the environment as it was before it, writes what BuildKit writes into config and history, and
//! adds a node when it changes files.

use std::collections::HashMap;

use cfc_dockerfile::{Command, Dockerfile, Expander, Instruction, Span, Spanned, WordError};
use cfc_oci::{ContainerConfig, ImageConfig, Platform};

use crate::environment::{self, Environment};
use crate::error::Located;
use crate::graph::Origin;
use crate::history::{commit_config, commit_layer, quote_list};
use crate::lower::Lowering;
use crate::stages::Source;
use crate::{CopySource, NodeId, Op, PlanError, path, ports};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How far a stage has come.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) node: NodeId,
    pub(crate) config: ImageConfig,
    /// `ENV` and `ARG` together, as instructions and programs see them.
    pub(crate) environment: Environment,
    /// `ARG`s of this stage and of those it builds on, in order.
    pub(crate) declared: Vec<(String, Option<String>)>,
    /// Whether this Dockerfile has set the working directory already.
    pub(crate) has_workdir: bool,
}

/// A stage on its way.
pub(crate) struct StageLowering<'l, 'a> {
    pub(crate) lowering: &'l mut Lowering<'a>,
    pub(crate) state: State,
    label: String,
    has_cmd: bool,
    /// Where the last of each of these was that only count once.
    pub(crate) last_of: HashMap<&'static str, Span>,
}

impl<'l, 'a> StageLowering<'l, 'a> {
    /// Lowers stage number `index`; those it needs were lowered before.
    pub(crate) fn lower(lowering: &'l mut Lowering<'a>, index: usize) -> Result<State, PlanError> {
        let request = lowering.request;
        let stage = &request.dockerfile.stages[index];
        let label = lowering.stages.heads[index].label.clone();
        let state = initial_state(lowering, index, &label)?;
        let mut this = StageLowering { lowering, state, label, has_cmd: false, last_of: HashMap::new() };
        if this.lowering.stages.heads[index].is_replaced {
            return Ok(this.state);
        }
        this.triggers(stage)?;
        for instruction in &stage.instructions {
            this.instruction(instruction)?;
        }
        Ok(this.state)
    }

    pub(crate) fn instruction(&mut self, instruction: &Spanned<Instruction>) -> Result<(), PlanError> {
        let span = instruction.span;
        self.lowering.linter.enter(&instruction.comments);
        self.lint(instruction);
        match &instruction.value {
            Instruction::Run(run) => self.run(run, instruction),
            Instruction::Copy(copy) => self.copy(copy, instruction),
            Instruction::Env(pairs) => self.env(pairs, span),
            Instruction::Arg(declarations) => self.arg(declarations, instruction),
            Instruction::Label(pairs) => self.labels(pairs, span),
            Instruction::Workdir(path) => self.workdir(path, instruction),
            Instruction::User(user) => self.user(user, span),
            Instruction::Expose(ports) => self.expose(ports, span),
            Instruction::StopSignal(signal) => self.stop_signal(signal, span),
            Instruction::Volume(paths) => self.volume(paths, span),
            Instruction::Add(add) => self.add(add, instruction),
            Instruction::Entrypoint(command) => {
                self.entrypoint(command);
                Ok(())
            }
            Instruction::Cmd(command) => {
                self.cmd(command);
                Ok(())
            }
            Instruction::Shell(words) => {
                self.shell(words);
                Ok(())
            }
            Instruction::Healthcheck(healthcheck) => {
                self.healthcheck(healthcheck);
                Ok(())
            }
            Instruction::Maintainer(name) => self.maintainer(name, span),
            Instruction::Onbuild(trigger) => {
                self.container().on_build.get_or_insert_default().push(trigger.clone());
                Ok(())
            }
        }
    }

    pub(crate) fn unsupported(&self, what: &str, hint: &str, span: Span) -> Result<(), PlanError> {
        Err(self.error(span, format!("`{what}` is not supported yet")).with_hint(hint))
    }

    pub(crate) fn error(&self, span: Span, message: String) -> PlanError {
        self.lowering.request.error_at(span, message)
    }

    pub(crate) fn dockerfile(&self) -> &'a Dockerfile {
        &self.lowering.request.dockerfile
    }

    pub(crate) fn expand(&self, word: &str, span: Span) -> Result<String, PlanError> {
        let environment = &self.state.environment;
        let env = |name: &str| environment.get(name).map(str::to_string);
        let expansion = Expander::new(self.dockerfile().directives.escape).expand(word, &env);
        let expansion = expansion.map_err(|error| self.word_error(error, span))?;
        self.lint_undefined(&expansion, span);
        Ok(expansion.text)
    }

    fn word_error(&self, error: WordError, span: Span) -> PlanError {
        self.error(span, error.to_string())
    }

    fn expand_pairs(&self, pairs: &[(String, String)], span: Span) -> Result<Vec<(String, String)>, PlanError> {
        pairs.iter().map(|(key, value)| Ok((self.expand(key, span)?, self.expand(value, span)?))).collect()
    }

    pub(crate) fn container(&mut self) -> &mut ContainerConfig {
        &mut self.state.config.config
    }

    pub(crate) fn commit_config(&mut self, created_by: String) {
        commit_config(&mut self.state.config, &self.lowering.created, created_by);
    }

    /// Adds a node that changes the stage's filesystem.
    pub(crate) fn change(&mut self, op: Op, instruction: &Spanned<Instruction>, created_by: String) {
        let origin = Origin { stage: &self.label, display: &instruction.original, span: instruction.span };
        self.state.node = self.lowering.graph.add(op, Some(self.state.node), &origin);
        commit_layer(&mut self.state.config, &self.lowering.created, created_by);
    }

    /// Adds a node that changes nothing of this stage, and that others read.
    pub(crate) fn aside(&mut self, op: Op, instruction: &Spanned<Instruction>) -> NodeId {
        let origin = Origin { stage: &self.label, display: &instruction.original, span: instruction.span };
        self.lowering.graph.add(op, None, &origin)
    }

    pub(crate) fn copy_source(
        &mut self,
        name: &str,
        instruction: &Spanned<Instruction>,
    ) -> Result<CopySource, PlanError> {
        let origin = Origin { stage: &self.label, display: &instruction.original, span: instruction.span };
        self.lowering.copy_source(name, &origin)
    }

    /// The arguments that a command stands for: the shell form goes through the image's shell.
    pub(crate) fn command(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(args) => args.clone(),
            Command::Shell { text, .. } => self.shell_command(text),
        }
    }

    pub(crate) fn shell_command(&self, text: &str) -> Vec<String> {
        let shell = self.state.config.config.shell.clone().filter(|shell| !shell.is_empty());
        let mut args = shell.unwrap_or_else(|| vec!["/bin/sh".to_string(), "-c".to_string()]);
        args.push(text.to_string());
        args
    }

    fn env(&mut self, pairs: &[(String, String)], span: Span) -> Result<(), PlanError> {
        let mut created_by = "ENV".to_string();
        for (key, value) in self.expand_pairs(pairs, span)? {
            if key.is_empty() {
                return Err(self.error(span, "`ENV` names no variable: the name is empty".to_string()));
            }
            created_by.push_str(&format!(" {key}={value}"));
            self.state.environment.set(&key, &value);
            environment::set_in_config(&mut self.container().env, &key, &value);
        }
        self.commit_config(created_by);
        Ok(())
    }

    fn arg(
        &mut self,
        declarations: &[(String, Option<String>)],
        instruction: &Spanned<Instruction>,
    ) -> Result<(), PlanError> {
        let span = instruction.span;
        let mut texts = Vec::new();
        for (key, default) in declarations {
            let given = self.lowering.request.build_args.get(key);
            let value = match (given, default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(self.expand(default, span)?),
                (None, None) => self.lowering.arguments.get(key).map(str::to_string),
            };
            texts.push(match &value {
                Some(value) => format!("{key}={value}"),
                None => key.clone(),
            });
            if let Some(value) = &value {
                self.state.environment.set(key, value);
            }
            let is_inherited = given.is_none() && default.is_none() && value.is_some();
            self.lowering.capture.argument(key, value.as_deref(), instruction, is_inherited);
            self.state.declared.push((key.clone(), value));
        }
        self.commit_config(format!("ARG {}", texts.join(" ")));
        Ok(())
    }

    fn labels(&mut self, pairs: &[(String, String)], span: Span) -> Result<(), PlanError> {
        let mut created_by = "LABEL".to_string();
        for (key, value) in self.expand_pairs(pairs, span)? {
            created_by.push_str(&format!(" {key}={value}"));
            self.container().labels.get_or_insert_default().insert(key, value);
        }
        self.commit_config(created_by);
        Ok(())
    }

    fn workdir(&mut self, word: &str, instruction: &Spanned<Instruction>) -> Result<(), PlanError> {
        let wanted = self.expand(word, instruction.span)?;
        if wanted.is_empty() {
            return Err(self.error(instruction.span, format!("`WORKDIR {word}` names no directory: it is empty")));
        }
        self.lint_workdir(&wanted, instruction.span);
        let directory = path::join(&self.state.config.config.working_dir, &wanted);
        self.container().working_dir = directory.clone();
        let created_by = format!("WORKDIR {directory}");
        if directory == "/" {
            self.commit_config(created_by);
        } else {
            let user = self.state.config.config.user.clone();
            self.change(Op::MakeDirectory { path: directory, user }, instruction, created_by);
        }
        Ok(())
    }

    fn user(&mut self, word: &str, span: Span) -> Result<(), PlanError> {
        let user = self.expand(word, span)?;
        self.container().user = user.clone();
        self.commit_config(format!("USER {user}"));
        Ok(())
    }

    fn expose(&mut self, words: &[String], span: Span) -> Result<(), PlanError> {
        let mut exposed = Vec::new();
        for word in words {
            let environment = &self.state.environment;
            let env = |name: &str| environment.get(name).map(str::to_string);
            let specs = cfc_dockerfile::expand_words(word, self.dockerfile().directives.escape, &env);
            for spec in specs.map_err(|error| self.word_error(error, span))? {
                self.lint_port(&spec, span);
                exposed
                    .extend(ports::parse(&spec).map_err(|message| self.error(span, format!("`EXPOSE`: {message}")))?);
            }
        }
        let known = self.container().exposed_ports.get_or_insert_default();
        known.extend(exposed.iter().map(|port| (port.clone(), cfc_oci::Empty {})));
        self.commit_config(format!("EXPOSE [{}]", exposed.join(" ")));
        Ok(())
    }

    fn stop_signal(&mut self, word: &str, span: Span) -> Result<(), PlanError> {
        let signal = self.expand(word, span)?;
        if cfc_oci::parse_signal(&signal).is_none() {
            let error = self.error(span, format!("`STOPSIGNAL`: there is no signal `{signal}`"));
            return Err(error.with_hint("write a name or a number: `STOPSIGNAL SIGQUIT`, `STOPSIGNAL 3`"));
        }
        self.container().stop_signal = Some(signal.clone());
        self.commit_config(format!("STOPSIGNAL {signal}"));
        Ok(())
    }

    fn entrypoint(&mut self, command: &Command) {
        let args = self.command(command);
        self.commit_config(format!("ENTRYPOINT {}", quote_list(&args)));
        self.container().entrypoint = Some(args).filter(|args| !args.is_empty());
        // A `CMD` inherited from below belongs to another entrypoint; one of this stage stays.
        if !self.has_cmd {
            self.container().cmd = None;
        }
    }

    fn cmd(&mut self, command: &Command) {
        let args = self.command(command);
        self.commit_config(format!("CMD {}", quote_list(&args)));
        self.has_cmd = true;
        let container = self.container();
        container.cmd = Some(args).filter(|args| !args.is_empty());
        container.args_escaped = true;
    }
}

/// The state right after `FROM`.
fn initial_state(lowering: &mut Lowering<'_>, index: usize, label: &str) -> Result<State, PlanError> {
    let request = lowering.request;
    let stage = &request.dockerfile.stages[index];
    let origin = Origin { stage: label, display: &stage.original, span: stage.span };
    let head = &lowering.stages.heads[index];
    let platform = head.platform.clone().unwrap_or_else(|| request.platform.clone());
    let mut state = match head.base.clone() {
        Source::Stage(base) => lowering.finished(base).clone(),
        Source::Scratch => {
            let node = lowering.graph.add(Op::Scratch, None, &origin);
            // BuildKit gives an image from scratch the platform of the target, whatever `--platform` says.
            fresh_state(node, empty_config(&request.platform))
        }
        Source::Image(reference) => {
            let (node, config) = lowering.image(&reference, &platform, &origin)?;
            fresh_state(node, config)
        }
        Source::Context(named) => {
            let (node, config) = lowering.named(&named, &platform, &origin)?;
            fresh_state(node, config.unwrap_or_else(|| empty_config(&platform)))
        }
    };
    let container = &mut state.config.config;
    inherit_environment(container, &mut state.environment);
    if !container.working_dir.is_empty() {
        container.working_dir = path::clean(&container.working_dir);
    }
    Ok(state)
}

fn fresh_state(node: NodeId, config: ImageConfig) -> State {
    State { node, config, environment: Environment::default(), declared: Vec::new(), has_workdir: false }
}

/// Every process has a `PATH`, and instructions see the image's variables.
fn inherit_environment(container: &mut ContainerConfig, environment: &mut Environment) {
    let has_path = container.env.iter().flatten().any(|entry| environment::split(entry).0 == "PATH");
    if !has_path {
        container.env.get_or_insert_default().push(format!("PATH={DEFAULT_PATH}"));
    }
    for entry in container.env.iter().flatten() {
        let (key, value) = environment::split(entry);
        environment.set(key, value);
    }
}

fn empty_config(platform: &Platform) -> ImageConfig {
    ImageConfig {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        os_version: platform.os_version.clone(),
        variant: platform.variant.clone(),
        config: ContainerConfig { working_dir: "/".to_string(), ..ContainerConfig::default() },
        ..ImageConfig::default()
    }
}
