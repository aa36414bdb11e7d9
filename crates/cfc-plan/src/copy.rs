//! `COPY`.

use cfc_dockerfile::{Instruction, Span, Spanned};

use crate::stage::StageLowering;
use crate::{Copy, CopySource, Op, PlanError, path};

impl StageLowering<'_, '_> {
    pub(crate) fn copy(
        &mut self,
        copy: &cfc_dockerfile::Copy,
        instruction: &Spanned<Instruction>,
    ) -> Result<(), PlanError> {
        let span = instruction.span;
        self.refuse_unsupported(copy, span)?;
        let sources: Vec<String> = copy.sources.iter().map(|word| self.expand(word, span)).collect::<Result<_, _>>()?;
        let destination = self.expand(&copy.destination, span)?;
        let owner = copy.chown.as_ref().map(|word| self.expand(word, span)).transpose()?;
        let mode = copy.chmod.as_ref().map(|word| self.expand(word, span)).transpose()?;
        let created_by = history(&sources, &destination, owner.as_deref(), mode.as_deref());
        for source in &sources {
            if source.starts_with("http://") || source.starts_with("https://") {
                return Err(self
                    .error(span, format!("`COPY` cannot take the URL `{source}`"))
                    .with_hint("download it in a RUN, or before the build"));
            }
        }
        let op = Op::Copy(Copy {
            source: match &copy.from {
                Some(name) => CopySource::Node(self.copy_node(name, instruction)?),
                None => CopySource::Context,
            },
            paths: sources.iter().map(|source| path::clean(source)).collect(),
            destination: path::join_keeping_slash(&self.state.config.config.working_dir, &destination),
            owner: owner.filter(|owner| !owner.is_empty()),
            mode: match mode.filter(|mode| !mode.is_empty()) {
                Some(text) => Some(self.octal_mode(&text, span)?),
                None => None,
            },
        });
        self.change(op, instruction, created_by);
        Ok(())
    }

    fn refuse_unsupported(&self, copy: &cfc_dockerfile::Copy, span: Span) -> Result<(), PlanError> {
        if copy.link {
            return self.unsupported("COPY --link", "remove the flag; the files are the same", span);
        }
        if copy.parents {
            return self.unsupported("COPY --parents", "name the parent directories in the destination", span);
        }
        if !copy.exclude.is_empty() {
            return self.unsupported("COPY --exclude", "exclude the files in .dockerignore", span);
        }
        if !copy.heredocs.is_empty() {
            return self.unsupported("COPY with a heredoc", "put the text into a file of the build context", span);
        }
        Ok(())
    }

    fn octal_mode(&self, text: &str, span: Span) -> Result<u32, PlanError> {
        let is_octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        match u32::from_str_radix(text, 8) {
            Ok(mode) if is_octal && mode <= 0o7777 => Ok(mode),
            _ => {
                let error = self.error(span, format!("`COPY --chmod={text}`: expected an octal number up to 7777"));
                Err(error.with_hint("for example `--chmod=755`; letters as in `u+x` are not supported yet"))
            }
        }
    }
}

fn history(sources: &[String], destination: &str, owner: Option<&str>, mode: Option<&str>) -> String {
    let mut text = "COPY".to_string();
    if let Some(owner) = owner.filter(|owner| !owner.is_empty()) {
        text.push_str(&format!(" --chown={owner}"));
    }
    if let Some(mode) = mode.filter(|mode| !mode.is_empty()) {
        text.push_str(&format!(" --chmod={mode}"));
    }
    format!("{text} {} {destination} # buildkit", sources.join(" "))
}
