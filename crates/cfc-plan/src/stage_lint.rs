//! The rules of lint that ask what an instruction means.

use cfc_dockerfile::{Command, Expansion, Healthcheck, Instruction, Span, Spanned};

use crate::lint::Rule;
use crate::stage::StageLowering;

/// Words that make a variable's name that of a secret, and words that make it not.
const SECRETS: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
const NO_SECRETS: [&str; 3] = ["public", "file", "version"];

impl StageLowering<'_, '_> {
    /// Looks at an instruction before it is carried out.
    pub(crate) fn lint(&mut self, instruction: &Spanned<Instruction>) {
        let span = instruction.span;
        match &instruction.value {
            Instruction::Cmd(command) => self.lint_command("CMD", command, instruction),
            Instruction::Entrypoint(command) => self.lint_command("ENTRYPOINT", command, instruction),
            Instruction::Healthcheck(Healthcheck::Check(_) | Healthcheck::None) => {
                self.lint_once("HEALTHCHECK", span);
            }
            Instruction::Env(pairs) => {
                self.lint_legacy("ENV", instruction);
                pairs.iter().for_each(|(key, _)| self.lint_secret("ENV", key, span));
            }
            Instruction::Label(_) => self.lint_legacy("LABEL", instruction),
            Instruction::Arg(declared) => declared.iter().for_each(|(key, _)| self.lint_secret("ARG", key, span)),
            Instruction::Copy(copy) if copy.from.is_none() => self.lint_ignored("Copy", &copy.sources, span),
            Instruction::Add(add) => self.lint_ignored("Add", &add.sources, span),
            _ => {}
        }
    }

    fn lint_command(&mut self, name: &'static str, command: &Command, instruction: &Spanned<Instruction>) {
        self.lint_once(name, instruction.span);
        let has_shell = self.state.config.config.shell.as_ref().is_some_and(|shell| !shell.is_empty());
        if matches!(command, Command::Shell { .. }) && !has_shell {
            let message =
                format!("JSON arguments recommended for {name} to prevent unintended behavior related to OS signals");
            self.lowering.linter.warn(Rule::JSON_ARGS_RECOMMENDED, instruction.span, message);
        }
    }

    /// The earlier one is named: it is the one that does not count.
    fn lint_once(&mut self, name: &'static str, span: Span) {
        if let Some(earlier) = self.last_of.insert(name, span) {
            let why = "because only the last one will be used";
            let message = format!("Multiple {name} instructions should not be used in the same stage {why}");
            self.lowering.linter.warn(Rule::MULTIPLE_INSTRUCTIONS_DISALLOWED, earlier, message);
        }
    }

    /// `ENV key value`.
    fn lint_legacy(&self, name: &str, instruction: &Spanned<Instruction>) {
        // A trigger has `ONBUILD` in front of it.
        let mut words = instruction.original.split_whitespace().skip_while(|word| !word.eq_ignore_ascii_case(name));
        let first = words.nth(1).unwrap_or_default();
        let is_quoted = first.starts_with(['"', '\'']) || first.ends_with('\\');
        if !first.contains('=') && !is_quoted {
            let message = format!("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format");
            self.lowering.linter.warn(Rule::LEGACY_KEY_VALUE_FORMAT, instruction.span, message);
        }
    }

    fn lint_secret(&self, name: &str, key: &str, span: Span) {
        let lower = key.to_lowercase();
        let has = |words: &[&str]| lower.split('_').any(|word| words.contains(&word));
        if has(&SECRETS) && !has(&NO_SECRETS) {
            let message = format!("Do not use ARG or ENV instructions for sensitive data ({name} {key:?})");
            self.lowering.linter.warn(Rule::SECRETS_USED_IN_ARG_OR_ENV, span, message);
        }
    }

    /// A file without exceptions tells for certain that a source is left out.
    fn lint_ignored(&self, name: &str, sources: &[String], span: Span) {
        let Some(ignore) = self.lowering.request.ignore.as_ref().filter(|ignore| !ignore.has_exceptions()) else {
            return;
        };
        for source in sources {
            let path = crate::path::clean(source);
            let path = path.trim_start_matches('/');
            if ignore.is_ignored(path) {
                let message = format!("Attempting to {name} file {path:?} that is excluded by .dockerignore");
                self.lowering.linter.warn(Rule::COPY_IGNORED_FILE, span, message);
            }
        }
    }

    pub(crate) fn lint_undefined(&self, expansion: &Expansion, span: Span) {
        for name in &expansion.unmatched {
            let is_declared = self.state.declared.iter().any(|(key, _)| key == name);
            if is_declared || name.is_empty() {
                continue;
            }
            let message = format!("Usage of undefined variable '${name}'");
            let message = match cfc_dockerfile::nearest(name, self.state.environment.names()) {
                Some(nearest) => format!("{message} (did you mean ${nearest}?)"),
                None => message,
            };
            self.lowering.linter.warn(Rule::UNDEFINED_VAR, span, message);
        }
    }

    /// Only the first one of a file matters: later ones are relative to it.
    pub(crate) fn lint_workdir(&mut self, path: &str, span: Span) {
        if !self.state.has_workdir && !path.starts_with('/') {
            let message = format!("Relative workdir {path:?} can have unexpected results if the base image changes");
            self.lowering.linter.warn(Rule::WORKDIR_RELATIVE_PATH, span, message);
        }
        self.state.has_workdir = true;
    }

    pub(crate) fn lint_port(&self, spec: &str, span: Span) {
        if let Some((_, protocol)) = spec.rsplit_once('/')
            && protocol != protocol.to_lowercase()
        {
            let message = format!("Defined protocol '{spec}' in EXPOSE instruction should be lowercase");
            self.lowering.linter.warn(Rule::EXPOSE_PROTO_CASING, span, message);
        }
        if spec.contains(':') {
            let what = "should not define an IP address or host-port mapping";
            let message = format!("EXPOSE instruction {what}, found '{spec}'");
            self.lowering.linter.warn(Rule::EXPOSE_INVALID_FORMAT, span, message);
        }
    }
}
