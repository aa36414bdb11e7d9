//! Typed instructions: what each holds, and every way in which it is refused.

use std::time::Duration;

use cfc_dockerfile::{
    Check, Command, Copy, Dockerfile, Healthcheck, Instruction, Mount, MountKind, Problem, ProblemKind, Script,
    Sharing, Span, parse, parse_instruction,
};

fn file(text: &str) -> Dockerfile {
    parse(text.as_bytes()).unwrap_or_else(|problems| panic!("{text}: {problems:?}"))
}

fn only(text: &str) -> Instruction {
    parse_instruction(text).unwrap_or_else(|problems| panic!("{text}: {problems:?}")).value
}

fn problems(text: &str) -> Vec<Problem> {
    parse(text.as_bytes()).err().unwrap_or_else(|| panic!("{text} is accepted"))
}

/// The instruction is refused with exactly this message, at its own line.
fn check_refused(instruction: &str, kind: ProblemKind, message: &str) {
    let problems = problems(&format!("FROM a\n{instruction}"));
    let [problem] = problems.as_slice() else { panic!("{instruction}: {problems:?}") };
    assert_eq!((problem.kind, problem.message.as_str()), (kind, message), "{instruction}");
    assert_eq!(problem.span.start_line, 2, "{instruction}");
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn shell(text: &str) -> Command {
    Command::Shell { text: text.to_owned(), heredocs: Vec::new() }
}

#[test]
fn stages_take_what_follows_their_from() {
    let file = file("ARG V=1\nARG W X=$V\nfrom --platform=$P a:$V as Base.1\nRUN b\nFROM base.1\n");
    assert_eq!(file.global_args.len(), 2);
    assert_eq!(file.global_args[1].value, [("W".to_owned(), None), ("X".to_owned(), Some("$V".to_owned()))]);
    let [first, second] = &file.stages[..] else { panic!("{file:?}") };
    assert_eq!((first.name.as_deref(), first.base.as_str()), (Some("base.1"), "a:$V"));
    assert_eq!(first.platform.as_deref(), Some("$P"));
    assert_eq!(first.original, "from --platform=$P a:$V as Base.1");
    assert_eq!(first.span, Span::line(3));
    assert_eq!(
        first.instructions[0].value,
        Instruction::Run(cfc_dockerfile::Run { command: shell("b"), flags: vec![] })
    );
    assert_eq!((second.name.as_deref(), second.base.as_str()), (None, "base.1"));
    assert!(second.instructions.is_empty());
}

#[test]
fn words_are_as_written() {
    let of = |text: &str| only(text);
    assert_eq!(of("WORKDIR \"/a $b\""), Instruction::Workdir("\"/a $b\"".into()));
    assert_eq!(of("USER $U:$G"), Instruction::User("$U:$G".into()));
    assert_eq!(of("STOPSIGNAL $S"), Instruction::StopSignal("$S".into()));
    assert_eq!(of("MAINTAINER a  b"), Instruction::Maintainer("a  b".into()));
    assert_eq!(of("EXPOSE 80 $P 443/udp"), Instruction::Expose(strings(&["$P", "443/udp", "80"])));
    assert_eq!(of("VOLUME /a /b"), Instruction::Volume(strings(&["/a", "/b"])));
    assert_eq!(of(r#"VOLUME ["/a b", " /c "]"#), Instruction::Volume(strings(&["/a b", "/c"])));
    assert_eq!(of("SHELL [\"sh\", \"-c\"]"), Instruction::Shell(strings(&["sh", "-c"])));
    assert_eq!(of("CMD a && b"), Instruction::Cmd(shell("a && b")));
    assert_eq!(of("CMD []"), Instruction::Cmd(Command::Exec(vec![])));
    assert_eq!(of("ENTRYPOINT [\"a\", \"$b\"]"), Instruction::Entrypoint(Command::Exec(strings(&["a", "$b"]))));
    let pairs = vec![("A".to_owned(), "\"$b\"".to_owned()), ("C".to_owned(), String::new())];
    assert_eq!(of("ENV A=\"$b\" C="), Instruction::Env(pairs.clone()));
    assert_eq!(of("LABEL A=\"$b\" C="), Instruction::Label(pairs));
    assert_eq!(of("ENV A b  c"), Instruction::Env(vec![("A".to_owned(), "b  c".to_owned())]));
    assert_eq!(of("ARG A=\"b c\""), Instruction::Arg(vec![("A".to_owned(), Some("\"b c\"".to_owned()))]));
}

#[test]
fn copies_know_their_flags() {
    let text = "COPY --from=base --chown=$U --chmod=u+x --link --parents=false --exclude=a --exclude=b x y z/";
    let Instruction::Copy(copy) = only(text) else { panic!("{text}") };
    let expected = Copy {
        sources: strings(&["x", "y"]),
        destination: "z/".into(),
        from: Some("base".into()),
        chown: Some("$U".into()),
        chmod: Some("u+x".into()),
        link: true,
        parents: false,
        exclude: strings(&["a", "b"]),
        heredocs: Vec::new(),
    };
    assert_eq!(copy, expected);
    let text = "ADD --checksum=sha256:1 --keep-git-dir=true --unpack=FALSE https://x/y /z";
    let Instruction::Add(add) = only(text) else { panic!("{text}") };
    assert_eq!((add.checksum.as_deref(), add.keep_git_dir, add.unpack), (Some("sha256:1"), Some(true), Some(false)));
    assert_eq!((add.sources, add.destination), (strings(&["https://x/y"]), "/z".to_owned()));
}

#[test]
fn files_in_the_dockerfile_are_no_sources() {
    let text = "COPY a <<-'X' <<Y /d/\n\tx\nX\ny\nY";
    let Instruction::Copy(copy) = only(text) else { panic!("{text}") };
    assert_eq!(copy.sources, ["a"]);
    let files: Vec<_> = copy.heredocs.iter().map(|file| (file.name.as_str(), file.body(), file.expand)).collect();
    assert_eq!(files, [("X", "x\n".to_owned(), false), ("Y", "y\n".to_owned(), true)]);
}

#[test]
fn a_run_with_heredocs_becomes_a_script() {
    let script = |text: &str| match only(text) {
        Instruction::Run(run) => run.command.script(),
        other => panic!("{other:?}"),
    };
    assert_eq!(script("RUN a b"), Script::Shell("a b".into()));
    assert_eq!(script("RUN [\"a\"]"), Script::Exec(strings(&["a"])));
    assert_eq!(script("RUN <<E\na\nb\nE"), Script::Shell("a\nb\n".into()));
    assert_eq!(script("RUN <<-E\n\ta\n\tE"), Script::Shell("a\n".into()));
    let file = Script::File { name: "E".into(), content: "#!/bin/x\na\n".into() };
    assert_eq!(script("RUN --network=none <<E\n#!/bin/x\na\nE"), file);
    assert_eq!(script("RUN <<-E cat\n\ta\nE"), Script::Shell("<<-E cat\n\ta\nE".into()));
    assert_eq!(script("RUN <<A && <<B\na\nA\nb\nB"), Script::Shell("<<A && <<B\na\nA\nb\nB".into()));
}

#[test]
fn health_checks_have_durations() {
    let text = "HEALTHCHECK --interval=1m30s --timeout=500ms --start-period=0s --start-interval=1s --retries=3 cmd a b";
    let expected = Check {
        command: shell("a b"),
        interval: Some(Duration::from_secs(90)),
        timeout: Some(Duration::from_millis(500)),
        start_period: None,
        start_interval: Some(Duration::from_secs(1)),
        retries: 3,
    };
    assert_eq!(only(text), Instruction::Healthcheck(Healthcheck::Check(expected)));
    assert_eq!(only("HEALTHCHECK none"), Instruction::Healthcheck(Healthcheck::None));
    let Instruction::Healthcheck(Healthcheck::Check(check)) = only("HEALTHCHECK CMD [\"a\"]") else { panic!() };
    assert_eq!(check.command, Command::Exec(strings(&["a"])));
}

#[test]
fn triggers_keep_their_text() {
    assert_eq!(only("onbuild  RUN a \\\n b"), Instruction::Onbuild("RUN a  b".into()));
    let trigger = "COPY <<E /d\na\nE";
    assert_eq!(only(&format!("ONBUILD {trigger}")), Instruction::Onbuild(trigger.into()));
    let Instruction::Copy(copy) = only(trigger) else { panic!() };
    assert_eq!(copy.heredocs[0].content, "a\n");
}

#[test]
fn the_original_is_one_line() {
    let file = file("FROM a\nRUN   a \\\n# c\n  b\n");
    assert_eq!(file.stages[0].instructions[0].original, "RUN   a   b");
    assert_eq!(file.stages[0].instructions[0].span, Span::new(2, 4));
}

#[test]
fn unknown_instructions_get_a_suggestion() {
    check_refused("RUM a", ProblemKind::UnknownInstruction, "unknown instruction: RUM");
    assert_eq!(problems("FROM a\nRUM a")[0].hint.as_deref(), Some("did you mean `RUN`?"));
    assert!(problems("FROM a\nINSTALL a")[0].hint.as_deref().is_some_and(|hint| hint.contains("WORKDIR")));
}

#[test]
fn flags_are_checked() {
    let unknown = ProblemKind::UnknownFlag;
    check_refused("COPY --form=a b c", unknown, "unknown flag: --form");
    assert_eq!(problems("FROM a\nCOPY --form=a b c")[0].hint.as_deref(), Some("did you mean `--from`?"));
    check_refused("COPY --From=a b c", unknown, "unknown flag: --From");
    check_refused("MAINTAINER --boo a", unknown, "unknown flag: --boo");
    check_refused("STOPSIGNAL --boo 9", unknown, "unknown flag: --boo");
    check_refused("ARG --boo a", unknown, "unknown flag: --boo");
    check_refused("CMD --boo [\"a\"]", unknown, "unknown flag: --boo");
    let bad = ProblemKind::BadFlag;
    check_refused("COPY --from=a --from=b c d", bad, "duplicate flag specified: --from");
    check_refused("COPY --link --link c d", bad, "duplicate flag specified: --link");
    check_refused("COPY --from b c", bad, "missing a value on flag: --from");
    check_refused("COPY --link= b c", bad, "missing a value on flag: --link");
    check_refused("COPY --link=yes b c", bad, "expecting boolean value for flag --link, not: yes");
    check_refused("RUN --network=bridge a", bad, "invalid value for flag --network: bridge");
    check_refused("RUN --security=x a", bad, "invalid value for flag --security: x");
    check_refused("RUN --mount=from=$X,target=/t a", bad, "`from` doesn't support variable expansion");
    check_refused("HEALTHCHECK --interval=5 CMD a", bad, "invalid duration `5` on flag --interval");
    check_refused("HEALTHCHECK --timeout=50ns CMD a", bad, "interval --timeout cannot be less than 1ms");
}

#[test]
fn arguments_are_counted() {
    let check = |instruction: &str, message: &str| check_refused(instruction, ProblemKind::Syntax, message);
    for name in ["WORKDIR", "USER", "STOPSIGNAL", "MAINTAINER"] {
        check(name, &format!("{name} requires exactly one argument"));
    }
    for name in ["ENV", "LABEL", "ONBUILD", "HEALTHCHECK", "EXPOSE", "VOLUME", "ARG", "SHELL"] {
        check(name, &format!("{name} requires at least one argument"));
    }
    for name in ["COPY", "ADD"] {
        let message = "requires at least two arguments, but only one was provided: destination could not be determined";
        check(&format!("{name} a"), &format!("{name} {message}"));
        check(&format!("{name} a <<E\nE"), &format!("{name} cannot accept a heredoc as a destination"));
    }
    check("FROM", "FROM requires either one or three arguments");
    check("FROM a b", "FROM requires either one or three arguments");
    check("FROM a is b", "FROM requires either one or three arguments");
    let rule = "name can't start with a number or contain symbols";
    check("FROM a AS 1b", &format!("invalid name for build stage: `1b`, {rule}"));
    check("ENV =a", "ENV names can not be blank");
    check("LABEL =a", "LABEL names can not be blank");
    check("ARG =a", "ARG names can not be blank");
    check("SHELL sh -c", "SHELL requires the arguments to be in JSON form");
    check("VOLUME [\" \"]", "VOLUME specified can not be an empty string");
    check("ONBUILD ONBUILD RUN a", "chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed");
    check("ONBUILD FROM a", "FROM isn't allowed as an ONBUILD trigger");
    check("ONBUILD MAINTAINER a", "MAINTAINER isn't allowed as an ONBUILD trigger");
    check("HEALTHCHECK NONE a", "HEALTHCHECK NONE takes no arguments");
    check("HEALTHCHECK CMD", "missing command after HEALTHCHECK CMD");
    check("HEALTHCHECK a b", "unknown type `A` in HEALTHCHECK (try CMD)");
    check("HEALTHCHECK --retries=-1 CMD a", "--retries cannot be negative (-1)");
    check("HEALTHCHECK --retries=x CMD a", "invalid number `x` on flag --retries");
}

#[test]
fn a_file_needs_a_stage() {
    assert_eq!(problems("ARG A")[0].kind, ProblemKind::Empty);
    let misplaced = problems("RUN a\nFROM b");
    assert_eq!((misplaced[0].kind, misplaced[0].span), (ProblemKind::Misplaced, Span::line(1)));
    assert_eq!(problems("")[0].kind, ProblemKind::Empty);
}

#[test]
fn all_problems_come_in_the_order_of_their_lines() {
    let text = "RUN a\nFROM b c\nCOPY --x --y d\nRUN [1]\nFOO\nUSER\n";
    let lines: Vec<u32> = problems(text).iter().map(|problem| problem.span.start_line).collect();
    assert_eq!(lines, [1, 2, 3, 3, 3, 4, 5, 6]);
}

#[test]
fn a_problem_prints_with_its_lines() {
    assert_eq!(problems("FROM a\nRUN <<E\nx\n")[0].to_string(), "lines 2-3: unterminated heredoc `E`");
}

/// Reads a mount whose variables all are `v`; the message of an error follows `error: `.
fn mount(text: &str) -> Result<Mount, String> {
    let expand = |word: &str| cfc_dockerfile::expand(word, '\\', &|_| Some("v".to_owned()));
    Mount::parse(text, &expand).map_err(|error| error.message)
}

#[test]
fn mounts_have_the_defaults_of_their_type() {
    let bind = Mount { target: Some("/t".into()), read_only: true, ..Mount::default() };
    assert_eq!(mount("target=/t"), Ok(bind.clone()));
    assert_eq!(mount("TYPE=bind,dst=/t,rw"), Ok(Mount { read_only: false, ..bind.clone() }));
    assert_eq!(mount("target=/t,readonly=false"), Ok(Mount { read_only: false, ..bind.clone() }));
    let cache = Mount {
        kind: MountKind::Cache,
        target: Some("/v".into()),
        id: Some("i,j".into()),
        sharing: Some(Sharing::Locked),
        mode: Some(0o750),
        uid: Some(1000),
        ..Mount::default()
    };
    assert_eq!(mount("type=cache,target=/$X,\"id=i,j\",sharing=LOCKED,mode=0750,uid=1000"), Ok(cache));
    assert_eq!(mount("type=tmpfs,target=/t,size=1.5g").map(|mount| mount.size), Ok(Some(3 << 29)));
    assert_eq!(mount("type=tmpfs,target=/t,size=64MiB").map(|mount| mount.size), Ok(Some(64 << 20)));
    let secret = mount("type=secret,id=s,env=S,required").expect("a secret");
    assert_eq!((secret.kind, secret.required, secret.read_only), (MountKind::Secret, true, true));
    assert_eq!(secret.env.as_deref(), Some("S"));
    assert_eq!(mount("type=ssh").map(|mount| mount.kind), Ok(MountKind::Ssh));
}

#[test]
fn bad_mounts_are_refused() {
    for (text, message) in [
        ("type=bint,target=/t", "unsupported mount type `bint`"),
        ("type=cache,target=/t,sharing=x", "unsupported sharing value `x`"),
        ("targe=/t", "unexpected key `targe` in `targe=/t`"),
        ("target", "invalid field `target`: must be a key=value pair"),
        ("required,type=secret,id=s", "unexpected key `required` for mount type `bind`"),
        ("target=/t,size=1", "unexpected key `size` for mount type `bind`"),
        ("type=tmpfs,target=/t,size=x", "invalid value for size: x"),
        ("target=/t,ro=maybe", "invalid value for ro: maybe"),
        ("type=cache,target=/t,mode=9", "invalid value for mode: 9"),
        ("target=/t,uid=0", "uid not allowed for `bind` type mounts"),
        ("type=secret", "invalid secret mount: one of id, source, target or env is required"),
        ("type=secret,id=a,from=b", "secret mount should not have a from"),
        ("type=secret,id=a,src=b", "both source and id can't be set"),
        ("target=/t,sharing=shared", "invalid cache sharing set for bind mount"),
        ("target=/t,env=E", "unexpected key `env` for mount type `bind`"),
        ("target=\"/t", "failed to parse csv mounts: misplaced `\"` in `target=\"/t`"),
    ] {
        assert_eq!(mount(text), Err(message.to_owned()), "{text}");
    }
    let error = Mount::parse("type=cash", &|word| Ok(word.to_owned())).expect_err("a bad type");
    assert_eq!(error.hint.as_deref(), Some("did you mean `cache`?"));
}
