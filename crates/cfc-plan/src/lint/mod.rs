//! Lint: what BuildKit warns of, by its rules, and what of it counts.

mod config;
mod rule;
mod syntax;

use std::cell::RefCell;

use cfc_dockerfile::Span;

pub(crate) use config::LintConfig;
pub use rule::Rule;
pub(crate) use syntax::check_syntax;

/// Something in a Dockerfile that works and should not be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LintWarning {
    /// Which rule it breaks.
    pub rule: &'static Rule,
    /// What breaks it.
    pub message: String,
    /// Its lines.
    pub span: Span,
}

/// Collects warnings, leaving out what the Dockerfile does not want to hear.
pub(crate) struct Linter {
    config: LintConfig,
    /// What comments before the instruction at hand leave out, too.
    local: RefCell<LintConfig>,
    warnings: RefCell<Vec<LintWarning>>,
}

impl Linter {
    pub(crate) fn new(config: LintConfig) -> Linter {
        Linter { config, local: RefCell::default(), warnings: RefCell::default() }
    }

    /// Lets the comments before an instruction count for it.
    pub(crate) fn enter(&self, comments: &[String]) {
        *self.local.borrow_mut() = LintConfig::of_comments(comments);
    }

    pub(crate) fn warn(&self, rule: &'static Rule, span: Span, message: String) {
        let local = self.local.borrow();
        let is_asked_for = !rule.is_experimental || self.config.has_experimental(rule) || local.has_experimental(rule);
        if !is_asked_for || self.config.skips(rule) || local.skips(rule) {
            return;
        }
        let warning = LintWarning { rule, message, span };
        let mut warnings = self.warnings.borrow_mut();
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// Whether warnings are errors, and there are some: which rules, for a message.
    pub(crate) fn violated(&self) -> Option<String> {
        let mut names: Vec<&str> = self.warnings.borrow().iter().map(|warning| warning.rule.name).collect();
        names.sort_unstable();
        names.dedup();
        (self.config.is_error && !names.is_empty()).then(|| names.join(", "))
    }

    /// All warnings, in the order of their lines.
    pub(crate) fn into_warnings(self) -> Vec<LintWarning> {
        let mut warnings = self.warnings.into_inner();
        warnings.sort_by_key(|warning| (warning.span, warning.rule.name));
        warnings
    }
}
