//! [`LintConfig`]: `# check=skip=A,B;experimental=all;error=true`.

use super::Rule;

/// Which rules count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LintConfig {
    skip: Vec<String>,
    experimental: Vec<String>,
    pub(crate) is_error: bool,
}

impl LintConfig {
    /// The value of the `check` directive or of the build argument `BUILDKIT_DOCKERFILE_CHECK`.
    pub(crate) fn parse(text: &str) -> Result<LintConfig, String> {
        let mut config = LintConfig::default();
        for option in text.split(';').map(str::trim).filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').ok_or_else(|| format!("invalid check option `{option}`"))?;
            let names = || value.split(',').map(|name| name.trim().to_string()).collect();
            match key.trim() {
                "skip" => config.skip = names(),
                "experimental" => config.experimental = names(),
                "error" => {
                    config.is_error = match value.trim().to_ascii_lowercase().as_str() {
                        "1" | "t" | "true" => true,
                        "0" | "f" | "false" => false,
                        other => return Err(format!("`error={other}`: expected true or false")),
                    }
                }
                other => return Err(format!("invalid check option `{other}`")),
            }
        }
        Ok(config)
    }

    /// What `# check=…` comments before an instruction say; anything else is no matter of ours.
    pub(crate) fn of_comments(comments: &[String]) -> LintConfig {
        let mut checks = comments.iter().rev().filter_map(|comment| comment.strip_prefix("check="));
        checks.next().and_then(|text| LintConfig::parse(text).ok()).unwrap_or_default()
    }

    pub(crate) fn skips(&self, rule: &Rule) -> bool {
        names(&self.skip, rule)
    }

    pub(crate) fn has_experimental(&self, rule: &Rule) -> bool {
        names(&self.experimental, rule)
    }
}

fn names(list: &[String], rule: &Rule) -> bool {
    list.iter().any(|name| name.eq_ignore_ascii_case("all") || name.eq_ignore_ascii_case(rule.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_buildkit_reads_them() {
        let config = LintConfig::parse("skip=StageNameCasing, FromAsCasing ; error=true").expect("well-formed");
        assert!(config.is_error && config.skips(Rule::STAGE_NAME_CASING) && config.skips(Rule::FROM_AS_CASING));
        assert!(!config.skips(Rule::UNDEFINED_VAR));
        let config = LintConfig::parse("skip=all;experimental=all").expect("well-formed");
        assert!(config.skips(Rule::UNDEFINED_VAR) && config.has_experimental(Rule::UNDEFINED_VAR));
        for text in ["skip", "error=maybe", "other=x"] {
            assert!(LintConfig::parse(text).is_err(), "{text}");
        }
    }
}
