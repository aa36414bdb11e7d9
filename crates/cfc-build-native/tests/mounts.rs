//! What `RUN --mount` keeps, shares and never gives away. What mounts show is in `testdata/dockerfile/run`.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;

use cfc_build_native::{ImageRequest, NativeOptions};
use cfc_plan::SecretSource;
use common::{Fixture, busybox, can_run, report};

/// Builds `instructions` on a busybox base, in a last stage.
fn on_busybox(fixture: &Fixture, instructions: &str) -> ImageRequest {
    let base = busybox(fixture);
    fixture.request(&format!("{base}FROM base\n{instructions}"))
}

/// Whether a file below `directory` holds `text`.
fn holds(directory: &Path, text: &str) -> bool {
    let output = std::process::Command::new("grep").args(["-rqaF", text]).arg(directory).status().expect("grep runs");
    output.success()
}

#[test]
fn a_secret_is_in_no_layer_no_cache_and_no_record() {
    if !can_run() {
        return;
    }
    const SECRET: &str = "correct-horse-battery-staple";
    let fixture = Fixture::new();
    let secret = fixture.root.path().join("secret");
    std::fs::write(&secret, SECRET).expect("writes");
    let script = "RUN --mount=type=secret,id=s,required --mount=type=secret,id=s,env=S \\\n\
        test \"$(cat /run/secrets/s)\" = \"$S\" && test ${#S} = 28 && echo \"was $SOMETHING\"\n";
    let request = || {
        let mut request = on_busybox(&fixture, script);
        request.secrets.insert("s".to_string(), SecretSource::File(secret.clone()));
        request
    };
    let (built, record) = fixture.build_request(&request());
    built.unwrap_or_else(|error| panic!("{}", report(&error)));
    assert!(!record.output.into_inner().expect("no panic").contains(SECRET));
    assert!(!holds(fixture.store.root(), SECRET), "the store holds the secret");

    // Another secret is no reason to run again: it is not part of the key.
    std::fs::write(&secret, "another").expect("writes");
    let (built, record) = fixture.build_request(&request());
    built.unwrap_or_else(|error| panic!("{}", report(&error)));
    assert_eq!(record.built(), Vec::<String>::new());
}

/// Puts a program into the context that says "hello" to a socket and prints what it answers; says why not.
fn compile_asker(fixture: &Fixture) -> bool {
    const SOURCE: &str = r#"
        #include <string.h>
        #include <sys/socket.h>
        #include <sys/un.h>
        #include <unistd.h>
        int main(int n, char **arguments) {
            struct sockaddr_un address = { .sun_family = AF_UNIX };
            strcpy(address.sun_path, arguments[1]);
            int s = socket(AF_UNIX, SOCK_STREAM, 0);
            if (connect(s, (void *)&address, sizeof address)) return 1;
            write(s, "hello", 5);
            char buffer[100];
            return write(1, buffer, read(s, buffer, sizeof buffer)) < 1;
        }"#;
    let source = fixture.root.path().join("ask.c");
    std::fs::write(&source, SOURCE).expect("writes");
    let mut command = std::process::Command::new("cc");
    command.args(["-static", "-w", "-o"]).arg(fixture.context().join("ask")).arg(source);
    let is_compiled = command.output().is_ok_and(|output| output.status.success());
    if !is_compiled {
        eprintln!("skipped: there is no C compiler with a static C library");
    }
    is_compiled
}

#[test]
fn a_program_talks_to_the_ssh_agent_and_no_socket_stays() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let agent = fixture.root.path().join("agent");
    let listener = UnixListener::bind(&agent).expect("listens");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut question = [0; 5];
            stream.read_exact(&mut question).expect("is asked");
            stream
                .write_all(format!("answer to {}\n", String::from_utf8_lossy(&question)).as_bytes())
                .expect("answers");
        }
    });
    if !compile_asker(&fixture) {
        return;
    }
    let mut request = on_busybox(
        &fixture,
        "COPY ask /ask\nUSER 1000\n\
         RUN --mount=type=ssh,uid=1000 echo $SSH_AUTH_SOCK; stat -c '%a %u' $SSH_AUTH_SOCK; /ask $SSH_AUTH_SOCK\n",
    );
    request.ssh.insert("default".to_string(), agent);
    let (built, record) = fixture.build_request(&request);
    let built = built.unwrap_or_else(|error| panic!("{}", report(&error)));
    let output = record.output.into_inner().expect("no panic");
    assert_eq!(output, "/run/buildkit/ssh_agent.0\n600 1000\nanswer to hello\n");
    let last = fixture.layers_of(&built).pop().expect("layers");
    assert!(!last.iter().any(|line| line.contains("run/")), "{last:?}");
    assert!(fixture.leftovers().is_empty());
}

#[test]
fn a_cache_outlives_the_build_and_does_not_change_the_key() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let output = |instructions: &str| {
        let (built, record) = fixture.build_request(&on_busybox(&fixture, instructions));
        built.unwrap_or_else(|error| panic!("{}", report(&error)));
        record.output.into_inner().expect("no panic")
    };
    let count = "RUN --mount=type=cache,id=c,target=/c echo x >> /c/f; wc -l < /c/f";
    assert_eq!(output(&format!("{count}\n")), "1\n");
    assert_eq!(output(&format!("{count} # again\n")), "2\n");
    assert_eq!(output(&format!("{count}\n")), "", "it was run again");
}

#[test]
fn locked_caches_are_used_one_after_the_other_and_private_ones_apart() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let base = busybox(&fixture);
    // Each holds the directory for a while; the two of a kind are independent, and run at the same time.
    let step = |sharing: &str, name: &str| {
        format!(
            "RUN --mount=type=cache,id={sharing},target=/c,sharing={sharing} \\\n\
             mkdir /c/held && sleep 0.3 && rmdir /c/held && echo {name} > /{name}\n"
        )
    };
    let stages: String = ["locked", "private"]
        .iter()
        .flat_map(|sharing| ["a", "b"].map(|name| format!("FROM base AS {sharing}{name}\n{}", step(sharing, name))))
        .collect();
    let copies: String = ["lockeda/a /1", "lockedb/b /2", "privatea/a /3", "privateb/b /4"]
        .iter()
        .map(|copy| copy.split_once('/').expect("has one"))
        .map(|(stage, rest)| format!("COPY --from={stage} /{rest}\n"))
        .collect();
    let built = fixture.build(&format!("{base}{stages}FROM scratch\n{copies}"));
    built.unwrap_or_else(|error| panic!("{}", report(&error)));
}

#[test]
fn a_changed_file_is_newer_than_what_an_earlier_build_left_in_a_cache() {
    if !can_run() {
        return;
    }
    // As `make` does it; but busybox compares whole seconds.
    const MAKE: &str = "if [ ! -e /c/out ] || [ /src/source -nt /c/out ]; then cp /src/source /c/out; fi; sleep 1";
    for (copy, mount) in [("COPY source /src/\n", ""), ("", "--mount=target=/src ")] {
        let fixture = Fixture::new();
        for content in ["one\n", "two\n"] {
            let instructions = format!("{copy}RUN --mount=type=cache,id=c,target=/c {mount}{MAKE}; cat /c/out\n");
            let (built, record) = fixture.file("source", content).build_request(&on_busybox(&fixture, &instructions));
            built.unwrap_or_else(|error| panic!("{}", report(&error)));
            assert_eq!(record.output.into_inner().expect("no panic"), content, "{instructions}");
        }
    }
}

#[test]
fn what_a_program_remembers_of_renewed_files_is_taken_back_with_them() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    // As Python compiles: magic number, no flags, the source's time, its size.
    fixture.file("app/a.py", "x = 1").file_with_mode(
        "compile",
        "time=$(stat -c %Y /app/a.py); mkdir /app/__pycache__; exec >/app/__pycache__/a.cpython-311.pyc
printf '\\247\\015\\r\\n\\0\\0\\0\\0'
for shift in 0 8 16 24; do printf \"\\\\$(printf %o $((time >> shift & 255)))\"; done
printf '\\5\\0\\0\\0code'\n",
        0o755,
    );
    let instructions = "COPY compile /\nCOPY app /app\nRUN --mount=type=cache,target=/c sh /compile && sleep 1\n\
        RUN stat -c %Y /app/a.py; od -An -tu4 -j8 -N4 /app/__pycache__/a.cpython-311.pyc\n";
    let request = on_busybox(&fixture, instructions);
    let (first, record) = fixture.build_request(&request);
    let first = first.unwrap_or_else(|error| panic!("{}", report(&error)));
    let output = record.output.into_inner().expect("no panic");
    let times: Vec<&str> = output.split_whitespace().collect();
    assert!(times.len() == 2 && times[0] == times[1], "{output}");
    let (second, _) = fixture.build_with(&request, NativeOptions { no_cache: true, ..NativeOptions::default() });
    assert_eq!(first.manifest, second.expect("builds").manifest);
}

/// Were a device in a cache, only an option of the mount would keep a program from opening it.
#[test]
fn a_cache_begins_with_no_device_and_shows_none() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new();
    let nodes = "FROM base AS nodes\nRUN mkdir -p /n/d && mknod -m 666 /n/d/disk b 8 0\n";
    let base = busybox(&fixture);
    let request = |mount: &str| {
        fixture.request(&format!(
            "{base}{nodes}FROM base\nRUN --mount=type=cache,target=/c{mount} grep ' /c ' /proc/self/mountinfo\n"
        ))
    };
    let (built, record) = fixture.build_request(&request(""));
    built.unwrap_or_else(|error| panic!("{}", report(&error)));
    let mount = record.output.into_inner().expect("no panic");
    assert!(mount.contains("nodev"), "{mount}");
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root to make a device");
        return;
    }
    let (built, _) = fixture.build_request(&request(",id=n,from=nodes,source=/n"));
    let said = report(&built.expect_err("it is refused"));
    assert!(said.contains("`/n/d/disk` is a device, and a cache holds none"), "{said}");
}
