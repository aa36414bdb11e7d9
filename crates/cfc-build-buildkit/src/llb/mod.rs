//! LLB, BuildKit's low-level description of a build, as typed operations.
//!
//! The only place that knows LLB's messages. An operation is known by the digest of its bytes, and refers to its inputs
//! by theirs; the same operations give the same digests on every machine and in every run, since nothing here takes
//! time, chance or the order of a hash map.

mod exec;
mod file;
mod source;

use std::collections::BTreeMap;

use bollard_buildkit_proto::pb;
use cfc_oci::{Digest, Platform};
use prost::Message;

pub(crate) use self::exec::{Access, Cache, Exec, ExecMount, MountSource};
pub(crate) use self::file::{Action, Chown, CopyFiles, FileOp};
pub(crate) use self::source::Source;

/// How BuildKit names what an operation is called.
const NAME: &str = "llb.customname";

/// A filesystem: what an operation made, or nothing at all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State(Option<String>);

impl State {
    /// The empty filesystem.
    pub(crate) const SCRATCH: State = State(None);

    /// The digest of the operation that made it; none for the empty one.
    pub(crate) fn digest(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// What is said of an operation without being part of what it does.
#[derive(Clone, Debug)]
pub(crate) struct About<'a> {
    /// What people see.
    pub(crate) name: String,
    /// What belongs together is shown as one: an id, and what people see of it.
    pub(crate) group: Option<(String, String)>,
    /// Whether an earlier result is not used.
    pub(crate) is_fresh: bool,
    /// For which platform it is; the worker is chosen by it.
    pub(crate) platform: &'a Platform,
}

/// Operations, each once, inputs first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Graph {
    operations: Vec<Vec<u8>>,
    metadata: BTreeMap<String, pb::OpMetadata>,
}

/// The inputs of one operation, numbered.
#[derive(Default)]
struct Inputs(Vec<pb::Input>);

impl Inputs {
    /// BuildKit's number for the empty filesystem.
    const NOTHING: i64 = -1;

    /// The number of `state`, which becomes an input unless it is one.
    fn number(&mut self, state: &State) -> i64 {
        let Some(digest) = state.digest() else { return Inputs::NOTHING };
        let known = self.0.iter().position(|input| input.digest == digest);
        let number = known.unwrap_or_else(|| {
            self.0.push(pb::Input { digest: digest.to_string(), index: 0 });
            self.0.len() - 1
        });
        number as i64
    }
}

impl Graph {
    /// Something from outside.
    pub(crate) fn source(&mut self, source: &Source, about: &About<'_>) -> State {
        self.add(Vec::new(), pb::op::Op::Source(source.to_message()), about)
    }

    /// A program that was run; the state is its root filesystem.
    pub(crate) fn exec(&mut self, exec: &Exec, about: &About<'_>) -> State {
        let mut inputs = Inputs::default();
        let message = exec.to_message(&mut inputs);
        self.add(inputs.0, pb::op::Op::Exec(message), about)
    }

    /// Files that were changed.
    pub(crate) fn file(&mut self, file: &FileOp, about: &About<'_>) -> State {
        let mut inputs = Inputs::default();
        let message = file.to_message(&mut inputs);
        self.add(inputs.0, pb::op::Op::File(message), about)
    }

    /// `upper` laid over `lower` as layers are, without looking into either.
    pub(crate) fn merge(&mut self, lower: &State, upper: &State, about: &About<'_>) -> State {
        if *lower == State::SCRATCH {
            return upper.clone();
        }
        let mut inputs = Inputs::default();
        let merged = [lower, upper].map(|state| pb::MergeInput { input: inputs.number(state) });
        self.add(inputs.0, pb::op::Op::Merge(pb::MergeOp { inputs: merged.to_vec() }), about)
    }

    /// What `upper` has and `lower` has not, as a layer.
    pub(crate) fn diff(&mut self, lower: &State, upper: &State, about: &About<'_>) -> State {
        let mut inputs = Inputs::default();
        let lower = Some(pb::LowerDiffInput { input: inputs.number(lower) });
        let upper = Some(pb::UpperDiffInput { input: inputs.number(upper) });
        self.add(inputs.0, pb::op::Op::Diff(pb::DiffOp { lower, upper }), about)
    }

    fn add(&mut self, inputs: Vec<pb::Input>, op: pb::op::Op, about: &About<'_>) -> State {
        let message = pb::Op {
            inputs,
            op: Some(op),
            platform: Some(platform(about.platform)),
            constraints: Some(<_>::default()),
        };
        let bytes = message.encode_to_vec();
        let digest = Digest::of(&bytes).to_string();
        if !self.metadata.contains_key(&digest) {
            self.operations.push(bytes);
            self.metadata.insert(digest.clone(), metadata(about));
        }
        State(Some(digest))
    }

    /// The message for BuildKit whose result is `target`.
    pub(crate) fn definition(&self, target: &State) -> pb::Definition {
        let mut inputs = Inputs::default();
        inputs.number(target);
        let end = pb::Op { inputs: inputs.0, ..pb::Op::default() }.encode_to_vec();
        let def = self.operations.iter().cloned().chain([end]).collect();
        pb::Definition { def, metadata: self.metadata.clone(), source: None }
    }
}

fn metadata(about: &About<'_>) -> pb::OpMetadata {
    pb::OpMetadata {
        ignore_cache: about.is_fresh,
        description: BTreeMap::from([(NAME.to_string(), about.name.clone())]),
        progress_group: about.group.clone().map(|(id, name)| pb::ProgressGroup { id, name, weak: false }),
        ..pb::OpMetadata::default()
    }
}

/// The platform as BuildKit has it.
pub(crate) fn platform(platform: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone().unwrap_or_default(),
        os_version: platform.os_version.clone().unwrap_or_default(),
        os_features: platform.os_features.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph() -> (Graph, State) {
        let platform = Platform::new("linux", "amd64");
        let about = |name: &str| About { name: name.to_string(), group: None, is_fresh: false, platform: &platform };
        let mut graph = Graph::default();
        let local =
            graph.source(&Source::local("context", "session", &["b".into(), "a".into()], "hint"), &about("files"));
        let copy = CopyFiles { from: local.clone(), ..CopyFiles::of("/a", "/x/") };
        let file = FileOp { base: State::SCRATCH, actions: vec![Action::Copy(copy)] };
        let copied = graph.file(&file, &about("COPY a /x/"));
        let linked = graph.merge(&local, &copied, &about("COPY --link a /x/"));
        let difference = graph.diff(&local, &linked, &about("what it made"));
        let exec = Exec { args: vec!["/x/a".to_string()], working_directory: "/".to_string(), ..Exec::on(linked) };
        let ran = graph.exec(&exec, &about("RUN /x/a"));
        let both = graph.merge(&ran, &difference, &about("both"));
        (graph, both)
    }

    #[test]
    fn the_same_operations_have_the_same_digests() {
        let [(first, one), (second, other)] = [graph(), graph()];
        assert_eq!(one, other);
        assert_eq!(first.definition(&one).encode_to_vec(), second.definition(&other).encode_to_vec());
        // Written down, so that a change of what others see as the same operation is seen, too.
        assert_eq!(one.digest().map(|digest| &digest[..19]), Some("sha256:77ad1f27cfb2"));
    }

    #[test]
    fn an_operation_is_in_the_graph_once_and_behind_its_inputs() {
        let (mut graph, _) = graph();
        let before = graph.operations.len();
        let platform = Platform::new("linux", "amd64");
        let about = About { name: "again".to_string(), group: None, is_fresh: true, platform: &platform };
        graph.source(&Source::local("context", "session", &["b".into(), "a".into()], "hint"), &about);
        assert_eq!(graph.operations.len(), before);
        let mut known = Vec::new();
        for bytes in &graph.operations {
            let op = pb::Op::decode(&**bytes).expect("ours");
            assert!(op.inputs.iter().all(|input| known.contains(&input.digest)), "{op:?}");
            known.push(Digest::of(bytes).to_string());
        }
    }
}
