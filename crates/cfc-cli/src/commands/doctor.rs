//! `cfc doctor`: names what this machine lacks, and how to get it.

use std::process::ExitCode;

use cfc_sandbox::{Severity, check_host};
use cfc_workers::Toolchain;

use crate::failure::Failure;
use crate::output;
use crate::settings::Settings;

/// Prints a line a finding. The exit code is 1 when something that cfc cannot do without is missing.
pub fn run(settings: &Settings) -> Result<ExitCode, Failure> {
    let mut findings = check_host();
    findings.extend(check_tools(settings));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    for finding in &findings {
        let label = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        output::data(format!("{label}: {}\n  {}", finding.what, finding.remedy));
    }
    let is_broken = findings.iter().any(|finding| finding.severity == Severity::Error);
    if is_broken {
        return Ok(ExitCode::FAILURE);
    }
    output::data("this machine can run cfc");
    Ok(ExitCode::SUCCESS)
}

fn check_tools(settings: &Settings) -> Option<cfc_sandbox::Finding> {
    let error = Toolchain::locate(&settings.tools()).err()?;
    Some(cfc_sandbox::Finding {
        severity: Severity::Error,
        what: format!("workerd and esbuild are not installed in `{}`: {error}", settings.tools().display()),
        remedy: "run `cfc setup`".to_string(),
    })
}
