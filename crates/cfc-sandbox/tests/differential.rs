//! Our sandbox against runc: the same specs, and what a process inside sees of them. Every difference is listed, with both
//! sides; those that are meant to be are in [`ACCEPTED`], with the reason. Needs root, runc and a C compiler.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cfc_sandbox::{Root, SandboxConfig, build_spec, default_spec};
use serde_json::{Value, json};
use support::{Bench, bench, with};

/// A fact, or with a `*` at its end every fact whose name begins so, that may differ, and why.
const ACCEPTED: &[(&str, &str)] = &[
    ("mount /", "ours is an overlay, and the tests give runc a directory"),
    (
        "mount /etc",
        "a read-only path of the root; and ours are nosuid, nodev and noexec besides, as Docker's /proc paths are",
    ),
    ("cgroup", "they are in cgroups of different names"),
    ("namespace *", "every sandbox has its own"),
    ("environment", "runc adds HOME and drops all but the last of a name; here the runtime of instances does both"),
    (
        "descriptor 0",
        "both read nothing: the tests give ours /dev/null, and runc makes a pipe of that in a user namespace",
    ),
    (
        "call socket vsock",
        "libseccomp cannot refuse `socket` for all families but some, so runc gives the default answer",
    ),
    ("call socket alg", "the same"),
    ("call personality no randomize", "the same"),
    ("mount /sys", "read-only by the mount, and for runc by the filesystem too"),
    ("mount /sys/firmware", "the mask is read-only by the mount, and for runc by the filesystem too"),
    ("mount /sys/kernel", "the same"),
    ("mount /proc/acpi", "the same"),
    ("path /sys/power/state", "refused by both, for another reason: see the mount of /sys"),
    ("dev mqueue", "ours is of nobody, because it is made before the ids are mapped; all may use it"),
    ("net", "the loopback's entry is of nobody for the same reason; all of /sys is read-only"),
    (
        "status SigIgn",
        "runc leaves signal 32 ignored where it inherits that; ours resets all, which another test checks",
    ),
    (
        "path /proc/keys",
        "unmasked it shows runc's session keyring; here keyrings are refused, and there is none to show",
    ),
    ("mount /mnt/*", "ours maps the ids of bind mounts, so that files have the ids that they have on the host"),
    ("mount /dev/*", "without a user namespace runc makes device nodes, and ours shows the host's, which is as good"),
    ("mount /proc/interrupts", "and so this mask is runc's node on its tmpfs there, and the host's /dev/null here"),
    ("mount /proc/keys", "the same"),
    ("mount /proc/kcore", "the same"),
    ("mount /proc/timer_list", "the same"),
];

/// Runs the spec with both and returns what the probe said.
fn both(bench: &Bench, config: &SandboxConfig) -> (String, String) {
    let (_, ours) = bench.run_config(config);
    (ours, runc(bench, config))
}

fn runc(bench: &Bench, config: &SandboxConfig) -> String {
    let directory = bench.directory.path().join(format!("{}-runc", config.id));
    let Root::Overlay { lowers, .. } = &config.root else { panic!("an overlay") };
    fs::create_dir_all(&directory).unwrap();
    run(Command::new("cp").arg("-a").arg(&lowers[0]).arg(directory.join("rootfs")));
    let mut spec = serde_json::to_value(&config.spec).unwrap();
    if let Some(first) = spec["linux"]["uidMappings"][0]["hostID"].as_u64().filter(|_| has_user_namespace(&spec)) {
        run(Command::new("chown").args(["-hR", &format!("{first}:{first}")]).arg(directory.join("rootfs")));
    }
    // As in a bundle of ours: for libseccomp an entry without conditions hides those with conditions.
    for entry in spec["linux"]["seccomp"]["syscalls"].as_array_mut().into_iter().flatten() {
        if entry["names"] == json!(["personality", "socket"]) && entry["args"].is_null() {
            entry["names"] = json!(["nfsservctl"]);
        }
    }
    spec["ociVersion"] = json!("1.0.2");
    spec["root"]["path"] = json!(directory.join("rootfs"));
    spec["linux"]["cgroupsPath"] = json!(format!("/{}/{}", parent(), config.id));
    fs::write(directory.join("config.json"), spec.to_string()).unwrap();
    let state = bench.directory.path().join("runc-state");
    let output = Command::new("runc")
        .arg("--root")
        .arg(&state)
        .args(["run", "--bundle"])
        .arg(&directory)
        .arg(&config.id)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn has_user_namespace(spec: &Value) -> bool {
    spec["linux"]["namespaces"].as_array().unwrap().iter().any(|namespace| namespace["type"] == "user")
}

fn parent() -> String {
    format!("cfctest-{}", std::process::id())
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// Takes runc's cgroups away again.
struct Cgroups;

impl Drop for Cgroups {
    fn drop(&mut self) {
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(hierarchy.path().join(parent()));
        }
    }
}

/// Lines as facts: what is before the first colon names one; several of a name are one fact.
fn facts(text: &str) -> BTreeMap<String, String> {
    let mut facts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let (name, value) = line.split_once(": ").or(line.split_once(":\t")).unwrap_or((line, ""));
        let (name, value) = match name {
            "dev" | "pts" => value.split_once(' ').map(|(file, rest)| (format!("{name} {file}"), rest)).unwrap(),
            _ => (name.to_owned(), value),
        };
        facts.entry(name).or_default().push(value.to_owned());
    }
    facts.into_iter().map(|(name, values)| (name, values.join(" | "))).collect()
}

/// The differences that nobody accepted.
fn differences(ours: &str, theirs: &str) -> Vec<String> {
    let (ours, theirs) = (facts(ours), facts(theirs));
    let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let mut found = Vec::new();
    for name in names {
        let absent = "(nothing)".to_owned();
        let (our, their) = (ours.get(name).unwrap_or(&absent), theirs.get(name).unwrap_or(&absent));
        if our == their {
            continue;
        }
        let matches = |pattern: &str| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        };
        if !ACCEPTED.iter().any(|(pattern, _)| matches(pattern)) {
            found.push(format!("  {name}\n    ours  {our}\n    runc  {their}"));
        }
    }
    found
}

/// Name and changes of each spec that both get.
fn variations(directory: &Path) -> Vec<(&'static str, Vec<(&'static str, Value)>)> {
    let mount = |target: &str, kind: &str, source: &Path, options: Value| json!({"destination": target, "type": kind, "source": source, "options": options});
    let with_mounts = |more: Vec<Value>| {
        let mut mounts = serde_json::to_value(default_spec().mounts()).unwrap();
        mounts.as_array_mut().unwrap().extend(more);
        mounts
    };
    let all_caps = json!([
        "CAP_CHOWN",
        "CAP_SYS_ADMIN",
        "CAP_NET_ADMIN",
        "CAP_SYS_PTRACE",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETFCAP"
    ]);
    let namespaces = |names: &[&str]| json!(names.iter().map(|name| json!({"type": name})).collect::<Vec<_>>());
    let bound = directory.join("bound");
    fs::create_dir_all(&bound).unwrap();
    fs::write(bound.join("file"), "x").unwrap();
    let rule = |names: &[&str], action: &str, errno: u32| json!({"names": names, "action": action, "errnoRet": errno});
    vec![
        ("the default", vec![]),
        ("a user", vec![("/process/user", json!({"uid": 1000, "gid": 1001, "additionalGids": [7, 1001]}))]),
        ("a umask", vec![("/process/user", json!({"uid": 0, "gid": 0, "umask": 0o077}))]),
        ("no capability", vec![("/process/capabilities", json!({"bounding": [], "effective": [], "permitted": []}))]),
        (
            "capabilities",
            vec![(
                "/process/capabilities",
                json!({"bounding": all_caps, "effective": ["CAP_CHOWN"], "permitted": all_caps, "inheritable": all_caps, "ambient": ["CAP_NET_RAW"]}),
            )],
        ),
        (
            "a user's ambient capabilities",
            vec![
                ("/process/user", json!({"uid": 1000, "gid": 1000})),
                (
                    "/process/capabilities",
                    json!({"bounding": all_caps, "effective": all_caps, "permitted": all_caps, "inheritable": all_caps, "ambient": ["CAP_NET_RAW", "CAP_CHOWN"]}),
                ),
            ],
        ),
        ("new privileges", vec![("/process/noNewPrivileges", json!(false))]),
        ("an environment", vec![("/process/env", json!(["PATH=/bin", "A=1", "A=2", "B=", "E=a=b c\td"]))]),
        ("a working directory", vec![("/process/cwd", json!("/home"))]),
        ("a working directory to be made", vec![("/process/cwd", json!("/srv/deep/app"))]),
        (
            "limits",
            vec![(
                "/process/rlimits",
                json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}, {"type": "RLIMIT_STACK", "soft": 1 << 20, "hard": 4 << 20}, {"type": "RLIMIT_NPROC", "soft": 500, "hard": 500}]),
            )],
        ),
        ("an oom score", vec![("/process/oomScoreAdj", json!(777))]),
        ("a read-only root", vec![("/root/readonly", json!(true))]),
        (
            "bind mounts",
            vec![(
                "/mounts",
                with_mounts(vec![
                    mount("/mnt/a", "bind", &bound, json!(["bind", "ro", "nosuid", "nodev", "noexec"])),
                    mount("/mnt/b", "bind", &bound, json!(["rbind"])),
                    mount("/mnt/file", "bind", &bound.join("file"), json!(["bind", "nosuid", "nodev", "noexec"])),
                ]),
            )],
        ),
        (
            "a tmpfs",
            vec![(
                "/mounts",
                with_mounts(vec![mount(
                    "/scratch",
                    "tmpfs",
                    Path::new("tmpfs"),
                    json!(["nosuid", "nodev", "noexec", "size=1m", "mode=1777"]),
                )]),
            )],
        ),
        (
            "other masks",
            vec![
                ("/linux/maskedPaths", json!(["/proc/version", "/sys/kernel", "/no/such"])),
                ("/linux/readonlyPaths", json!(["/etc", "/proc/sys"])),
            ],
        ),
        ("no masks", vec![("/linux/maskedPaths", json!([])), ("/linux/readonlyPaths", json!([]))]),
        ("no seccomp", vec![("/linux/seccomp", Value::Null)]),
        (
            "another seccomp",
            vec![(
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
            rule(&["sethostname"], "SCMP_ACT_ERRNO", 13), rule(&["setdomainname"], "SCMP_ACT_KILL_PROCESS", 0),
            rule(&["syslog"], "SCMP_ACT_TRAP", 0), rule(&["acct"], "SCMP_ACT_LOG", 0),
            {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22, "args": [{"index": 0, "value": 0x4_0000, "op": "SCMP_CMP_EQ"}]},
            {"names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95, "args": [{"index": 0, "value": 0x1000_0000, "valueTwo": 0x1000_0000, "op": "SCMP_CMP_MASKED_EQ"}]}]}),
            )],
        ),
        (
            "sysctls",
            vec![(
                "/linux/sysctl",
                json!({"net.ipv4.ip_unprivileged_port_start": "1000", "net.ipv4.ping_group_range": "0 100", "kernel.msgmax": "4096"}),
            )],
        ),
        (
            "no user namespace",
            vec![
                ("/linux/namespaces", namespaces(&["mount", "pid", "network", "ipc", "uts", "cgroup"])),
                ("/linux/uidMappings", json!([])),
                ("/linux/gidMappings", json!([])),
            ],
        ),
        (
            "no cgroup namespace",
            vec![("/linux/namespaces", namespaces(&["user", "mount", "pid", "network", "ipc", "uts"]))],
        ),
        (
            "another mapping",
            vec![
                ("/linux/uidMappings", json!([{"containerID": 0, "hostID": 300_000, "size": 2000}])),
                ("/linux/gidMappings", json!([{"containerID": 0, "hostID": 300_000, "size": 2000}])),
                ("/linux/sysctl", json!({})),
            ],
        ),
        (
            "resources",
            vec![(
                "/linux/resources",
                json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}, "pids": {"limit": 50}, "cpu": {"quota": 50_000, "period": 100_000, "shares": 512}}),
            )],
        ),
    ]
}

fn prepared() -> Option<(Bench, PathBuf)> {
    let bench = bench()?;
    if !Command::new("runc").arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: needs runc");
        return None;
    }
    let probe = support::probe()?;
    let path = bench.directory.path().to_owned();
    // runc's process goes to the root filesystem by its path, as a user of the sandbox.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(probe, path.join("layer/bin/probe")).unwrap();
    for directory in ["proc", "dev", "sys"] {
        fs::create_dir_all(path.join("layer").join(directory)).unwrap();
    }
    Some((bench, path))
}

#[test]
fn both_show_the_same_sandbox() {
    let Some((bench, path)) = prepared() else { return };
    let _cgroups = Cgroups;
    let mut report = Vec::new();
    // The same ids for both; usually the launcher chooses ours.
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let basics =
        [("/hostname", json!("probe")), ("/linux/uidMappings", mapping.clone()), ("/linux/gidMappings", mapping)];
    let base = with(&bench.config(&["/bin/probe", "report"]), &basics);
    let mut configs: Vec<_> = variations(&path)
        .into_iter()
        .map(|(name, changes)| {
            let own = with(&bench.config(&["/bin/probe", "report"]), &basics);
            (name, with(&own, &changes))
        })
        .collect();
    let mut build = bench.config(&["/bin/probe", "report"]);
    let args = base.spec.process().as_ref().unwrap().args().clone();
    build.spec = build_spec();
    build.spec.process_mut().as_mut().unwrap().set_args(args);
    // Making device nodes is ours alone (`device_nodes.rs`).
    configs.push(("a build's step", with(&with(&build, &basics), &[("/annotations", json!({}))])));
    for (name, config) in &configs {
        let (ours, theirs) = both(&bench, config);
        assert!(ours.lines().count() > 150 && theirs.lines().count() > 150, "{name}: {ours}\n--\n{theirs}");
        assert!(theirs.contains("call bind 80"), "{name}: {theirs}");
        let found = differences(&ours, &theirs);
        if !found.is_empty() {
            report.push(format!("{name}:\n{}", found.join("\n")));
        }
    }
    assert!(report.is_empty(), "{} of {} specs differ\n{}", report.len(), configs.len(), report.join("\n"));
}

#[test]
fn both_give_the_kernel_the_same_limits() {
    let Some((bench, _)) = prepared() else { return };
    let _cgroups = Cgroups;
    let resources = json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}, "pids": {"limit": 50}, "cpu": {"quota": 50_000, "period": 100_000, "shares": 512}});
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let config = with(
        &bench.config(&["sleep", "1000"]),
        &[("/linux/resources", resources), ("/linux/uidMappings", mapping.clone()), ("/linux/gidMappings", mapping)],
    );
    let started = bench.launcher.start(&config).unwrap();
    let ours = limits_of(started.pid);
    bench.launcher.kill_all(&config.id).unwrap();
    bench.launcher.wait(&config.id).unwrap();
    let script = with(&config, &[("/process/args", json!(["sh", "-c", "sleep 2"]))]);
    let theirs = std::thread::scope(|scope| {
        let run = scope.spawn(|| runc(&bench, &script));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            let found = limits_below(&config.id, "cfctest-");
            // It writes them one by one.
            if found == ours || run.is_finished() || std::time::Instant::now() > deadline {
                return found;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
    assert!(ours.len() >= 3, "{ours:?}");
    assert_eq!(ours, theirs);
}

/// The values in the cgroups of a process. (In v2 ours are not named after the sandbox.)
fn limits_of(pid: i32) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap().lines() {
        let (controllers, path) = line.split_once(':').and_then(|(_, rest)| rest.split_once(':')).unwrap();
        for mount in [controllers, "unified", ""] {
            let hierarchy = Path::new("/sys/fs/cgroup").join(mount);
            read_limits(&hierarchy.join(path.trim_start_matches('/')), &mut found);
        }
    }
    found
}

/// The values in the cgroups called `name`, below parents whose names begin with `prefix`.
fn limits_below(name: &str, prefix: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let hierarchies =
        fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path()).chain([PathBuf::from("/sys/fs/cgroup")]);
    for hierarchy in hierarchies {
        for parent in fs::read_dir(&hierarchy).into_iter().flatten().flatten() {
            if parent.file_name().to_string_lossy().starts_with(prefix) {
                read_limits(&parent.path().join(name), &mut found);
            }
        }
    }
    found
}

fn read_limits(cgroup: &Path, found: &mut BTreeMap<String, String>) {
    const FILES: [&str; 10] = [
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.max",
        "memory.swap.max",
        "pids.max",
        "cpu.cfs_quota_us",
        "cpu.cfs_period_us",
        "cpu.shares",
        "cpu.max",
        "cpu.weight",
    ];
    for file in FILES {
        if let Ok(value) = fs::read_to_string(cgroup.join(file)) {
            found.insert(file.to_owned(), value.trim().to_owned());
        }
    }
}
