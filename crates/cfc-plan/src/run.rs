//! `RUN`.

use cfc_dockerfile::{Instruction, Script, Span, Spanned};

use crate::stage::StageLowering;
use crate::{Entitlement, Mount, MountKind, Op, PlanError, Run, RunNetwork};

/// Where a script with an interpreter line is shown to the program, as BuildKit does it.
const SCRIPTS: &str = "/dev/pipes";

impl StageLowering<'_, '_> {
    pub(crate) fn run(
        &mut self,
        run: &cfc_dockerfile::Run,
        instruction: &Spanned<Instruction>,
    ) -> Result<(), PlanError> {
        let span = instruction.span;
        if run.flags_named("device").next().is_some() {
            return self.unsupported("RUN --device", "sandboxes of builds have no devices of the machine", span);
        }
        let mut mounts = self.mounts(run, instruction)?;
        let args = match run.command.script() {
            Script::Exec(args) => args,
            Script::Shell(text) => self.shell_command(&text),
            Script::File { name, content } => {
                let target = format!("{SCRIPTS}/{name}");
                mounts.mounts.push(Mount { target: target.clone(), kind: MountKind::Script { content } });
                vec![target]
            }
        };
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
            mounts: mounts.mounts,
            secret_variables: mounts.secret_variables,
            network: self.network(run, span)?,
            is_insecure: self.is_insecure(run, span)?,
            hosts: self.lowering.request.run.hosts.clone(),
            shm_size: self.lowering.request.run.shm_size,
            ulimits: self.lowering.request.run.ulimits.clone(),
        });
        self.change(op, instruction, created_by);
        Ok(())
    }

    fn network(&self, run: &cfc_dockerfile::Run, span: Span) -> Result<RunNetwork, PlanError> {
        match run.flags_named("network").last() {
            Some("none") => Ok(RunNetwork::None),
            Some("host") => {
                self.need(Entitlement::NetworkHost, "RUN --network=host", span)?;
                Ok(RunNetwork::Host)
            }
            // `default` is what the build has, too.
            _ => Ok(self.lowering.request.run.network),
        }
    }

    fn is_insecure(&self, run: &cfc_dockerfile::Run, span: Span) -> Result<bool, PlanError> {
        let is_insecure = run.flags_named("security").last() == Some("insecure");
        if is_insecure {
            self.need(Entitlement::SecurityInsecure, "RUN --security=insecure", span)?;
        }
        Ok(is_insecure)
    }

    fn need(&self, entitlement: Entitlement, what: &str, span: Span) -> Result<(), PlanError> {
        if self.lowering.request.allowed.contains(&entitlement) {
            return Ok(());
        }
        let name = entitlement.name();
        let error = self.error(span, format!("`{what}`: {name} is not allowed"));
        Err(error.with_hint(format!("if you trust this Dockerfile, build with `--allow {name}`")))
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
}
