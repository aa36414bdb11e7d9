//! The value of `RUN --mount=…`: comma-separated `key=value`.

use std::str::FromStr;

use crate::{WordError, suggest};

/// A mount of a `RUN`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// `type=`
    pub kind: MountKind,
    /// `from=`: a stage, an image or a named context. `None` is the build context for a bind, nothing for a cache.
    pub from: Option<String>,
    /// `source=`, `src=`
    pub source: Option<String>,
    /// `target=`, `dst=`, `destination=`: where to, relative to the working directory.
    pub target: Option<String>,
    /// `ro` or `rw`; without either, caches and tmpfs can be written, the others not.
    pub read_only: bool,
    /// `id=`
    pub id: Option<String>,
    /// `sharing=`, caches only
    pub sharing: Option<Sharing>,
    /// `required`, secrets and ssh only: it is an error when there is none.
    pub required: bool,
    /// `size=` in bytes, tmpfs only
    pub size: Option<u64>,
    /// `mode=`
    pub mode: Option<u32>,
    /// `uid=`
    pub uid: Option<u32>,
    /// `gid=`
    pub gid: Option<u32>,
    /// `env=`, secrets only: the variable that gets the secret.
    pub env: Option<String>,
}

/// What is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountKind {
    /// A directory or file of the context, a stage or an image.
    #[default]
    Bind,
    /// A directory that outlives the build.
    Cache,
    /// Memory.
    Tmpfs,
    /// A file or variable that never gets into the image.
    Secret,
    /// The socket of an ssh agent.
    Ssh,
}

/// Who may use a cache at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// All at once.
    Shared,
    /// Each their own.
    Private,
    /// One after the other.
    Locked,
}

/// Why a text is no mount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MountError {
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

const KINDS: [(&str, MountKind); 5] = [
    ("bind", MountKind::Bind),
    ("cache", MountKind::Cache),
    ("tmpfs", MountKind::Tmpfs),
    ("secret", MountKind::Secret),
    ("ssh", MountKind::Ssh),
];

const SHARINGS: [(&str, Sharing); 3] =
    [("shared", Sharing::Shared), ("private", Sharing::Private), ("locked", Sharing::Locked)];

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "env",
];

impl Mount {
    /// Reads the value of a `--mount` flag; `expand` replaces the variables of each value.
    ///
    /// Keys count in their order: `required` and `size` ask what `type` has said before them.
    pub fn parse(text: &str, expand: &dyn Fn(&str) -> Result<String, WordError>) -> Result<Mount, MountError> {
        let mut mount = Mount::default();
        let mut read_only = None;
        for field in fields(text)? {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key.to_lowercase(), Some(value)),
                None => (field.to_lowercase(), None),
            };
            let value = value.map(expand).transpose().map_err(|error| error_of(error.to_string()))?;
            match (key.as_str(), value) {
                ("readonly" | "ro", value) => read_only = Some(flag(&key, value)?),
                ("readwrite" | "rw", value) => read_only = Some(!flag(&key, value)?),
                ("required", value) => {
                    mount.only_for(&[MountKind::Secret, MountKind::Ssh], &key)?;
                    mount.required = flag(&key, value)?;
                }
                (_, None) => return Err(error_of(format!("invalid field `{field}`: must be a key=value pair"))),
                (_, Some(value)) => mount.set(&key, value)?,
            }
        }
        let is_writable_by_default = matches!(mount.kind, MountKind::Cache | MountKind::Tmpfs);
        mount.read_only = read_only.unwrap_or(!is_writable_by_default);
        mount.check()?;
        Ok(mount)
    }

    /// What the value of a `--mount` flag says in `from=`, which takes no variables. A `tmpfs` comes from nowhere.
    pub fn from_of(text: &str) -> Option<String> {
        let fields = fields(text).ok()?;
        let value = |wanted: &str| {
            let values = fields.iter().filter_map(|field| field.split_once('='));
            values.rev().find(|(key, _)| key.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.to_owned())
        };
        let is_tmpfs = value("type").is_some_and(|kind| kind.eq_ignore_ascii_case("tmpfs"));
        value("from").filter(|from| !from.is_empty() && !is_tmpfs)
    }

    /// What must be right before variables are known: the form, and that `from` has none.
    pub(super) fn check_unexpanded(text: &str) -> Result<(), MountError> {
        for field in fields(text)? {
            let from = field.split_once('=').filter(|(key, _)| key.eq_ignore_ascii_case("from"));
            let has_variable =
                from.and_then(|(_, value)| value.split_once('$')).is_some_and(|(_, name)| !name.is_empty());
            if has_variable {
                return Err(MountError {
                    message: "`from` doesn't support variable expansion".to_owned(),
                    hint: Some("define an alias stage: `FROM $NAME AS alias`, then `from=alias`".to_owned()),
                });
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), MountError> {
        let given = Some(value.clone()).filter(|value| !value.is_empty());
        match key {
            "type" => self.kind = choice("mount type", &value, &KINDS)?,
            "from" => self.from = given,
            "source" | "src" => self.source = given,
            "target" | "dst" | "destination" => self.target = given,
            "id" => self.id = given,
            "env" => self.env = given,
            "sharing" => self.sharing = Some(choice("sharing value", &value, &SHARINGS)?),
            "size" => {
                self.only_for(&[MountKind::Tmpfs], key)?;
                self.size = Some(parse_size(&value).ok_or_else(|| invalid(key, &value))?);
            }
            "mode" => self.mode = Some(u32::from_str_radix(&value, 8).map_err(|_| invalid(key, &value))?),
            "uid" => self.uid = Some(number(key, &value)?),
            "gid" => self.gid = Some(number(key, &value)?),
            _ => {
                let hint = Some(suggest::hint(key, &KEYS));
                return Err(MountError { message: format!("unexpected key `{key}` in `{key}={value}`"), hint });
            }
        }
        Ok(())
    }

    fn only_for(&self, kinds: &[MountKind], key: &str) -> Result<(), MountError> {
        if kinds.contains(&self.kind) {
            return Ok(());
        }
        Err(error_of(format!("unexpected key `{key}` for mount type `{}`", self.kind.name())))
    }

    fn check(&self) -> Result<(), MountError> {
        let name = self.kind.name();
        let has_owner = matches!(self.kind, MountKind::Secret | MountKind::Ssh | MountKind::Cache);
        let owner = [("mode", self.mode), ("uid", self.uid), ("gid", self.gid)];
        if let Some((key, _)) = owner.iter().find(|(_, value)| value.is_some() && !has_owner) {
            return Err(error_of(format!("{key} not allowed for `{name}` type mounts")));
        }
        if self.kind == MountKind::Secret {
            self.check_secret()?;
        } else if self.env.is_some() {
            return Err(error_of(format!("unexpected key `env` for mount type `{name}`")));
        }
        if self.sharing.is_some() && self.kind != MountKind::Cache {
            return Err(error_of(format!("invalid cache sharing set for {name} mount")));
        }
        Ok(())
    }

    fn check_secret(&self) -> Result<(), MountError> {
        let names = [&self.source, &self.target, &self.id, &self.env];
        if self.from.is_some() {
            return Err(error_of("secret mount should not have a from".to_owned()));
        }
        if names.iter().all(|name| name.is_none()) {
            return Err(error_of("invalid secret mount: one of id, source, target or env is required".to_owned()));
        }
        if self.source.is_some() && self.id.is_some() {
            return Err(error_of("both source and id can't be set".to_owned()));
        }
        Ok(())
    }
}

impl Sharing {
    /// As `sharing=` has it.
    pub fn name(self) -> &'static str {
        SHARINGS.iter().find(|(_, sharing)| *sharing == self).map_or("", |(name, _)| name)
    }
}

impl MountKind {
    /// As `type=` has it.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

fn error_of(message: String) -> MountError {
    MountError { message, hint: None }
}

fn invalid(key: &str, value: &str) -> MountError {
    error_of(format!("invalid value for {key}: {value}"))
}

fn number(key: &str, value: &str) -> Result<u32, MountError> {
    u32::from_str(value).map_err(|_| invalid(key, value))
}

/// A key that is true when it stands alone.
fn flag(key: &str, value: Option<String>) -> Result<bool, MountError> {
    match value.as_deref() {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(invalid(key, other)),
    }
}

fn choice<T: Copy>(what: &str, value: &str, choices: &[(&str, T)]) -> Result<T, MountError> {
    let lower = value.to_lowercase();
    choices.iter().find(|(name, _)| *name == lower).map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        MountError { message: format!("unsupported {what} `{value}`"), hint: Some(suggest::hint(&lower, &names)) }
    })
}

/// `128m`, `1.5GiB`, `4096`: bytes, in powers of 1024.
pub fn parse_size(text: &str) -> Option<u64> {
    let lower = text.trim().to_lowercase();
    let digits = lower.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let unit = unit.trim_start();
    let factor = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" if matches!(unit, "" | "b") => 1u64,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        "p" => 1 << 50,
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok()? * factor as f64;
    (bytes < i64::MAX as f64).then_some(bytes as u64)
}

/// The fields of one line of comma-separated values; a field may stand in double quotes.
fn fields(text: &str) -> Result<Vec<String>, MountError> {
    let bad_quote = || error_of(format!("failed to parse csv mounts: misplaced `\"` in `{text}`"));
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let Some(mut inside) = rest.strip_prefix('"') else {
            let (field, after) = rest.split_once(',').map_or((rest, None), |(field, after)| (field, Some(after)));
            if field.contains('"') {
                return Err(bad_quote());
            }
            fields.push(field.to_owned());
            match after {
                Some(after) => rest = after,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        loop {
            let (before, after) = inside.split_once('"').ok_or_else(bad_quote)?;
            field.push_str(before);
            inside = after;
            match inside.strip_prefix('"') {
                Some(after) => {
                    field.push('"');
                    inside = after;
                }
                None => break,
            }
        }
        fields.push(field);
        match inside.strip_prefix(',') {
            Some(after) => rest = after,
            None if inside.is_empty() => return Ok(fields),
            None => return Err(bad_quote()),
        }
    }
}
