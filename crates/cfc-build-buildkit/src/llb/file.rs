//! [`FileOp`]: files copied, made and removed, one action after the other.

use bollard_buildkit_proto::pb::{self, file_action, user_opt};

use super::{Inputs, State};

/// What BuildKit takes for "as it was".
const UNCHANGED: i64 = -1;
/// The result of an action that is only the next one's input.
const NO_OUTPUT: i64 = -1;

/// Actions on a filesystem, in order.
#[derive(Clone, Debug)]
pub(crate) struct FileOp {
    /// The filesystem that is changed.
    pub(crate) base: State,
    /// At least one.
    pub(crate) actions: Vec<Action>,
}

/// One change.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Copies.
    Copy(CopyFiles),
    /// Makes a directory, with those above it.
    MakeDirectory {
        /// Where.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Whose it becomes; root's otherwise.
        owner: Option<Chown>,
    },
    /// Makes a file.
    MakeFile {
        /// Where.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Its content.
        content: Vec<u8>,
    },
    /// Removes a file or directory, which may be missing.
    #[cfg_attr(not(test), expect(dead_code, reason = "no instruction removes files by itself"))]
    Remove {
        /// What.
        path: String,
    },
}

/// What is copied, and how.
#[derive(Clone, Debug)]
pub(crate) struct CopyFiles {
    /// Where from.
    pub(crate) from: State,
    /// What; it may hold wildcards where `has_wildcards` says so. A link is followed; of a directory, its content is copied.
    pub(crate) source: String,
    /// Where to: a directory when it ends in `/` or is one.
    pub(crate) destination: String,
    /// Whose the files become; they keep their owners otherwise.
    pub(crate) owner: Option<Chown>,
    /// Their permission bits; their own otherwise.
    pub(crate) mode: Option<u32>,
    /// A change of permission bits in letters.
    pub(crate) mode_text: Option<String>,
    /// Whether `source` is a pattern.
    pub(crate) has_wildcards: bool,
    /// Whether archives are unpacked.
    pub(crate) unpacks: bool,
    /// If there are any, only what matches one of them is copied, seen from `source`.
    pub(crate) include: Vec<String>,
    /// What is left out, seen from `source`.
    pub(crate) exclude: Vec<String>,
    /// What of `include` must be there.
    pub(crate) required: Vec<String>,
}

impl CopyFiles {
    /// A plain copy out of nothing; the caller says from where.
    pub(crate) fn of(source: &str, destination: &str) -> CopyFiles {
        CopyFiles {
            from: State::SCRATCH,
            source: source.to_string(),
            destination: destination.to_string(),
            owner: None,
            mode: None,
            mode_text: None,
            has_wildcards: false,
            unpacks: false,
            include: Vec::new(),
            exclude: Vec::new(),
            required: Vec::new(),
        }
    }
}

/// A user and a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chown {
    /// The user.
    pub(crate) user: User,
    /// The group; that of the user's entry otherwise.
    pub(crate) group: Option<User>,
    /// Where names are looked up.
    pub(crate) names: State,
}

/// A user or group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

impl Chown {
    /// What `user[:group]` says, names looked up in `names`. A number without a group is the group, too.
    pub(crate) fn parse(spec: &str, names: &State) -> Chown {
        let (user, group) = spec.split_once(':').unwrap_or((spec, ""));
        let parsed = |text: &str| match text {
            "root" => User::Id(0),
            text => text.parse().map_or_else(|_| User::Name(text.to_string()), User::Id),
        };
        let user = if user.is_empty() { User::Id(0) } else { parsed(user) };
        let group = match (group, &user) {
            ("", User::Id(_)) => Some(user.clone()),
            ("", User::Name(_)) => None,
            (group, _) => Some(parsed(group)),
        };
        Chown { user, group, names: names.clone() }
    }

    fn to_message(&self, inputs: &mut Inputs) -> pb::ChownOpt {
        let mut message = |user: &User| pb::UserOpt {
            user: Some(match user {
                User::Id(id) => user_opt::User::ById(*id),
                User::Name(name) => {
                    let input = inputs.number(&self.names);
                    user_opt::User::ByName(pb::NamedUserOpt { name: name.clone(), input })
                }
            }),
        };
        pb::ChownOpt { user: Some(message(&self.user)), group: self.group.as_ref().map(message) }
    }
}

impl FileOp {
    pub(super) fn to_message(&self, inputs: &mut Inputs) -> pb::FileOp {
        let base = inputs.number(&self.base);
        // First all inputs: the results of actions are numbered behind them.
        let bodies: Vec<(i64, file_action::Action)> =
            self.actions.iter().map(|action| action.to_message(inputs)).collect();
        let n_inputs = inputs.0.len() as i64;
        let last = bodies.len().saturating_sub(1);
        let actions = bodies.into_iter().enumerate().map(|(number, (secondary_input, action))| pb::FileAction {
            input: if number == 0 { base } else { n_inputs + number as i64 - 1 },
            secondary_input,
            output: if number == last { 0 } else { NO_OUTPUT },
            action: Some(action),
        });
        pb::FileOp { actions: actions.collect() }
    }
}

impl Action {
    /// The second input, and what is done.
    fn to_message(&self, inputs: &mut Inputs) -> (i64, file_action::Action) {
        match self {
            Action::Copy(copy) => (inputs.number(&copy.from), file_action::Action::Copy(copy.to_message(inputs))),
            Action::MakeDirectory { path, mode, owner } => {
                let owner = owner.as_ref().map(|owner| owner.to_message(inputs));
                let (path, mode) = (path.clone(), *mode as i32);
                let made = pb::FileActionMkDir { path, mode, make_parents: true, owner, timestamp: UNCHANGED };
                (Inputs::NOTHING, file_action::Action::Mkdir(made))
            }
            Action::MakeFile { path, mode, content } => {
                let (path, mode, data) = (path.clone(), *mode as i32, content.clone());
                let made = pb::FileActionMkFile { path, mode, data, owner: None, timestamp: UNCHANGED };
                (Inputs::NOTHING, file_action::Action::Mkfile(made))
            }
            Action::Remove { path } => {
                let removed = pb::FileActionRm { path: path.clone(), allow_not_found: true, allow_wildcard: false };
                (Inputs::NOTHING, file_action::Action::Rm(removed))
            }
        }
    }
}

impl CopyFiles {
    fn to_message(&self, inputs: &mut Inputs) -> pb::FileActionCopy {
        pb::FileActionCopy {
            src: self.source.clone(),
            dest: self.destination.clone(),
            owner: self.owner.as_ref().map(|owner| owner.to_message(inputs)),
            mode: self.mode.map_or(-1, |mode| mode as i32),
            follow_symlink: true,
            dir_copy_contents: true,
            attempt_unpack_docker_compatibility: self.unpacks,
            create_dest_path: true,
            allow_wildcard: self.has_wildcards,
            allow_empty_wildcard: self.has_wildcards,
            timestamp: UNCHANGED,
            include_patterns: self.include.clone(),
            exclude_patterns: self.exclude.clone(),
            always_replace_existing_dest_paths: false,
            mode_str: self.mode_text.clone().unwrap_or_default(),
            required_paths: self.required.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_read_as_in_a_dockerfile() {
        let parsed = |spec: &str| {
            let chown = Chown::parse(spec, &State::SCRATCH);
            (chown.user, chown.group)
        };
        let name = |name: &str| User::Name(name.to_string());
        assert_eq!(parsed("1000"), (User::Id(1000), Some(User::Id(1000))));
        assert_eq!(parsed("root"), (User::Id(0), Some(User::Id(0))));
        assert_eq!(parsed("app"), (name("app"), None));
        assert_eq!(parsed("app:50"), (name("app"), Some(User::Id(50))));
        assert_eq!(parsed("1000:staff"), (User::Id(1000), Some(name("staff"))));
    }

    #[test]
    fn actions_take_what_the_one_before_made() {
        let file = FileOp {
            base: State(Some("sha256:base".to_string())),
            actions: vec![
                Action::Copy(CopyFiles { from: State(Some("sha256:files".to_string())), ..CopyFiles::of("/a", "/b") }),
                Action::Remove { path: "/c".to_string() },
            ],
        };
        let mut inputs = Inputs::default();
        let message = file.to_message(&mut inputs);
        let numbers = message.actions.iter().map(|action| (action.input, action.secondary_input, action.output));
        assert_eq!(numbers.collect::<Vec<_>>(), [(0, 1, -1), (2, -1, 0)]);
    }
}
