//! Every refusal names the file, the line and the thing, and says what to do.

mod common;

use common::{Images, lower, request, with_args};

/// The message, and the hint on a line of its own.
fn refusal(dockerfile: &str) -> String {
    text(lower(&request(dockerfile)))
}

fn text(result: Result<cfc_plan::Plan, cfc_plan::PlanError>) -> String {
    let error = result.expect_err("it is refused");
    match &error.hint {
        Some(hint) => format!("{error}\nhint: {hint}"),
        None => error.to_string(),
    }
}

#[test]
fn instructions_and_flags_that_are_not_supported_are_named() {
    let cases = [
        (
            "STOPSIGNAL $a",
            "`STOPSIGNAL`: there is no signal `b`\nhint: write a name or a number: `STOPSIGNAL SIGQUIT`, `STOPSIGNAL 3`",
        ),
        (
            "RUN --device=x true",
            "`RUN --device` is not supported yet\nhint: sandboxes of builds have no devices of the machine",
        ),
        ("VOLUME $none", "`VOLUME` names nothing: its variables are empty"),
        (
            "RUN --security=insecure x",
            "`RUN --security=insecure`: security.insecure is not allowed\nhint: if you trust this Dockerfile, build with `--allow security.insecure`",
        ),
    ];
    for (instruction, expected) in cases {
        let dockerfile = format!("FROM scratch\nENV a=b\n{instruction}\n");
        assert_eq!(refusal(&dockerfile), format!("Dockerfile:3: {expected}"), "{instruction}");
    }
}

#[test]
fn a_base_that_cannot_be_had_is_named_with_its_line() {
    assert_eq!(
        refusal("FROM nothing:1\n"),
        "Dockerfile:1: cannot use image `nothing:1`: it is not in the store\nhint: build it first"
    );
    assert_eq!(
        refusal("FROM scratch\nCOPY --from=nothing /a /b\n"),
        "Dockerfile:2: cannot use image `nothing`: it is not in the store\nhint: build it first"
    );
    assert_eq!(
        refusal("FROM scratch AS build\nFROM biuld\n"),
        "Dockerfile:2: cannot use image `biuld`: it is not in the store\nhint: build it first; the stages are `build`"
    );
    assert_eq!(
        refusal("FROM $UNSET\n"),
        "Dockerfile:1: `FROM $UNSET` names nothing: its variables are empty\n\
         hint: give them values by `ARG NAME=value` before the first `FROM`"
    );
}

#[test]
fn stages_that_do_not_exist_or_need_themselves_are_named() {
    let target = cfc_plan::BuildRequest { target: Some("web".into()), ..request("FROM scratch AS one\nFROM one\n") };
    assert_eq!(text(lower(&target)), "Dockerfile: it has no stage `web`\nhint: its stages are `one`, `1`");
    assert_eq!(refusal("FROM scratch AS a\nCOPY --from=a /x /y\n"), "Dockerfile:2: stage `a` needs itself");
    let circle = "FROM scratch AS a\nCOPY --from=b /x /y\nFROM a AS b\n";
    assert_eq!(refusal(circle), "Dockerfile:2: stage `b` needs itself");
    assert_eq!(refusal("FROM scratch\nCOPY --from=7 /x /y\n"), "Dockerfile:2: `from=7`: there are 1 stages");
    assert!(
        refusal("ARG S=a\nFROM scratch\nCOPY --from=$S /x /y\n").starts_with("Dockerfile:3: `from=$S`: no variables")
    );
}

#[test]
fn values_that_make_no_sense_are_named() {
    let cases = [
        ("EXPOSE http", "`EXPOSE`: invalid port `http`, expected a number from 0 to 65535"),
        ("EXPOSE 80/icmp", "`EXPOSE`: invalid protocol `icmp` in `80/icmp`, expected tcp, udp or sctp"),
        ("WORKDIR $UNSET", "`WORKDIR $UNSET` names no directory: it is empty"),
        (
            "COPY https://example.test/a /",
            "`COPY` cannot take `https://example.test/a` from the network\nhint: use ADD",
        ),
        (
            "COPY --chmod=u~x a /",
            "`COPY --chmod=u~x`: expected an octal number up to 7777, or letters as in `u=rwX,go=rX`\n\
             hint: for example `--chmod=755`, `--chmod=u=rwX,go=rX`",
        ),
        (
            "COPY --chmod=17777 a /",
            "`COPY --chmod=17777`: expected an octal number up to 7777, or letters as in `u=rwX,go=rX`\n\
             hint: for example `--chmod=755`, `--chmod=u=rwX,go=rX`",
        ),
    ];
    for (instruction, expected) in cases {
        assert_eq!(refusal(&format!("FROM scratch\n{instruction}\n")), format!("Dockerfile:2: {expected}"));
    }
    let epoch = lower(&with_args("FROM scratch\n", &[("SOURCE_DATE_EPOCH", "yesterday")]));
    assert!(text(epoch).starts_with("Dockerfile: invalid SOURCE_DATE_EPOCH `yesterday`, expected seconds since 1970"));
    assert!(
        refusal("FROM --platform=linux scratch\n").starts_with("Dockerfile:1: `--platform=linux`: malformed platform")
    );
}

#[test]
fn a_long_chain_of_stages_is_no_danger() {
    let mut dockerfile = "FROM scratch AS s0\n".to_string();
    for number in 1..5000 {
        dockerfile.push_str(&format!("FROM s{} AS s{number}\n", number - 1));
    }
    assert!(lower(&request(&dockerfile)).is_ok());
}

/// An image can come from anywhere: what its maker's builder let through may not be allowed here.
#[test]
fn a_base_images_triggers_are_held_to_the_same_rules() {
    let refused = |trigger: &'static str| {
        let images = Images { trigger: Some(trigger), ..Images::default() };
        text(cfc_plan::lower(&request("# one\nFROM trigger\n"), &images))
    };
    for (trigger, what) in [
        ("ONBUILD RUN x", "a trigger cannot be an ONBUILD itself"),
        ("MAINTAINER me", "MAINTAINER is not allowed as a trigger"),
        ("FROM base", "FROM"),
        ("NONSENSE x", "NONSENSE"),
        ("COPY --nonsense a /", "nonsense"),
        ("", ""),
    ] {
        let said = refused(trigger);
        assert!(said.starts_with(&format!("Dockerfile:2: `trigger`: its trigger `{trigger}`: ")), "{said}");
        assert!(said.contains(what), "{said}");
    }
    let missing = refused("COPY --from=assets /a /");
    assert!(missing.starts_with("Dockerfile:2: cannot use image `assets`"), "{missing}");
}
