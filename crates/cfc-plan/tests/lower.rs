//! What Dockerfiles mean: nodes, config and history.

mod common;

use cfc_plan::{Copy, CopySource, ExtraHost, ModeChange, Op, Run, RunNetwork, Source};
use common::{Images, history, lower, plan, request, with_args};

fn run(plan: &cfc_plan::Plan, index: usize) -> &Run {
    let runs: Vec<&Run> = plan
        .nodes
        .iter()
        .filter_map(|node| match &node.op {
            Op::Run(run) => Some(run),
            _ => None,
        })
        .collect();
    runs[index]
}

fn copy(plan: &cfc_plan::Plan, index: usize) -> &Copy {
    let copies: Vec<&Copy> = plan
        .nodes
        .iter()
        .filter_map(|node| match &node.op {
            Op::Copy(copy) => Some(copy),
            _ => None,
        })
        .collect();
    copies[index]
}

fn paths(copy: &Copy) -> Vec<&str> {
    fn path(source: &Source) -> Option<&str> {
        match source {
            Source::Path { path, .. } => Some(path),
            _ => None,
        }
    }
    copy.sources.iter().filter_map(path).collect()
}

fn variable<'a>(run: &'a Run, name: &str) -> Option<&'a str> {
    run.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

#[test]
fn an_image_from_scratch_has_buildkits_config_and_history() {
    let plan = plan(
        "FROM scratch\nCOPY a b/ /c/\nRUN echo hi\nRUN [\"/bin/x\", \"-y\"]\nENV A=1 B=\"2 3\"\nLABEL l=m\nWORKDIR /srv\n\
         WORKDIR sub\nEXPOSE 80 7000-7001/udp\nUSER 1000:1000\nENTRYPOINT [\"/bin/x\", \"a \\\"b\\\"\"]\nCMD run me\n",
    );
    assert_eq!(
        history(&plan),
        [
            "COPY a b/ /c/ # buildkit",
            "RUN /bin/sh -c echo hi # buildkit",
            "RUN /bin/x -y # buildkit",
            "(ENV A=1 B=2 3)",
            "(LABEL l=m)",
            "WORKDIR /srv",
            "WORKDIR /srv/sub",
            "(EXPOSE [7000/udp 7001/udp 80/tcp])",
            "(USER 1000:1000)",
            r#"(ENTRYPOINT ["/bin/x" "a \"b\""])"#,
            r#"(CMD ["/bin/sh" "-c" "run me"])"#,
        ]
    );
    let first = &plan.config.history[0];
    assert_eq!(first.comment.as_deref(), Some("buildkit.dockerfile.v0"));
    assert_eq!(first.created.as_deref(), Some("1980-01-01T00:00:01Z"));
    let json = String::from_utf8(plan.config.to_bytes()).expect("text");
    assert!(
        json.starts_with(
            r#"{"created":"1980-01-01T00:00:01Z","architecture":"amd64","os":"linux","config":{"User":"1000:1000","ExposedPorts":{"7000/udp":{},"7001/udp":{},"80/tcp":{}},"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","A=1","B=2 3"],"Entrypoint":["/bin/x","a \"b\""],"Cmd":["/bin/sh","-c","run me"],"ArgsEscaped":true,"WorkingDir":"/srv/sub","Labels":{"l":"m"}}"#
        ),
        "{json}"
    );
}

#[test]
fn the_stop_signal_is_in_config_and_history_as_it_was_written() {
    let plan = plan("FROM scratch\nARG S=sigquit\nSTOPSIGNAL 9\nSTOPSIGNAL $S\n");
    assert_eq!(plan.config.config.stop_signal.as_deref(), Some("sigquit"));
    assert_eq!(history(&plan)[1..], ["(STOPSIGNAL 9)", "(STOPSIGNAL sigquit)"]);
}

#[test]
fn one_instruction_sees_the_environment_before_it() {
    let plan = plan("FROM scratch\nENV a=hello\nENV a=bye b=$a\nENV c=$a\n");
    let env = plan.config.config.env.expect("variables");
    assert_eq!(env[1..], ["a=bye", "b=hello", "c=bye"]);
}

#[test]
fn global_arguments_count_in_from_and_where_they_are_declared_again() {
    let dockerfile = "ARG NAME=base\nARG V=1\nFROM $NAME\nARG V\nRUN echo $V $NAME\n";
    let lowered = plan(dockerfile);
    assert_eq!(variable(run(&lowered, 0), "V"), Some("1"));
    assert_eq!(variable(run(&lowered, 0), "NAME"), None);
    assert_eq!(history(&lowered), ["(ARG V=1)", "RUN |1 V=1 /bin/sh -c echo $V $NAME # buildkit"]);

    let given = lower(&with_args(dockerfile, &[("V", "2"), ("NAME", "shell")])).expect("lowers");
    assert_eq!(variable(run(&given, 0), "V"), Some("2"));
    assert_eq!(run(&given, 0).args, ["/bin/bash", "-ec", "echo $V $NAME"]);
}

#[test]
fn env_beats_arg_and_arguments_reach_child_stages() {
    let dockerfile = "FROM scratch AS one\nARG A=arg\nENV A=env\nARG B=b\nFROM one\nRUN x\n";
    let lowered = lower(&with_args(dockerfile, &[("A", "given")])).expect("lowers");
    assert_eq!(variable(run(&lowered, 0), "A"), Some("env"));
    assert_eq!(variable(run(&lowered, 0), "B"), Some("b"));
    assert_eq!(history(&lowered).last().map(String::as_str), Some("RUN |2 A=env B=b /bin/sh -c x # buildkit"));
}

#[test]
fn platform_arguments_are_there_when_declared() {
    let lowered = plan("FROM --platform=$TARGETPLATFORM scratch\nARG TARGETARCH\nARG TARGETPLATFORM\nRUN x\n");
    assert_eq!(variable(run(&lowered, 0), "TARGETARCH"), Some("amd64"));
    assert_eq!(variable(run(&lowered, 0), "TARGETPLATFORM"), Some("linux/amd64"));
    assert_eq!(variable(run(&lowered, 0), "TARGETOS"), None);
}

#[test]
fn proxies_reach_programs_but_neither_history_nor_key() {
    let dockerfile = "FROM scratch\nRUN x\n";
    let without = plan(dockerfile);
    let with = lower(&with_args(dockerfile, &[("http_proxy", "http://proxy")])).expect("lowers");
    let unkeyed = &run(&with, 0).unkeyed_env;
    assert!(unkeyed.contains(&("HTTP_PROXY".to_string(), "http://proxy".to_string())));
    assert!(unkeyed.contains(&("http_proxy".to_string(), "http://proxy".to_string())));
    assert_eq!(with.node(with.target).key, without.node(without.target).key);
    assert_eq!(history(&with), history(&without));
}

#[test]
fn the_base_image_is_inherited_and_entrypoint_drops_its_cmd() {
    let kept = plan("FROM base\nRUN x\nCOPY a .\n");
    let container = &kept.config.config;
    assert_eq!(container.cmd.as_deref(), Some(&["base-cmd".to_string()][..]));
    assert_eq!(container.env.as_deref(), Some(&["PATH=/bin".to_string(), "FROM_BASE=1".to_string()][..]));
    assert_eq!((run(&kept, 0).user.as_str(), run(&kept, 0).working_directory.as_str()), ("app", "/work"));
    assert_eq!(copy(&kept, 0).destination, "/work/");

    let reset = plan("FROM base\nENTRYPOINT [\"/e\"]\n");
    assert_eq!(reset.config.config.cmd, None);
    let own = plan("FROM base\nCMD [\"mine\"]\nENTRYPOINT [\"/e\"]\n");
    assert_eq!(own.config.config.cmd.as_deref(), Some(&["mine".to_string()][..]));
    let stage = plan("FROM base AS one\nCMD [\"mine\"]\nFROM one\nENTRYPOINT [\"/e\"]\n");
    assert_eq!(stage.config.config.cmd, None);
}

#[test]
fn copies_know_their_paths_owner_and_mode() {
    let lowered = plan(
        "FROM scratch AS one\nFROM scratch\nWORKDIR /w\nCOPY --from=one --chown=1:2 --chmod=0640 ../a/ b* dest\nCOPY . /x/\nCOPY --from=0 /a /b/.\n",
    );
    let first = copy(&lowered, 0);
    assert_eq!(paths(first), ["/a", "/b*"]);
    assert_eq!(first.destination, "/w/dest");
    assert_eq!((first.owner.as_deref(), first.mode.clone()), (Some("1:2"), Some(ModeChange::Bits(0o640))));
    assert!(matches!(first.from, CopySource::Node(_)));
    assert_eq!((&copy(&lowered, 1).from, paths(copy(&lowered, 1))[0]), (&CopySource::Context, "/"));
    assert_eq!(copy(&lowered, 1).destination, "/x/");
    assert_eq!(copy(&lowered, 2).destination, "/b/");
    assert_eq!(
        history(&lowered),
        [
            "WORKDIR /w",
            "COPY --chown=1:2 --chmod=0640 ../a/ b* dest # buildkit",
            "COPY . /x/ # buildkit",
            "COPY /a /b/. # buildkit"
        ]
    );
}

#[test]
fn only_stages_that_the_target_needs_are_lowered() {
    let dockerfile = "FROM base AS tools\nRUN tools\nFROM missing AS unused\nRUN unused\nFROM scratch AS last\nCOPY --from=tools /t /t\n";
    let images = Images::default();
    let lowered = cfc_plan::lower(&request(dockerfile), &images).expect("lowers");
    assert_eq!(images.asked.into_inner().expect("no panic"), ["base linux/amd64"]);
    assert_eq!(lowered.nodes.len(), 4);

    let tools = lower(&cfc_plan::BuildRequest { target: Some("TOOLS".into()), ..request(dockerfile) }).expect("lowers");
    assert_eq!(history(&tools), ["RUN /bin/sh -c tools # buildkit"]);
    let number = lower(&cfc_plan::BuildRequest { target: Some("0".into()), ..request(dockerfile) }).expect("lowers");
    assert_eq!(number.node(number.target).key, tools.node(tools.target).key);
}

#[test]
fn a_stage_may_copy_from_a_later_one() {
    let lowered = plan("FROM scratch AS one\nCOPY --from=two /a /a\nFROM scratch AS two\nCOPY a /a\nFROM one\n");
    assert_eq!(history(&lowered), ["COPY /a /a # buildkit"]);
}

#[test]
fn the_same_step_is_one_node() {
    let dockerfile = "FROM base AS a\nRUN same\nFROM base AS b\nRUN same\nRUN b\nFROM scratch\nCOPY --from=a /x /\nCOPY --from=b /x /\n";
    let lowered = plan(dockerfile);
    let runs = lowered.nodes.iter().filter(|node| matches!(node.op, Op::Run(_))).count();
    assert_eq!(runs, 2);
}

#[test]
fn keys_change_with_what_is_below() {
    let key = |dockerfile: &str| {
        let lowered = plan(dockerfile);
        lowered.node(lowered.target).key.clone()
    };
    assert_eq!(key("FROM base\nRUN x\n"), key("FROM base AS other\n# comment\nRUN x\n"));
    assert_ne!(key("FROM base\nRUN x\n"), key("FROM base\nRUN y\n"));
    assert_ne!(key("FROM base\nRUN x\n"), key("FROM base\nENV a=b\nRUN x\n"));
    assert_ne!(key("FROM base\nRUN y\nRUN x\n"), key("FROM base\nRUN x\n"));
    let copied = |from: &str| {
        key(&format!("FROM base AS a\nRUN 1\nFROM base AS b\nRUN 2\nFROM scratch\nCOPY --from={from} /x /\n"))
    };
    assert_ne!(copied("a"), copied("b"));
}

#[test]
fn the_epoch_comes_from_the_build_argument_or_its_default() {
    let dockerfile = "ARG SOURCE_DATE_EPOCH=1700000000\nFROM scratch\nENV a=b\n";
    assert_eq!(plan(dockerfile).config.created.as_deref(), Some("2023-11-14T22:13:20Z"));
    let given = lower(&with_args(dockerfile, &[("SOURCE_DATE_EPOCH", "5")])).expect("lowers");
    assert_eq!(given.source_date_epoch, 5);
    assert_eq!(given.config.history[0].created.as_deref(), Some("1970-01-01T00:00:05Z"));
}

#[test]
fn labels_of_the_request_win() {
    let mut with_labels = request("FROM scratch\nLABEL a=1 b=2\n");
    with_labels.labels.insert("a".to_string(), "9".to_string());
    let labels = lower(&with_labels).expect("lowers").config.config.labels.expect("labels");
    assert_eq!((labels["a"].as_str(), labels["b"].as_str()), ("9", "2"));
}

#[test]
fn build_arguments_that_nothing_asks_for_are_warned_about() {
    let dockerfile = "ARG A\nFROM scratch\nARG B\n";
    let given = [("A", "1"), ("B", "2"), ("HTTP_PROXY", "p"), ("SOURCE_DATE_EPOCH", "1")];
    assert_eq!(lower(&with_args(dockerfile, &given)).expect("lowers").warnings, Vec::<String>::new());
    let warnings = lower(&with_args(dockerfile, &[("AA", "1"), ("C", "2")])).expect("lowers").warnings;
    assert_eq!(warnings, ["no `ARG` asks for the build arguments AA, C"]);
}

#[test]
fn the_builds_network_is_that_of_steps_that_name_none() {
    let mut request = request("FROM base\nRUN a\nRUN --network=default b\nRUN --network=none c\n");
    request.run.network = RunNetwork::Host;
    let lowered = lower(&request).expect("lowers");
    let networks: Vec<RunNetwork> = (0..3).map(|index| run(&lowered, index).network).collect();
    assert_eq!(networks, [RunNetwork::Host, RunNetwork::Host, RunNetwork::None]);
}

#[test]
fn settings_of_steps_are_part_of_their_keys_but_for_addresses() {
    let keys = |change: &dyn Fn(&mut cfc_plan::RunSettings)| {
        let mut request = request("FROM base\nRUN a\n");
        change(&mut request.run);
        let lowered = lower(&request).expect("lowers");
        lowered.node(lowered.target).key.clone()
    };
    let host = |name: &str, address: &str| ExtraHost::parse(&format!("{name}:{address}"), || None).expect("a host");
    let plain = keys(&|_| {});
    let one = keys(&|run| run.hosts = vec![host("a", "10.0.0.1")]);
    assert_ne!(plain, one);
    assert_eq!(one, keys(&|run| run.hosts = vec![host("a", "10.0.0.2")]));
    assert_ne!(one, keys(&|run| run.hosts = vec![host("b", "10.0.0.1")]));
    assert_ne!(plain, keys(&|run| run.shm_size = Some(1)));
    assert_ne!(plain, keys(&|run| run.ulimits = vec!["nofile=1".parse().expect("a limit")]));
    assert_ne!(plain, keys(&|run| run.network = RunNetwork::None));
}

#[test]
fn an_image_for_another_platform_says_so() {
    let mut request = request("FROM --platform=$BUILDPLATFORM base AS one\nRUN a\nFROM base\nCOPY --from=one /a /\n");
    request.platform = "linux/arm/v7".parse().expect("a platform");
    assert_eq!(lower(&request).expect("lowers").config.platform().to_string(), "linux/arm/v7");
    request.target = Some("one".to_string());
    assert_eq!(
        lower(&request).expect("lowers").config.platform().to_string(),
        "linux/arm/v7",
        "whatever it is made from"
    );
}

#[test]
fn an_image_that_is_copied_from_is_the_targets() {
    let mut request =
        request("FROM --platform=$BUILDPLATFORM base\nCOPY --from=shell /a /\nRUN --mount=from=trigger,target=/b b\n");
    request.platform = "linux/arm/v7".parse().expect("a platform");
    let images = Images::default();
    cfc_plan::lower(&request, &images).expect("lowers");
    let asked = images.asked.into_inner().expect("no panic");
    let own = format!("base {}", cfc_oci::Platform::host());
    assert_eq!(asked, [own.as_str(), "shell linux/arm/v7", "trigger linux/arm/v7"]);
}
