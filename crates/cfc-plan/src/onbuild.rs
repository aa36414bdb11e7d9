//! `ONBUILD`: what a base image, or a stage that is built on, wants done first.

use cfc_dockerfile::{Instruction, Span, Spanned, Stage};

use crate::PlanError;
use crate::stage::StageLowering;

/// Stages that triggers need are lowered in the middle of another one, each level on the stack.
const MAX_DEPTH: usize = 32;

impl StageLowering<'_, '_> {
    /// Carries out the triggers of what the stage is built on. They are gone then: a grandchild does not see them.
    pub(crate) fn triggers(&mut self, stage: &Stage) -> Result<(), PlanError> {
        let triggers = self.container().on_build.take().unwrap_or_default();
        let triggers: Vec<Spanned<Instruction>> =
            triggers.iter().map(|trigger| self.parse(trigger, stage)).collect::<Result<_, _>>()?;
        for trigger in &triggers {
            for (needed, span) in self.lowering.stages.needs_of(trigger)? {
                self.lowering.lower_for_trigger(needed, span, MAX_DEPTH)?;
            }
            self.instruction(trigger)?;
        }
        Ok(())
    }

    fn parse(&self, trigger: &str, stage: &Stage) -> Result<Spanned<Instruction>, PlanError> {
        let failed = |message: String| {
            let error = self.error(stage.span, format!("`{}`: its trigger `{trigger}`: {message}", stage.base));
            error.with_hint("the ONBUILD instruction is in the Dockerfile of what this stage is built on")
        };
        let parsed = cfc_dockerfile::parse_instruction(trigger);
        let parsed = parsed.map_err(|problems| {
            let messages: Vec<String> = problems.into_iter().map(|problem| problem.message).collect();
            failed(messages.join("; "))
        })?;
        match parsed.value {
            Instruction::Onbuild(_) => Err(failed("a trigger cannot be an ONBUILD itself".to_string())),
            Instruction::Maintainer(_) => Err(failed("MAINTAINER is not allowed as a trigger".to_string())),
            _ => {
                let span = Span { ..stage.span };
                Ok(Spanned { span, original: format!("ONBUILD {}", parsed.original), ..parsed })
            }
        }
    }
}
