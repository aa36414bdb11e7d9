//! What grows: the memory of instances that have ended, and the connections to one that runs; and what of an image is no
//! order to us.

use std::path::Path;
use std::time::{Duration, Instant};

use cfc_runtime::{Application, ConnectError, InstanceType, Isolation};
use cfc_sandbox::OciRuntime;

use crate::Test;
use crate::image;
use crate::inventory::assert_nothing_left;
use crate::support::{APPLICATION, Machine, PATIENCE, block_on, directory, get};

pub const TESTS: &[Test] = &[
    ("logs_of_ended_instances_take_a_bounded_space", ended_logs),
    ("a_container_without_local_ports_says_so_and_recovers", local_ports),
    ("hooks_and_labels_of_an_image_are_never_orders", labels),
];

/// The files and the bytes of what is remembered of ended instances.
fn ended(directory: &Path) -> (usize, u64) {
    let entries = std::fs::read_dir(directory.join("data/instances/.ended")).expect("is there").flatten();
    let lengths: Vec<u64> = entries.map(|entry| entry.metadata().expect("readable").len()).collect();
    (lengths.len(), lengths.iter().sum())
}

/// Many small logs are bounded by their number, large ones by their bytes, whatever the instances are called.
fn ended_logs() {
    const KEPT: usize = 200;
    const BYTES_KEPT: u64 = 256 << 20;
    let directory = directory();
    block_on(async {
        let machine = Machine::open(directory.path(), "echo last words", 9).await;
        let turn = async |range: std::ops::Range<usize>| {
            for number in range {
                let name = format!("e{number}");
                machine.run(&name).await.expect("it starts");
                machine.wait(&name).await;
                assert!(machine.runtime.remove(&name).await);
            }
        };
        turn(0..KEPT + 10).await;
        let full = ended(directory.path());
        assert!(full.0 <= 2 * KEPT, "a log and an end of each: {full:?}");
        assert_eq!(machine.runtime.ended().len(), KEPT);
        turn(KEPT + 10..KEPT + 30).await;
        let (files, _) = ended(directory.path());
        assert_eq!(files, full.0, "it grows");
        assert_eq!(machine.output(&format!("e{}", KEPT + 29)).await, "last words\n");
        assert!(machine.runtime.logs("e0").is_none(), "the oldest is still there");
        // As if each had written as much as a log may hold: without blocks behind it, as only lengths are counted.
        let large = directory.path().join("data/instances/.ended");
        for entry in std::fs::read_dir(&large).expect("is there").flatten().map(|entry| entry.path()) {
            if entry.extension().is_some_and(|extension| extension == "log") {
                let modified = entry.metadata().expect("readable").modified().expect("known");
                let file = std::fs::File::options().write(true).open(&entry).expect("writable");
                file.set_len(8 << 20).and_then(|()| file.set_modified(modified)).expect("writable");
            }
        }
        turn(KEPT + 30..KEPT + 31).await;
        let (_, bytes) = ended(directory.path());
        assert!(bytes <= BYTES_KEPT + (1 << 20), "{bytes} bytes of logs");
        machine.close().await;
    });
    assert_nothing_left(directory.path());
}

/// The setting is the container's own, so that the machine's stays as it is.
fn local_ports() {
    const PORTS: usize = 8;
    let directory = directory();
    block_on(async {
        let machine = Machine::open(directory.path(), "exec httpd -f -p 4000 -h /www", 9).await;
        machine.run("runs").await.expect("it starts");
        get(&machine, "runs").await;
        let pid = machine.runtime.inspect("runs").and_then(|view| view.phase.pid()).expect("it runs").to_string();
        let script = format!("echo 40000 {} >/proc/sys/net/ipv4/ip_local_port_range", 40_000 + PORTS - 1);
        let set = std::process::Command::new("nsenter").args(["-n", "-t", &pid, "sh", "-c", &script]).status();
        assert!(set.expect("nsenter runs").success());
        let connect = async || machine.runtime.connect("runs", 4000, Duration::from_secs(5)).await;
        let mut open = Vec::new();
        let error = loop {
            match connect().await {
                Ok(stream) => open.push(stream),
                Err(error) => break error,
            }
            assert!(open.len() <= PORTS, "the range does not hold");
        };
        assert!(matches!(error, ConnectError::OutOfPorts { port: 4000 }), "{error:?}");
        assert!(error.to_string().contains("ip_local_port_range"), "{error}");
        // What is open goes on, and a port that is free again is used.
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut first = open.remove(0);
        first.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("it reads");
        let mut answer = String::new();
        first.read_to_string(&mut answer).await.expect("it answers");
        assert!(answer.ends_with("hello from the container\n"));
        drop(first);
        open.clear();
        let started = Instant::now();
        while let Err(error) = connect().await {
            assert!(matches!(error, ConnectError::OutOfPorts { .. }) && started.elapsed() < PATIENCE, "{error:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        machine.close().await;
    });
    assert_nothing_left(directory.path());
}

/// Words that some engine or runtime obeys where it finds them as annotations or hooks.
fn labels() {
    let directory = directory();
    let touched = directory.path().join("touched");
    block_on(async {
        let machine = Machine::open(directory.path(), "", 9).await;
        let hook = format!("[{{\"path\":\"/bin/touch\",\"args\":[\"touch\",\"{}\"]}}]", touched.display());
        let odd = [
            ("run.oci.handler", "wasm"),
            ("run.oci.hooks.stdout", touched.to_str().expect("UTF-8")),
            ("run.oci.hooks.prestart", &hook),
            ("com.docker.hooks.prestart", &hook),
            ("io.podman.annotations.privileged", "TRUE"),
            ("io.kubernetes.cri-o.userns-mode", "host"),
            ("dev.gvisor.flag.debug-log", touched.to_str().expect("UTF-8")),
            ("hooks", &hook),
            ("cfc.launch", "99"),
            ("", "\0\n"),
            ("dev.cfc.init", "false"),
        ];
        let image = image::busybox(&image_store(), "id -u; exec httpd -f -p 4000 -h /www", |config| {
            config.labels = Some(odd.map(|(key, value)| (key.to_string(), value.to_string())).into());
        });
        let path = std::env::var("PATH").ok();
        let crun = OciRuntime::find("crun", Path::new("crun"), &[], path.as_deref()).ok();
        for (name, runtime) in [("ours", None), ("theirs", crun)] {
            if name == "theirs" && runtime.is_none() {
                eprintln!("skipped: crun is not installed");
                continue;
            }
            machine.runtime.set_application(Application {
                name: APPLICATION.to_string(),
                image: image.clone(),
                max_instances: 9,
                instance_type: InstanceType::custom(1.0, 64, 100),
                startup_cpu_boost: true,
                isolation: Isolation { runtime, grants: Vec::new() },
            });
            let spec = cfc_runtime::InstanceSpec { image: image.clone(), ..machine.spec(name) };
            machine.runtime.create(spec).await.expect("makes");
            machine.runtime.start(name).await.unwrap_or_else(|error| panic!("{name}: {error}: {}", error.kind));
            assert!(get(&machine, name).await.ends_with("hello from the container\n"), "{name}");
            // What a container says is written down by somebody else than who answers requests.
            let said = async {
                while machine.output(name).await != "0\n" {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            };
            let is_said = tokio::time::timeout(crate::support::PATIENCE, said).await.is_ok();
            assert!(is_said, "{name}: {:?}", machine.output(name).await);
            let status = machine.launcher.list().expect("it answers").into_iter().find(|status| status.id == name);
            let annotations = status.expect("it runs").annotations;
            let keys: Vec<&str> = annotations.keys().map(String::as_str).collect();
            assert_eq!(keys, [cfc_sandbox::INIT_ANNOTATION, "cfc.launch"], "{name}");
            assert_eq!(annotations["cfc.launch"], "1");
        }
        assert!(!touched.exists(), "an image's label was an order");
        machine.close().await;
    });
    assert_nothing_left(directory.path());
}

fn image_store() -> cfc_store::Store {
    cfc_store::Store::open(&crate::support::store_directory()).expect("a store")
}
