//! Cgroup lookup and limits against made-up machines.

use super::*;

const HYBRID: &str = "\
30 1 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

#[test]
fn a_hybrid_machine_takes_each_controller_from_where_it_is() {
    let found = Hierarchies::from_mountinfo(HYBRID, |_| "pids hugetlb\n".into());
    assert_eq!(found.describe(), "cgroup v1 and v2 (hybrid)");
    assert_eq!(found.v1["cpu"], Path::new("/sys/fs/cgroup/cpu"));
    assert_eq!(found.v1["memory"], Path::new("/sys/fs/cgroup/memory"));
    assert!(found.offers("pids") && !found.offers("cpuset"));
}

#[test]
fn what_is_mounted_read_only_is_not_used_and_said() {
    let mut found = Hierarchies::from_mountinfo(HYBRID, |_| "pids\n".into());
    found.leave_out(|mount| mount != Path::new("/sys/fs/cgroup/memory"));
    assert!(found.offers("memory") && !found.offers("cpu") && !found.offers("pids"));
    assert_eq!(found.describe(), "cgroup v1");
    found.leave_out(|_| true);
    assert_eq!(found.describe(), "cgroups that are mounted read-only");
    assert!(found.mount_points().is_empty());
}

#[test]
fn a_v2_machine_enables_controllers_on_the_way_down_and_writes_v2_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path();
    let found = Hierarchies {
        v2: Some((root.to_owned(), ["cpu", "memory", "pids"].map(str::to_owned).into())),
        ..Hierarchies::default()
    };
    // The kernel makes these files; here the test does, so that only existing ones are written.
    for level in ["", "cfc-test", "cfc-test/one"] {
        let level = root.join(level);
        fs::create_dir_all(&level).expect("makes");
        for file in ["cgroup.subtree_control", "memory.max", "memory.swap.max", "cpu.max", "cpu.weight", "pids.max"] {
            fs::write(level.join(file), "").expect("writes");
        }
    }
    let resources: LinuxResources = serde_json::from_value(serde_json::json!({
        "cpu": {"quota": 25_000, "shares": 1024}, "memory": {"limit": 1 << 20}, "pids": {"limit": 64}
    }))
    .expect("resources");
    let cgroup = found.make("cfc-test", "one", &controllers(&found, Some(&resources))).expect("creates");
    cgroup.limit(&resources).expect("sets the limits");
    assert_eq!(cgroup.directories, [root.join("cfc-test/one")]);
    let read = |file: &str| fs::read_to_string(root.join(file)).expect("reads");
    assert_eq!(read("cfc-test/one/memory.max"), "1048576");
    assert_eq!(read("cfc-test/one/memory.swap.max"), "0");
    assert_eq!(read("cfc-test/one/cpu.max"), "25000 100000");
    assert_eq!(read("cfc-test/one/cpu.weight"), "39");
    assert_eq!(read("cfc-test/one/pids.max"), "64");
    assert!(read("cgroup.subtree_control").contains("+pids"));
    fs::write(root.join("cfc-test/one/memory.events"), "low 0\nmax 3\noom 2\noom_kill 1\n").expect("writes");
    assert_eq!(cgroup.oom_kills(), 1);
    let files = [
        ("cpu.stat", "usage_usec 1500000\nuser_usec 1000000\n"),
        ("memory.current", "4096\n"),
        ("memory.peak", "8192\n"),
        ("memory.stat", "anon 1024\nfile 2048\n"),
        ("pids.current", "3\n"),
    ];
    files.iter().for_each(|(file, text)| fs::write(root.join("cfc-test/one").join(file), text).expect("writes"));
    let usage = Usage {
        cpu_usec: 1_500_000,
        memory_bytes: 4096,
        memory_peak_bytes: 8192,
        memory_anonymous_bytes: 1024,
        pids: 3,
        oom_kills: 1,
    };
    assert_eq!(cgroup.usage(), usage);
    assert_eq!(cgroup.memory_limit(), Some(1 << 20));
}

#[test]
fn a_v2_machine_without_swap_still_limits_memory() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path();
    let v2 = Some((root.to_owned(), ["memory".to_owned()].into()));
    let found = Hierarchies { v2, ..Hierarchies::default() };
    for level in ["", "cfc-test", "cfc-test/one"] {
        fs::create_dir_all(root.join(level)).expect("makes");
        for file in ["cgroup.subtree_control", "memory.max"] {
            fs::write(root.join(level).join(file), "").expect("writes");
        }
    }
    let resources: LinuxResources =
        serde_json::from_value(serde_json::json!({"memory": {"limit": 1 << 20}})).expect("resources");
    let cgroup = found.make("cfc-test", "one", &controllers(&found, Some(&resources))).expect("creates");
    cgroup.limit(&resources).expect("limits");
    assert_eq!(fs::read_to_string(root.join("cfc-test/one/memory.max")).expect("reads"), "1048576");
}

#[test]
fn a_limit_that_no_controller_can_hold_is_refused_by_name() {
    let resources: LinuxResources =
        serde_json::from_value(serde_json::json!({"memory": {"limit": 1 << 20}})).expect("resources");
    let controllers = controllers(&Hierarchies::default(), Some(&resources));
    let cgroup = Hierarchies::default().make("cfc-test", "one", &controllers).expect("makes none");
    let refusal = cgroup.limit(&resources).expect_err("refuses");
    assert!(refusal.to_string().contains("`memory` controller"), "{refusal}");
}
