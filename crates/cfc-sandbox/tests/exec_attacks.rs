//! What a hostile container could do to a command that is run in it, each of which must fail closed. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::process::Command;

use cfc_sandbox::{ExecConfig, ExitStatus, Launcher, SandboxConfig, WindowSize};
use support::exec::{command, output, refused, run, running, script, start};
use support::{Bench, LAUNCHER, bench, field, own_directory};

/// Runs a script in the container with all that the container may do, as its own root.
fn hostile(bench: &Bench, config: &SandboxConfig, text: &str) {
    output(bench, &config.id, &script(&format!("set -e; {text}")));
}

#[test]
fn a_working_directory_never_leads_out() {
    let Some(bench) = bench() else { return };
    let config = running(&bench);
    hostile(
        &bench,
        &config,
        "ln -s /proc/self/fd /tmp/fds; ln -s /proc/1/root /tmp/root; ln -s ../../../../.. /tmp/up",
    );
    for cwd in ["/proc/self/fd/7", "/tmp/fds/8", "/proc/self/cwd", "/proc/thread-self/root", "/tmp/root", "/proc/1/cwd"]
    {
        let error = refused(&bench, &config.id, &ExecConfig { cwd: Some(cwd.into()), ..command(&["pwd"]) });
        assert!(error.to_string().contains("change to the working directory"), "{cwd}: {error}");
    }
    for number in 3..64 {
        let cwd = Some(format!("/proc/self/fd/{number}").into());
        refused(&bench, &config.id, &ExecConfig { cwd, ..command(&["pwd"]) });
    }
    let up = ExecConfig { cwd: Some("/tmp/up/../..".into()), ..script("pwd; ls /bin/busybox") };
    assert_eq!(output(&bench, &config.id, &up), "/\n/bin/busybox\n", "above the root is the root");
}

#[test]
fn a_working_directory_that_changes_all_the_time_never_leads_out() {
    let Some(bench) = bench() else { return };
    let config = running(&bench);
    let swap = "mkdir -p /tmp/d; ln -s /proc/self/fd/9 /tmp/l; ln -s /proc/1/root /tmp/m; \
                while true; do mv -T /tmp/d /tmp/x; mv -T /tmp/l /tmp/d; mv -T /tmp/d /tmp/l; mv -T /tmp/x /tmp/d; done";
    let _swapping = start(&bench, &config.id, &script(swap)).unwrap();
    for _ in 0..200 {
        let asked = ExecConfig { cwd: Some("/tmp/d".into()), ..script("pwd; ls -d /proc/self/cwd/.") };
        if let Ok(piped) = start(&bench, &config.id, &asked) {
            assert_ne!(piped.exec.wait().unwrap(), ExitStatus::Code(125));
            let shown = std::io::read_to_string(piped.stdout).unwrap();
            assert!(shown.starts_with("/tmp/"), "{shown}");
        }
    }
}

#[test]
fn names_are_read_from_regular_files_of_a_sane_size_only() {
    let Some(bench) = bench() else { return };
    let config = running(&bench);
    let user = |name: &str| ExecConfig { user: Some(name.into()), ..command(&["id", "-u"]) };
    for replaced in [
        "mkfifo /etc/passwd",
        "ln -s /dev/zero /etc/passwd",
        "ln -s /proc/self/fd/0 /etc/passwd",
        "ln -s /proc/1/root/etc/shadow /etc/passwd",
        "ln -s passwd /etc/passwd",
        "mkdir /etc/passwd",
        "truncate -s 5M /etc/passwd",
        "truncate -s 100G /etc/passwd",
    ] {
        hostile(&bench, &config, &format!("rm -rf /etc/passwd; /bin/busybox {replaced}"));
        refused(&bench, &config.id, &user("app"));
    }
    // A link stays inside: this is no file of the host.
    hostile(
        &bench,
        &config,
        "rm -rf /etc/passwd; ln -s ../../../../../etc/other /etc/passwd; echo app:x:77:77::/: > /etc/other",
    );
    assert_eq!(output(&bench, &config.id, &user("app")), "77\n", "the file is the container's as it is now");
    hostile(
        &bench,
        &config,
        "rm /etc/passwd; printf 'evil:x:0x0:0\\nevil:x:-1:-1::\\nevil:x:4294967295:0::\\n' > /etc/passwd",
    );
    refused(&bench, &config.id, &user("evil"));
}

#[test]
fn a_replaced_dev_gives_no_terminal_and_touches_nothing() {
    let Some(bench) = bench() else { return };
    let config = running(&bench);
    let asked = ExecConfig { terminal: Some(WindowSize { rows: 1, columns: 1 }), ..command(&["true"]) };
    bench.launcher.exec_in_terminal(&config.id, &asked).expect("the container's own").wait().unwrap();
    // What it can do to its /dev: another directory beside the mount, links, other files of the names in it.
    hostile(&bench, &config, "rm /dev/ptmx; ln -s /tmp/file /dev/ptmx; touch /tmp/file; rm /dev/null /dev/tty || true");
    bench.launcher.exec_in_terminal(&config.id, &asked).expect("its /dev/pts is still its own").wait().unwrap();
    assert!(output(&bench, &config.id, &command(&["ls", "-l", "/tmp/file"])).contains(" 0 "), "nothing was written");

    let bare = support::with(
        &bench.config(&["sleep", "1000"]),
        &[("/mounts", serde_json::json!([])), ("/linux/sysctl", serde_json::json!({}))],
    );
    bench.launcher.start(&bare).unwrap();
    for made in [
        "mkdir -p /dev/pts; touch /dev/pts/ptmx",
        "rm -r /dev/pts; ln -s /tmp /dev/pts; mkfifo /tmp/ptmx",
        "rm /dev/pts; mkdir /dev/pts; ln -s /proc/self/fd/0 /dev/pts/ptmx",
    ] {
        let made = made.replace("mkfifo", "/bin/busybox mkfifo");
        hostile(&bench, &bare, &made);
        let error = bench.launcher.exec_in_terminal(&bare.id, &asked).expect_err("refuses");
        assert!(error.to_string().contains("/dev/pts"), "{error}");
    }
}

#[test]
fn a_shell_that_is_the_launcher_itself_can_not_change_it() {
    let Some(bench) = bench() else { return };
    let config = running(&bench);
    let before = fs::read(LAUNCHER).unwrap();
    // CVE-2019-5736: the command is the runtime's own program, which the container then opens for writing.
    hostile(
        &bench,
        &config,
        "ln -s /proc/self/exe /bin/evil; printf '#!/proc/self/exe\\n' > /bin/evil2; /bin/busybox chmod 755 /bin/evil2",
    );
    let writer = "for try in $(/bin/busybox seq 300); do for p in /proc/[0-9]*; do \
                  (echo overwritten > $p/exe) 2>/dev/null && echo wrote $p; done; done; true";
    let writing = start(&bench, &config.id, &script(writer)).unwrap();
    for _ in 0..30 {
        for name in ["evil", "/bin/evil2"] {
            if let Ok(piped) = start(&bench, &config.id, &command(&[name, "--private"])) {
                drop(piped.stdin);
                piped.exec.signal(libc::SIGKILL).unwrap();
                piped.exec.wait().unwrap();
            }
        }
    }
    writing.exec.wait().unwrap();
    assert_eq!(std::io::read_to_string(writing.stdout).unwrap(), "", "nothing could be opened for writing");
    assert!(fs::read(LAUNCHER).unwrap() == before, "the launcher's program is as it was");
}

/// A program for the container that tries everything on each process it sees that is not yet its own.
const SPY: &str = r#"
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
/* A process is a copy of the launcher as long as its name says so. */
static int is_launcher(const char *pid) {
    char path[64], name[32] = "";
    snprintf(path, sizeof path, "/proc/%s/comm", pid);
    int file = open(path, O_RDONLY);
    if (file < 0) return 0;
    ssize_t n = read(file, name, sizeof name - 1);
    close(file);
    return n > 0 && strncmp(name, "cfc-launcher", 12) == 0;
}
static void found(const char *what, const char *pid) { if (is_launcher(pid)) printf("REACHED %s of %s\n", what, pid); }
int main(void) {
    long seen = 0;
    int self = getpid();
    printf("watching\n"); fflush(stdout);
    while (access("/tmp/stop", F_OK)) {
        DIR *proc = opendir("/proc");
        for (struct dirent *entry; (entry = readdir(proc));) {
            char *pid = entry->d_name;
            if (*pid < '1' || *pid > '9' || atoi(pid) == self || !is_launcher(pid)) continue;
            seen++;
            char path[64], target[256];
            const char *links[] = {"exe", "cwd", "root", "fd/0", "fd/1", "fd/2", "fd/3", "fd/4", "fd/5", "fd/6", "fd/9", "ns/mnt"};
            for (unsigned i = 0; i < sizeof links / sizeof *links; i++) {
                snprintf(path, sizeof path, "/proc/%s/%s", pid, links[i]);
                if (readlink(path, target, sizeof target) > 0) found(links[i], pid);
                int file = open(path, O_RDONLY | O_NONBLOCK);
                if (file >= 0) { found(links[i], pid); close(file); }
            }
            const char *files[] = {"mem", "environ", "maps", "auxv", "fd", "fdinfo", "io"};
            for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
                snprintf(path, sizeof path, "/proc/%s/%s", pid, files[i]);
                char byte[16];
                int file = open(path, O_RDONLY | O_NONBLOCK);
                if (file >= 0 && (files[i][0] == 'm' && files[i][1] == 'e')) found(files[i], pid);
                if (file >= 0 && read(file, byte, sizeof byte) > 0) found(files[i], pid);
                if (file >= 0) close(file);
            }
            fflush(stdout);
            int child = fork();
            if (child == 0) {
                if (ptrace(PTRACE_SEIZE, atoi(pid), 0, 0) == 0) found("ptrace", pid);
                fflush(stdout);
                _exit(0);
            }
            waitpid(child, 0, 0);
            int pidfd = syscall(SYS_pidfd_open, atoi(pid), 0);
            int stolen = pidfd < 0 ? -1 : syscall(SYS_pidfd_getfd, pidfd, 3, 0);
            if (stolen >= 0) { found("pidfd_getfd", pid); close(stolen); }
            if (pidfd >= 0) close(pidfd);
        }
        closedir(proc);
    }
    printf("seen %ld\n", seen);
    return 0;
}
"#;

/// Compiles a program for the container; false, with the reason on stderr, where there is no compiler.
fn compile(config: &SandboxConfig, source: &str, name: &str) -> bool {
    let upper = own_directory(config).join("upper");
    let file = own_directory(config).join(format!("{name}.c"));
    fs::write(&file, source).unwrap();
    fs::create_dir_all(upper.join("opt")).unwrap();
    let compiled =
        Command::new("cc").args(["-O1", "-static", "-w", "-o"]).arg(upper.join("opt").join(name)).arg(&file).status();
    let is_compiled = compiled.is_ok_and(|status| status.success());
    if !is_compiled {
        eprintln!("skipped: needs a C compiler that links statically");
    }
    is_compiled
}

#[test]
fn nothing_of_a_command_can_be_reached_before_it_is_the_containers_own() {
    let Some(bench) = bench() else { return };
    let config = bench.config(&["sleep", "1000"]);
    if !compile(&config, SPY, "spy") {
        return;
    }
    bench.launcher.start(&config).unwrap();
    let spies: Vec<_> = (0..2).map(|_| start(&bench, &config.id, &command(&["/opt/spy"])).unwrap()).collect();
    for number in 0..150 {
        let user = (number % 2 == 1).then(|| "app".to_owned());
        let asked = ExecConfig { user, ..command(&["true"]) };
        let terminal = ExecConfig { terminal: Some(WindowSize { rows: 1, columns: 1 }), ..asked.clone() };
        match number % 3 {
            0 => drop(bench.launcher.exec_in_terminal(&config.id, &terminal).unwrap().wait()),
            _ => drop(run(&bench, &config.id, &asked)),
        }
    }
    output(&bench, &config.id, &command(&["touch", "/tmp/stop"]));
    let mut seen = 0;
    for spy in spies {
        let text = std::io::read_to_string(spy.stdout).unwrap();
        assert!(!text.contains("REACHED"), "{text}");
        seen += text.lines().filter_map(|line| line.strip_prefix("seen ")?.parse::<u64>().ok()).sum::<u64>();
    }
    // Otherwise this has tested nothing.
    assert!(seen > 0, "no spy ever met a command that was still the launcher's copy");
}

/// A program that takes hold of the first `sleep` it sees, and never takes note of its end.
const TRACER: &str = r#"
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <unistd.h>
int main(void) {
    for (;;) {
        DIR *proc = opendir("/proc");
        for (struct dirent *entry; (entry = readdir(proc));) {
            char path[64], name[32] = "";
            snprintf(path, sizeof path, "/proc/%s/cmdline", entry->d_name);
            int file = open(path, O_RDONLY);
            if (file < 0) continue;
            read(file, name, sizeof name - 1);
            close(file);
            if (!strcmp(name, "sleep") && !strcmp(name + 6, "999") && ptrace(PTRACE_SEIZE, atoi(entry->d_name), 0, 0) == 0) {
                printf("traced\n"); fflush(stdout);
                pause();
            }
        }
        closedir(proc);
    }
}
"#;

#[test]
fn a_tracer_that_hides_a_commands_end_keeps_nobody_else_waiting() {
    let Some(bench) = bench() else { return };
    let config = bench.config(&["sleep", "1000"]);
    if !compile(&config, TRACER, "tracer") {
        return;
    }
    bench.launcher.start(&config).unwrap();
    let traced = start(&bench, &config.id, &command(&["sleep", "999"])).unwrap();
    let mut tracer = start(&bench, &config.id, &command(&["/opt/tracer"])).unwrap();
    let mut said = [0; 7];
    std::io::Read::read_exact(&mut tracer.stdout, &mut said).unwrap();
    traced.exec.signal(libc::SIGKILL).unwrap();
    // Its end is the tracer's secret, and everything else goes on.
    for _ in 0..20 {
        assert_eq!(output(&bench, &config.id, &command(&["echo", "on"])), "on\n");
        assert_eq!(traced.exec.poll_exit().unwrap(), None);
    }
    tracer.exec.signal(libc::SIGKILL).unwrap();
    assert_eq!(traced.exec.wait().unwrap(), ExitStatus::Signal(libc::SIGKILL));
    let again = start(&bench, &config.id, &command(&["sleep", "999"])).unwrap();
    let _tracer = start(&bench, &config.id, &command(&["/opt/tracer"])).unwrap();
    bench.launcher.kill_all(&config.id).unwrap();
    bench.launcher.wait(&config.id).unwrap();
    assert_eq!(again.exec.wait().unwrap(), ExitStatus::Signal(libc::SIGKILL));
}

#[test]
fn no_descriptor_of_the_host_comes_along() {
    let Some(bench) = bench() else { return };
    let config = running(&bench);
    let show = "ls -l /proc/self/fd";
    let pipes = output(&bench, &config.id, &command(&["ls", "-l", "/proc/self/fd"]));
    let open: Vec<_> = pipes.lines().filter_map(|line| Some(line.split_once(" -> ")?.1)).collect();
    assert_eq!(open.len(), 3, "{pipes}");
    assert!(open.iter().all(|target| target.starts_with("pipe:")), "{pipes}");
    let terminal = ExecConfig { terminal: Some(WindowSize { rows: 9, columns: 200 }), ..script(show) };
    let mut exec = bench.launcher.exec_in_terminal(&config.id, &terminal).unwrap();
    let outer = exec.take_terminal().unwrap();
    exec.wait().unwrap();
    let mut shown = Vec::new();
    // A terminal ends with an error once nobody has its other side.
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = outer.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..count]);
    }
    let shown = String::from_utf8_lossy(&shown).into_owned();
    let open: Vec<_> = shown.lines().filter_map(|line| Some(line.split_once(" -> ")?.1)).collect();
    assert_eq!(open.len(), 3, "{shown}");
    assert!(open.iter().all(|target| target.starts_with("/dev/pts/")), "{shown}");
}

#[test]
fn set_user_id_programs_give_nothing() {
    let Some(bench) = bench() else { return };
    let config = running(&bench);
    hostile(&bench, &config, "/bin/busybox cp /bin/busybox /tmp/busybox; /bin/busybox chmod 4755 /tmp/busybox");
    let asked = ExecConfig { user: Some("app".into()), ..command(&["/tmp/busybox", "id", "-u"]) };
    assert_eq!(output(&bench, &config.id, &asked), "1000\n", "no_new_privs holds for commands too");
    let status =
        output(&bench, &config.id, &ExecConfig { user: Some("app".into()), ..command(&["cat", "/proc/self/status"]) });
    assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), ("1", "2"));
    for forbidden in ["mount -t tmpfs none /tmp", "unshare -m true", "unshare -U true"] {
        assert_ne!(run(&bench, &config.id, &script(forbidden)).0, ExitStatus::Code(0), "{forbidden}");
    }
}

#[test]
fn a_replaced_proc_does_not_matter() {
    let Some(bench) = bench() else { return };
    let config = support::with(
        &bench.config(&["sleep", "1000"]),
        &[("/mounts", serde_json::json!([])), ("/linux/sysctl", serde_json::json!({}))],
    );
    bench.launcher.start(&config).unwrap();
    hostile(
        &bench,
        &config,
        "mkdir -p /proc/self/fd /proc/self/ns /proc/self/attr; echo evil > /proc/self/oom_score_adj",
    );
    let asked = ExecConfig { user: Some("app".into()), cwd: Some("/tmp".into()), ..script("pwd; id -u") };
    assert_eq!(output(&bench, &config.id, &asked), "/tmp\n1000\n");
    assert_eq!(
        output(&bench, &config.id, &command(&["cat", "/proc/self/oom_score_adj"])),
        "evil\n",
        "nothing was written"
    );
}

#[test]
fn another_launcher_runs_nothing_in_a_sandbox_that_is_not_its_own() {
    let Some(bench) = bench() else { return };
    let config = running(&bench);
    let other = Launcher::private(LAUNCHER.as_ref()).unwrap();
    let null = || std::fs::File::open("/dev/null").unwrap().into();
    assert!(other.exec(&config.id, &command(&["true"]), [null(), null(), null()]).is_err());
}
