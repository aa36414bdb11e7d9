//! The instructions of a stage as values. Words are unexpanded, except that exec-form words are decoded JSON.

mod convert;
mod files;
mod flags;
mod healthcheck;
mod mount;
mod stage;

use std::time::Duration;

pub(crate) use convert::convert;
pub(crate) use stage::stage;

pub use crate::parser::Heredoc;
pub use mount::{Mount, MountError, MountKind, Sharing, parse_size};

/// Names with their defaults, as `ARG` declares them.
pub type ArgInstruction = Vec<(String, Option<String>)>;

/// One instruction, without its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// `RUN`
    Run(Run),
    /// `COPY`
    Copy(Copy),
    /// `ADD`
    Add(Add),
    /// `ENV`: names and values, both to be expanded.
    Env(Vec<(String, String)>),
    /// `ARG`
    Arg(ArgInstruction),
    /// `LABEL`: names and values, both to be expanded.
    Label(Vec<(String, String)>),
    /// `WORKDIR`
    Workdir(String),
    /// `USER`
    User(String),
    /// `EXPOSE`: each `8080`, `8080/udp`, `7000-7005` or a variable, sorted as the history has them.
    Expose(Vec<String>),
    /// `ENTRYPOINT`
    Entrypoint(Command),
    /// `CMD`
    Cmd(Command),
    /// `SHELL`
    Shell(Vec<String>),
    /// `STOPSIGNAL`
    StopSignal(String),
    /// `VOLUME`
    Volume(Vec<String>),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `ONBUILD`: the instruction text to be parsed in the child image, heredoc bodies included.
    Onbuild(String),
    /// `MAINTAINER`
    Maintainer(String),
}

/// The command of `RUN`, `CMD`, `ENTRYPOINT` and `HEALTHCHECK CMD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A JSON array: run as it is.
    Exec(Vec<String>),
    /// Text for the shell in force.
    Shell {
        /// The text of the line, heredoc words (`<<EOF`) still in it.
        text: String,
        /// The bodies of those words, in order.
        heredocs: Vec<Heredoc>,
    },
}

/// What a `RUN` executes, once heredocs are put in their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Script {
    /// These arguments, without a shell.
    Exec(Vec<String>),
    /// This text, as the last argument of the shell in force.
    Shell(String),
    /// A file of this name and content, executed by the interpreter its `#!` line names.
    File {
        /// The file name: the heredoc's word.
        name: String,
        /// All of the file.
        content: String,
    },
}

/// `RUN`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What to run.
    pub command: Command,
    /// `--mount` (see [`Mount::parse`]), `--network`, `--security` and `--device`, as written.
    pub flags: Vec<Flag>,
}

/// A flag as written: `--name=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// Without the dashes.
    pub name: String,
    /// What follows the `=`; empty where there is none.
    pub value: String,
}

/// `COPY`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// Paths and wildcards, unexpanded; heredoc words are not among them.
    pub sources: Vec<String>,
    /// Where to, unexpanded; a trailing slash is significant.
    pub destination: String,
    /// `--from`: a stage, its number, an image or a named context.
    pub from: Option<String>,
    /// `--chown`
    pub chown: Option<String>,
    /// `--chmod`
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--parents`
    pub parents: bool,
    /// `--exclude`, each
    pub exclude: Vec<String>,
    /// Files given in the Dockerfile itself: name and content.
    pub heredocs: Vec<Heredoc>,
}

/// `ADD`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Add {
    /// Paths, wildcards, and the addresses of files and Git repositories, unexpanded.
    pub sources: Vec<String>,
    /// Where to, unexpanded; a trailing slash is significant.
    pub destination: String,
    /// `--chown`
    pub chown: Option<String>,
    /// `--chmod`
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--exclude`, each
    pub exclude: Vec<String>,
    /// `--checksum`
    pub checksum: Option<String>,
    /// `--keep-git-dir`, when given
    pub keep_git_dir: Option<bool>,
    /// `--unpack`, when given
    pub unpack: Option<bool>,
    /// Files given in the Dockerfile itself: name and content.
    pub heredocs: Vec<Heredoc>,
}

/// `HEALTHCHECK`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthcheck {
    /// `HEALTHCHECK NONE`: drops the base image's.
    None,
    /// `HEALTHCHECK CMD …`
    Check(Check),
}

/// A health check to run; a duration of `None` means the runtime's default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What to run.
    pub command: Command,
    /// `--interval`
    pub interval: Option<Duration>,
    /// `--timeout`
    pub timeout: Option<Duration>,
    /// `--start-period`
    pub start_period: Option<Duration>,
    /// `--start-interval`
    pub start_interval: Option<Duration>,
    /// `--retries`; 0 means the runtime's default.
    pub retries: u32,
}

impl Run {
    /// The flags of this name, in order.
    pub fn flags_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.flags.iter().filter(move |flag| flag.name == name).map(|flag| flag.value.as_str())
    }
}

impl Command {
    /// What to execute: a lone heredoc is the script itself (a file when it starts with `#!`); with anything beside
    /// it on the line, the bodies go to the shell after the line.
    pub fn script(&self) -> Script {
        let (text, heredocs) = match self {
            Command::Exec(arguments) => return Script::Exec(arguments.clone()),
            Command::Shell { text, heredocs } => (text, heredocs),
        };
        match heredocs.as_slice() {
            [] => Script::Shell(text.clone()),
            [lone] if matches!(Heredoc::parse(text), Ok(Some(_))) => {
                if lone.content.starts_with("#!") {
                    Script::File { name: lone.name.clone(), content: lone.body() }
                } else {
                    Script::Shell(lone.body())
                }
            }
            _ => {
                let bodies = heredocs.iter().map(|heredoc| format!("\n{}{}", heredoc.content, heredoc.name));
                Script::Shell(text.clone() + &bodies.collect::<String>())
            }
        }
    }
}
