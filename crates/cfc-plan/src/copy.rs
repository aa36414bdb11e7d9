//! `COPY` and `ADD`.

use cfc_dockerfile::{Add, Expander, Heredoc, Instruction, Span, Spanned};

use crate::source::is_url;
use crate::stage::StageLowering;
use crate::{Copy, CopySource, GitSource, ModeChange, Op, Parents, PlanError, Source, UrlSource, path};

/// `COPY` and `ADD` alike.
struct Words<'a> {
    name: &'static str,
    sources: &'a [String],
    destination: &'a str,
    from: Option<&'a str>,
    chown: Option<&'a String>,
    chmod: Option<&'a String>,
    exclude: &'a [String],
    heredocs: &'a [Heredoc],
    parents: bool,
    link: bool,
    /// `--unpack`; by default what `ADD` takes from the context is unpacked, and nothing else is.
    unpack: Option<bool>,
    checksum: Option<&'a String>,
    keep_git_dir: Option<bool>,
}

impl StageLowering<'_, '_> {
    pub(crate) fn copy(
        &mut self,
        copy: &cfc_dockerfile::Copy,
        instruction: &Spanned<Instruction>,
    ) -> Result<(), PlanError> {
        let words = Words {
            name: "COPY",
            sources: &copy.sources,
            destination: &copy.destination,
            from: copy.from.as_deref(),
            chown: copy.chown.as_ref(),
            chmod: copy.chmod.as_ref(),
            exclude: &copy.exclude,
            heredocs: &copy.heredocs,
            parents: copy.parents,
            link: copy.link,
            unpack: Some(false),
            checksum: None,
            keep_git_dir: None,
        };
        self.copy_or_add(&words, instruction)
    }

    pub(crate) fn add(&mut self, add: &Add, instruction: &Spanned<Instruction>) -> Result<(), PlanError> {
        let words = Words {
            name: "ADD",
            sources: &add.sources,
            destination: &add.destination,
            from: None,
            chown: add.chown.as_ref(),
            chmod: add.chmod.as_ref(),
            exclude: &add.exclude,
            heredocs: &add.heredocs,
            parents: false,
            link: add.link,
            unpack: add.unpack,
            checksum: add.checksum.as_ref(),
            keep_git_dir: add.keep_git_dir,
        };
        self.copy_or_add(&words, instruction)
    }

    fn copy_or_add(&mut self, words: &Words<'_>, instruction: &Spanned<Instruction>) -> Result<(), PlanError> {
        let span = instruction.span;
        let expand = |word: &String| self.expand(word, span);
        let written: Vec<String> = words.sources.iter().map(expand).collect::<Result<_, _>>()?;
        let destination = self.expand(words.destination, span)?;
        let given = |word: Option<&String>| Ok(word.map(expand).transpose()?.filter(|text| !text.is_empty()));
        let (owner, mode) = (given(words.chown)?, given(words.chmod)?);
        let exclude: Vec<String> = words.exclude.iter().map(expand).collect::<Result<_, _>>()?;
        let created_by = history(words, &written, &destination, owner.as_deref(), mode.as_deref());
        let mut sources: Vec<Source> =
            written.iter().map(|source| self.source(words, source, &written, span)).collect::<Result<_, _>>()?;
        for heredoc in words.heredocs {
            let content = self.heredoc(heredoc, span)?;
            sources.push(Source::File { name: heredoc.name.clone(), content });
        }
        let change = mode.as_deref().map(|text| self.mode_change(words.name, text, span)).transpose()?;
        let op = Op::Copy(Copy {
            from: match words.from {
                Some(name) => self.copy_source(name, instruction)?,
                None => CopySource::Context,
            },
            sources,
            destination: path::join_keeping_slash(&self.state.config.config.working_dir, &destination),
            owner,
            mode: change,
            exclude,
            is_linked: words.link,
        });
        self.change(op, instruction, created_by);
        Ok(())
    }

    /// What a source means: a repository, a file of the network, or paths.
    fn source(&self, words: &Words<'_>, source: &str, all: &[String], span: Span) -> Result<Source, PlanError> {
        let name = words.name;
        let checksum = words.checksum.map(|word| self.expand(word, span)).transpose()?;
        if checksum.is_some() && all.len() != 1 {
            return Err(self.error(span, "`ADD --checksum` can't be specified for multiple sources".to_string()));
        }
        let git = GitSource::parse(source);
        if (git.is_some() || is_url(source)) && name == "COPY" {
            let error = self.error(span, format!("`COPY` cannot take `{source}` from the network"));
            return Err(error.with_hint("use ADD"));
        }
        if let Some(git) = git {
            let mut git = git.map_err(|message| self.error(span, format!("`{name} {source}`: {message}")))?;
            git.keeps_git_directory = words.keep_git_dir.unwrap_or(git.keeps_git_directory);
            git.checksum = checksum.or(git.checksum);
            return Ok(Source::Git(git));
        }
        if is_url(source) {
            let parsed = checksum.map(|text| {
                let bad = |error| self.error(span, format!("`{name} --checksum={text}`: {error}"));
                text.parse().map_err(bad)
            });
            let source = UrlSource::new(source, parsed.transpose()?);
            return Ok(Source::Url { source, unpack: words.unpack.unwrap_or(false) });
        }
        if checksum.is_some() {
            let message = format!("`{name} --checksum`: `{source}` is neither an address nor a Git repository");
            return Err(self.error(span, message));
        }
        let unpack = words.unpack.unwrap_or(true);
        if words.parents {
            let (pivot, pattern) = source.split_once("/./").unwrap_or(("/", source));
            let parents = Parents { pivot: path::clean(pivot), pattern: path::clean(pattern) };
            return Ok(Source::Path { path: path::clean(source), parents: Some(parents), unpack });
        }
        Ok(Source::Path { path: path::clean(source), parents: None, unpack })
    }

    /// The content of a file that the Dockerfile holds.
    fn heredoc(&self, heredoc: &Heredoc, span: Span) -> Result<String, PlanError> {
        let body = heredoc.body();
        if !heredoc.expand {
            return Ok(body);
        }
        let environment = &self.state.environment;
        let env = |name: &str| environment.get(name).map(str::to_string);
        // The backslash escapes here whatever the escape directive says.
        let expansion = Expander::for_heredoc('\\').expand(&body, &env);
        Ok(expansion.map_err(|error| self.error(span, format!("heredoc `{}`: {}", heredoc.name, error.message)))?.text)
    }

    fn mode_change(&self, name: &str, text: &str, span: Span) -> Result<ModeChange, PlanError> {
        ModeChange::parse(text).map_err(|message| {
            let error = self.error(span, format!("`{name} --chmod={text}`: {message}"));
            error.with_hint("for example `--chmod=755`, `--chmod=u=rwX,go=rX`")
        })
    }
}

/// The instruction as the image's history has it: some flags, expanded words, files by their names.
fn history(
    words: &Words<'_>,
    sources: &[String],
    destination: &str,
    owner: Option<&str>,
    mode: Option<&str>,
) -> String {
    let mut text = words.name.to_string();
    if words.parents {
        text.push_str(" --parents");
    }
    if let Some(owner) = owner {
        text.push_str(&format!(" --chown={owner}"));
    }
    if let Some(mode) = mode {
        text.push_str(&format!(" --chmod={mode}"));
    }
    for source in sources {
        text.push_str(&format!(" {source}"));
    }
    for heredoc in words.heredocs {
        text.push_str(&format!(" <<{}", heredoc.name));
    }
    format!("{text} {destination} # buildkit")
}
