//! `RUN` in a real sandbox.

mod common;

use std::path::PathBuf;

use cfc_build_native::{ImageRequest, NativeOptions};
use cfc_oci::Reference;
use common::{Fixture, args, busybox, can_run, report};

/// Builds `instructions` on a busybox base, in a last stage called `last`.
fn on_busybox(fixture: &Fixture, instructions: &str) -> ImageRequest {
    let base = busybox(fixture);
    fixture.request(&format!("{base}FROM base AS last\n{instructions}"))
}

/// What the last stage's instructions wrote to their output.
fn output(instructions: &str) -> Option<String> {
    if !can_run() {
        return None;
    }
    let fixture = Fixture::new();
    let (built, record) = fixture.build_request(&on_busybox(&fixture, instructions));
    built.unwrap_or_else(|error| panic!("{}", report(&error)));
    Some(record.output.into_inner().expect("no panic"))
}

/// The layers of the last stage.
fn layers(fixture: &Fixture, instructions: &str) -> Vec<Vec<String>> {
    let (built, _) = fixture.build_request(&on_busybox(fixture, instructions));
    let built = built.unwrap_or_else(|error| panic!("{}", report(&error)));
    fixture.layers_of(&built)[2..].to_vec()
}

#[test]
fn a_layer_holds_what_the_program_changed() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    fixture.file("d/gone", "1").file("d/kept", "2");
    let layers = layers(
        &fixture,
        "COPY d /d\nRUN rm /d/gone && echo new > /d/new && chmod 600 /d/new && chown 5:6 /d/new\nRUN rm -r /d && mkdir /d && ln -s x /d/l\n",
    );
    let without_etc = |lines: &Vec<String>| -> Vec<String> {
        lines.iter().filter(|line| !line.ends_with(" etc/")).cloned().collect()
    };
    assert_eq!(without_etc(&layers[1]), ["drwxr-xr-x 0:0 d/", "---------- 0:0 d/.wh.gone", "-rw------- 5:6 d/new"]);
    let last = without_etc(&layers[2]);
    assert!(last.iter().any(|line| line.ends_with("d/l -> x")), "{last:?}");
    assert!(last.iter().any(|line| line.contains(".wh.")), "{last:?}");
}

#[test]
fn pipes_links_holes_and_emptied_directories_get_into_the_layer() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    fixture.file("d/a", "1").file("d/e/b", "2");
    let layers = layers(
        &fixture,
        "COPY d /d\n\
         RUN mkdir /made && mkfifo /made/pipe && echo x >/made/one && ln /made/one /made/two && \
         busybox truncate -s 40M /made/sparse && chmod 4711 /made/one && ln -s nowhere /made/link\n\
         RUN rm -r /d/e && mkdir /d/e && echo new >/d/e/c && rm /made/two && mv /d/a /d/z\n",
    );
    let below = |layer: usize, directory: &str| -> Vec<String> {
        let is_below = |line: &&String| line.split(' ').nth(2).is_some_and(|name| name.starts_with(directory));
        layers[layer].iter().filter(is_below).cloned().collect()
    };
    assert_eq!(
        below(1, "made/"),
        [
            "drwxr-xr-x 0:0 made/",
            "lrwxrwxrwx 0:0 made/link -> nowhere",
            "-rws--x--x 0:0 made/one",
            "prw-r--r-- 0:0 made/pipe",
            "-rw-r--r-- 0:0 made/sparse",
            "hrws--x--x 0:0 made/two link to made/one",
        ]
    );
    assert_eq!(
        below(2, "d/"),
        [
            "drwxr-xr-x 0:0 d/",
            "---------- 0:0 d/.wh.a",
            "-rw-r--r-- 0:0 d/z",
            "drwxr-xr-x 0:0 d/e/",
            "---------- 0:0 d/e/.wh..wh..opq",
            "-rw-r--r-- 0:0 d/e/c",
        ]
    );
    assert_eq!(below(2, "made/"), ["drwxr-xr-x 0:0 made/", "---------- 0:0 made/.wh.two"]);
}

#[test]
fn the_environment_is_buildkits() {
    let instructions = "ARG GIVEN=arg\nENV A=\"1 2\"\nWORKDIR /some/where\n\
        RUN echo \"[$A] [$GIVEN] [$HOME] [$(pwd)] [$(hostname)] [$(id -u):$(id -g)] [$PATH]\"\n\
        RUN [\"/bin/echo\", \"$A is not expanded\"]\n";
    let Some(output) = output(instructions) else { return };
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(output, format!("[1 2] [arg] [/] [/some/where] [buildkitsandbox] [0:0] [{path}]\n$A is not expanded\n"));
}

/// Nothing on this machine's loopback is a build's, and what it has to say on the network gets there and back.
#[test]
fn a_program_reaches_the_network_but_not_this_machines_loopback() {
    if !can_run() {
        return;
    }
    let Some(own) = own_address() else { return eprintln!("skipped: this machine has no network") };
    let serve = |address: std::net::SocketAddr| {
        let listener = std::net::TcpListener::bind(address).expect("binds");
        let port = listener.local_addr().expect("is bound").port();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = std::io::Write::write_all(&mut stream, b"reached\n");
            }
        });
        port
    };
    let (secret, open) = (serve(([127, 0, 0, 1], 0).into()), serve((own, 0).into()));
    let script = format!(
        "RUN busybox timeout 5 busybox nc {own} {open} </dev/null; \\\n\
         for a in 127.0.0.1 127.0.0.2 0.0.0.0; do busybox timeout 5 busybox nc $a {secret} </dev/null || echo no; done\n"
    );
    let Some(output) = output(&script) else { return };
    let lines: Vec<&str> = output.lines().filter(|line| ["reached", "no"].contains(line)).collect();
    assert_eq!(lines, ["reached", "no", "no", "no"], "{output}");
}

/// An address of this machine that is not the loopback's.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

#[test]
fn the_machines_files_are_there_and_get_into_no_layer() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let layers = layers(
        &fixture,
        "RUN grep -q localhost /etc/hosts && test -e /etc/resolv.conf && test -d /proc/1\nRUN touch /x\n",
    );
    for line in layers.iter().flatten() {
        assert!(!line.contains("resolv.conf") && !line.contains("hosts"), "{line}");
    }
}

#[test]
fn a_user_runs_and_owns() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    fixture
        .file("etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:7:8::/home/app:/bin/sh\n")
        .file("etc/group", "more:x:9:app\n");
    let layers = layers(
        &fixture,
        "COPY etc /etc\nRUN mkdir -m 777 /open\nUSER app\nRUN id > /open/id && echo $HOME >> /open/id\n",
    );
    assert!(layers[2].contains(&"-rw-r--r-- 7:8 open/id".to_string()), "{:?}", layers[2]);
    assert_eq!(output("USER root\nRUN id -u\n").as_deref(), Some("0\n"));
    let Some(output) = output(
        "RUN mkdir -p /etc && echo app:x:7:8::/home/app:/bin/sh > /etc/passwd && echo more:x:9:app > /etc/group\n\
         USER app\nRUN id -u; id -g; id -G; echo $HOME\n",
    ) else {
        return;
    };
    assert_eq!(output, "7\n8\n8 9\n/home/app\n");
}

#[test]
fn a_failure_tells_the_instruction_the_line_the_code_and_the_last_words() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let request = on_busybox(&fixture, "ENV a=b\nRUN echo before; \\\n  echo trouble >&2; exit 3\nRUN never\n");
    let (built, _) = fixture.build_request(&request);
    let report = report(&built.expect_err("it fails"));
    assert!(report.contains("Dockerfile:6: `RUN echo before;"), "{report}");
    assert!(report.contains("it exited with code 3"), "{report}");
    assert!(report.contains("| before") && report.contains("| trouble"), "{report}");
    assert_eq!(fixture.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn a_command_that_is_not_there_is_named() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    fixture.file("f", "1");
    let no_shell = report(&fixture.build("FROM scratch\nCOPY f /f\nRUN echo hi\n").expect_err("no shell"));
    assert!(no_shell.contains("Dockerfile:3: `RUN echo hi`") && no_shell.contains("/bin/sh"), "{no_shell}");
    assert!(no_shell.contains("hint: the image has no shell"), "{no_shell}");

    let (built, _) = fixture.build_request(&on_busybox(&fixture, "RUN no-such-command\n"));
    let missing = report(&built.expect_err("no command"));
    assert!(missing.contains("it exited with code 127") && missing.contains("not found"), "{missing}");
    assert_eq!(fixture.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn a_second_build_runs_nothing_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let request = on_busybox(&fixture, "RUN date > /date\nCOPY busybox /again\nRUN cat /date\n");
    let (first, record) = fixture.build_request(&request);
    let first = first.unwrap_or_else(|error| panic!("{}", report(&error)));
    assert_eq!(record.built().len(), 5);
    let (second, record) = fixture.build_request(&request);
    assert_eq!(record.built(), Vec::<String>::new());
    assert_eq!(first, second.expect("builds"));
    assert_eq!(fixture.leftovers(), Vec::<PathBuf>::new());
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("reads");
    assert!(!mounts.contains(&fixture.root.path().display().to_string()), "{mounts}");
}

#[test]
fn the_same_program_makes_the_same_image_elsewhere() {
    if !can_run() {
        return;
    }
    let instructions =
        "RUN mkdir /x && echo a > /x/a && ln /x/a /x/b && ln -s a /x/c && chown 3:4 /x\nRUN rm /x/b && cat /x/a > /y\n";
    let (here, there) = (Fixture::new(), Fixture::new());
    let (first, _) = here.build_request(&on_busybox(&here, instructions));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let (second, _) = there.build_request(&on_busybox(&there, instructions));
    assert_eq!(first.expect("builds").manifest, second.expect("builds").manifest);
}

#[test]
fn a_stage_takes_what_another_stage_made() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let base = busybox(&fixture);
    let dockerfile = format!(
        "{base}FROM base AS build\nRUN mkdir -p /out/bin && echo made > /out/bin/f && ln /out/bin/f /out/bin/g && rm /bin/vi\n\
         FROM scratch\nCOPY --from=build /out /\nCOPY --from=build /bin/v* /nothing/\n"
    );
    let layers = fixture.layers(&dockerfile);
    assert_eq!(layers[0], ["drwxr-xr-x 0:0 bin/", "-rw-r--r-- 0:0 bin/f", "hrw-r--r-- 0:0 bin/g link to bin/f"]);
    assert!(!layers[1].iter().any(|line| line.contains("/vi ")), "{:?}", layers[1]);
}

#[test]
fn an_image_of_the_store_is_a_base() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let base = busybox(&fixture);
    let image = fixture.build(&format!("{base}ENV FROM_BASE=yes\nWORKDIR /home\n")).expect("builds");
    fixture.store.images().tag(&Reference::parse("mine/base:1").expect("a reference"), &image.manifest).expect("tags");
    let (built, record) = fixture.build_request(&ImageRequest {
        build_args: args(&[("BASE", "mine/base:1")]),
        ..fixture.request("ARG BASE\nFROM $BASE\nRUN echo $FROM_BASE in $(pwd)\n")
    });
    let built = built.unwrap_or_else(|error| panic!("{}", report(&error)));
    assert_eq!(record.output.into_inner().expect("no panic"), "yes in /home\n");
    assert_eq!(built.config.rootfs.diff_ids.len(), 4);
    assert_eq!(built.config.history.iter().filter(|entry| !entry.empty_layer).count(), 4);

    let error = report(&fixture.build("FROM mine/base:2\n").expect_err("not there"));
    assert!(error.contains("Dockerfile:1: cannot use image `mine/base:2`: it is not in the store"), "{error}");
}

#[test]
fn verification_names_the_step_and_the_file_that_do_not_come_out_the_same() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let verify = |instructions: &str| {
        let options = NativeOptions { verify: true, ..NativeOptions::default() };
        fixture.build_with(&on_busybox(&fixture, instructions), options)
    };
    let steady = "RUN busybox mkdir -p /a/b; echo same >/a/b/c; busybox ln -s c /a/b/d\n";
    let (built, record) = verify(steady);
    let verified = built.expect("it comes out the same");
    assert_eq!(verified, fixture.build_request(&on_busybox(&fixture, steady)).0.expect("builds"));
    assert_eq!(record.built().iter().filter(|step| step.starts_with("RUN busybox")).count(), 2, "{:?}", record.built());
    for (wavering, what) in [
        ("busybox head -c 9 /dev/urandom >/a/b/z", "`/a/b/z` differs in its content"),
        (
            "busybox touch /a/$(busybox head -c 6 /dev/urandom | busybox md5sum | busybox head -c 8)",
            "differs in its existence",
        ),
        (
            "busybox ln -s $(busybox head -c 6 /dev/urandom | busybox md5sum | busybox head -c 8) /l",
            "`/l` differs in its target",
        ),
    ] {
        let (failed, _) = verify(&format!("{steady}RUN {wavering}\nRUN echo after >/after\n"));
        let text = report(&failed.expect_err(wavering));
        assert!(text.contains(what) && text.contains(wavering), "{text}");
    }
}
