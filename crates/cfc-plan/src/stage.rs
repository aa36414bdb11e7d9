//! [`StageLowering`]: one stage, instruction by instruction.
//!
//! Each instruction sees the environment as it was before it, writes what BuildKit writes into config and history, and
//! adds a node when it changes files.

use cfc_dockerfile::{Command, Dockerfile, Instruction, Span, Spanned, WordError};
use cfc_oci::{ContainerConfig, ImageConfig, Platform};

use crate::environment::{self, Environment};
use crate::error::Located;
use crate::graph::Origin;
use crate::history::{commit_config, commit_layer, quote_list};
use crate::lower::Lowering;
use crate::stages::Source;
use crate::{NodeId, Op, PlanError, Run, arguments, path, ports};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How far a stage has come.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) node: NodeId,
    pub(crate) config: ImageConfig,
    /// `ENV` and `ARG` together, as instructions and programs see them.
    environment: Environment,
    /// `ARG`s of this stage and of those it builds on, in order.
    declared: Vec<(String, Option<String>)>,
    pub(crate) platform: Platform,
}

/// A stage on its way.
pub(crate) struct StageLowering<'l, 'a> {
    pub(crate) lowering: &'l mut Lowering<'a>,
    pub(crate) state: State,
    label: String,
    has_cmd: bool,
}

impl<'l, 'a> StageLowering<'l, 'a> {
    /// Lowers stage number `index`; those it needs were lowered before.
    pub(crate) fn lower(lowering: &'l mut Lowering<'a>, index: usize) -> Result<State, PlanError> {
        let request = lowering.request;
        let stage = &request.dockerfile.stages[index];
        let label = lowering.stages.heads[index].label.clone();
        let state = initial_state(lowering, index, &label)?;
        let mut this = StageLowering { lowering, state, label, has_cmd: false };
        for instruction in &stage.instructions {
            this.instruction(instruction)?;
        }
        Ok(this.state)
    }

    fn instruction(&mut self, instruction: &Spanned<Instruction>) -> Result<(), PlanError> {
        let span = instruction.span;
        match &instruction.value {
            Instruction::Run(run) => self.run(run, instruction),
            Instruction::Copy(copy) => self.copy(copy, instruction),
            Instruction::Env(pairs) => self.env(pairs, span),
            Instruction::Arg(declarations) => self.arg(declarations, span),
            Instruction::Label(pairs) => self.labels(pairs, span),
            Instruction::Workdir(path) => self.workdir(path, instruction),
            Instruction::User(user) => self.user(user, span),
            Instruction::Expose(ports) => self.expose(ports, span),
            Instruction::Entrypoint(command) => self.entrypoint(command, span),
            Instruction::Cmd(command) => self.cmd(command, span),
            Instruction::StopSignal(signal) => self.stop_signal(signal, span),
            Instruction::Add(_) => self.unsupported("ADD", "use COPY for files of the build context", span),
            Instruction::Shell(_) => self.unsupported("SHELL", "write `RUN [\"/bin/bash\", \"-c\", \"…\"]`", span),
            Instruction::Volume(_) => self.unsupported("VOLUME", "remove it; the disk is fresh at each start", span),
            Instruction::Healthcheck(_) => self.unsupported("HEALTHCHECK", "remove it", span),
            Instruction::Onbuild(_) => self.unsupported("ONBUILD", "put the instruction into the child", span),
            Instruction::Maintainer(_) => self.unsupported("MAINTAINER", "write `LABEL maintainer=…`", span),
        }
    }

    pub(crate) fn unsupported(&self, what: &str, hint: &str, span: Span) -> Result<(), PlanError> {
        Err(self.error(span, format!("`{what}` is not supported yet")).with_hint(hint))
    }

    pub(crate) fn error(&self, span: Span, message: String) -> PlanError {
        self.lowering.request.error_at(span, message)
    }

    fn dockerfile(&self) -> &'a Dockerfile {
        &self.lowering.request.dockerfile
    }

    pub(crate) fn expand(&self, word: &str, span: Span) -> Result<String, PlanError> {
        arguments::expand(self.dockerfile(), word, &self.state.environment)
            .map_err(|error| self.word_error(error, span))
    }

    fn word_error(&self, error: WordError, span: Span) -> PlanError {
        self.error(span, error.to_string())
    }

    fn expand_pairs(&self, pairs: &[(String, String)], span: Span) -> Result<Vec<(String, String)>, PlanError> {
        pairs.iter().map(|(key, value)| Ok((self.expand(key, span)?, self.expand(value, span)?))).collect()
    }

    fn container(&mut self) -> &mut ContainerConfig {
        &mut self.state.config.config
    }

    fn commit_config(&mut self, created_by: String) {
        commit_config(&mut self.state.config, &self.lowering.created, created_by);
    }

    /// Adds a node that changes the stage's filesystem.
    pub(crate) fn change(&mut self, op: Op, instruction: &Spanned<Instruction>, created_by: String) {
        let origin = Origin { stage: &self.label, display: &instruction.original, span: instruction.span };
        self.state.node = self.lowering.graph.add(op, Some(self.state.node), &origin);
        commit_layer(&mut self.state.config, &self.lowering.created, created_by);
    }

    pub(crate) fn copy_node(&mut self, name: &str, instruction: &Spanned<Instruction>) -> Result<NodeId, PlanError> {
        let origin = Origin { stage: &self.label, display: &instruction.original, span: instruction.span };
        self.lowering.copy_source(name, &self.state.platform, &origin)
    }

    fn run(&mut self, run: &cfc_dockerfile::Run, instruction: &Spanned<Instruction>) -> Result<(), PlanError> {
        let span = instruction.span;
        if let Some(flag) = run.flags.first() {
            return self.unsupported(&format!("RUN --{}", flag.name), "remove the flag", span);
        }
        let args = self.command(&run.command, "RUN", span)?;
        if args.is_empty() {
            return Err(self.error(span, "`RUN` has no command".to_string()));
        }
        let created_by = format!("RUN {} # buildkit", self.run_history(&args));
        let op = Op::Run(Run {
            args,
            env: self.state.environment.pairs(),
            unkeyed_env: self.lowering.proxies.clone(),
            working_directory: self.state.config.config.working_dir.clone(),
            user: self.state.config.config.user.clone(),
        });
        self.change(op, instruction, created_by);
        Ok(())
    }

    /// The command with the build arguments in front, as `|2 A=1 B=2 /bin/sh -c …`.
    fn run_history(&self, args: &[String]) -> String {
        let mut values: Vec<(&str, String)> = Vec::new();
        for (key, declared) in &self.state.declared {
            let value = self.state.environment.get(key).map(str::to_string).or(declared.clone()).unwrap_or_default();
            match values.iter_mut().find(|(existing, _)| existing == key) {
                Some(existing) => existing.1 = value,
                None => values.push((key, value)),
            }
        }
        let mut words = Vec::new();
        if !values.is_empty() {
            words.push(format!("|{}", values.len()));
            words.extend(values.into_iter().map(|(key, value)| format!("{key}={value}")));
        }
        words.extend(args.iter().cloned());
        words.join(" ")
    }

    /// The arguments that a command stands for: the shell form goes through the image's shell.
    fn command(&self, command: &Command, name: &str, span: Span) -> Result<Vec<String>, PlanError> {
        match command {
            Command::Exec(args) => Ok(args.clone()),
            Command::Shell { heredocs, .. } if !heredocs.is_empty() => {
                let what = format!("{name} with a heredoc");
                self.unsupported(&what, "write the script to a file and COPY it", span).map(|()| Vec::new())
            }
            Command::Shell { text, .. } => {
                let shell = self.state.config.config.shell.clone().filter(|shell| !shell.is_empty());
                let mut args = shell.unwrap_or_else(|| vec!["/bin/sh".to_string(), "-c".to_string()]);
                args.push(text.clone());
                Ok(args)
            }
        }
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

    fn arg(&mut self, declarations: &[(String, Option<String>)], span: Span) -> Result<(), PlanError> {
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

    fn entrypoint(&mut self, command: &Command, span: Span) -> Result<(), PlanError> {
        let args = self.command(command, "ENTRYPOINT", span)?;
        self.commit_config(format!("ENTRYPOINT {}", quote_list(&args)));
        self.container().entrypoint = Some(args).filter(|args| !args.is_empty());
        // A `CMD` inherited from below belongs to another entrypoint; one of this stage stays.
        if !self.has_cmd {
            self.container().cmd = None;
        }
        Ok(())
    }

    fn cmd(&mut self, command: &Command, span: Span) -> Result<(), PlanError> {
        let args = self.command(command, "CMD", span)?;
        self.commit_config(format!("CMD {}", quote_list(&args)));
        self.has_cmd = true;
        let container = self.container();
        container.cmd = Some(args).filter(|args| !args.is_empty());
        container.args_escaped = true;
        Ok(())
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
            fresh_state(node, empty_config(&request.platform), request.platform.clone())
        }
        Source::Image(reference) => {
            let (node, config) = lowering.image(&reference, &platform, &origin)?;
            fresh_state(node, config, platform)
        }
    };
    let container = &mut state.config.config;
    if container.on_build.as_ref().is_some_and(|triggers| !triggers.is_empty()) {
        let error =
            request.error_at(stage.span, format!("`{}`: its ONBUILD triggers are not supported yet", stage.base));
        return Err(error.with_hint("write the image's ONBUILD instructions into this Dockerfile"));
    }
    container.on_build = None;
    inherit_environment(container, &mut state.environment);
    if !container.working_dir.is_empty() {
        container.working_dir = path::clean(&container.working_dir);
    }
    Ok(state)
}

fn fresh_state(node: NodeId, config: ImageConfig, platform: Platform) -> State {
    State { node, config, environment: Environment::default(), declared: Vec::new(), platform }
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
