//! What a build that is killed leaves in Docker's engine: an image that the next build takes away, and no other.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::Engine;
use crate::support::{Ended, Home, has_program, wait_for};

/// Leads to an engine. While it withholds, the archive of an image never comes.
struct Door {
    address: String,
    withholds: Arc<AtomicBool>,
}

impl Door {
    fn to(socket: PathBuf) -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("docker://{}", listener.local_addr().expect("bound"));
        let withholds = Arc::new(AtomicBool::new(true));
        let door = Door { address, withholds: withholds.clone() };
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut first = [0; 4096];
                let Ok(length) = stream.read(&mut first) else { continue };
                if withholds.load(Ordering::SeqCst) && first.starts_with(b"GET /images/cfc-build:") {
                    held.push(stream);
                    continue;
                }
                let Ok(mut engine) = UnixStream::connect(&socket) else { continue };
                engine.write_all(&first[..length]).expect("the engine reads");
                let (there, back) = (engine.try_clone().expect("a clone"), stream.try_clone().expect("a clone"));
                std::thread::spawn(move || carry(stream, there));
                std::thread::spawn(move || {
                    carry(engine, &back);
                    let _ = back.shutdown(Shutdown::Both);
                });
            }
        });
        door
    }
}

fn carry(mut from: impl Read, mut to: impl Write) {
    let _ = std::io::copy(&mut from, &mut to);
}

/// Begins a build of a file of its own.
fn begin(home: &Home, door: &Door, file: &str) -> Child {
    home.write(&format!("{file}/{file}"), file);
    home.write(&format!("{file}/Dockerfile"), &format!("FROM scratch\nCOPY {file} /\n"));
    let mut command = home.cfc();
    command.args(["build", file, "-t", file, "--builder", "buildkit", "--buildkit-addr", &door.address]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("cfc runs")
}

fn images(engine: &Engine) -> Vec<String> {
    engine.images("cfc-build").lines().map(str::to_string).collect()
}

#[test]
fn what_a_killed_build_left_in_an_engine_is_taken_back_by_the_next() {
    if !has_program("dockerd") {
        return;
    }
    let home = Home::new();
    let Some(engine) = Engine::start(home.path("engine")) else { return };
    let door = Door::to(home.path("engine/socket"));
    let mut killed = Ended(begin(&home, &door, "killed"));
    let left = wait_for("the image of a build", || images(&engine).pop());
    // Another one that goes on.
    let _alive = Ended(begin(&home, &door, "alive"));
    let alive = wait_for("another's", || images(&engine).into_iter().find(|name| *name != left));
    // With SIGKILL.
    killed.0.kill().expect("it lives");
    killed.0.wait().expect("it ends");
    assert!(images(&engine).contains(&left), "nobody could take it back");
    // One of another store, which knows nothing of it, leaves it alone.
    door.withholds.store(false, Ordering::SeqCst);
    assert!(begin(&Home::new(), &door, "other").wait().expect("it ends").success());
    assert!(images(&engine).contains(&left));
    assert!(begin(&home, &door, "next").wait().expect("it ends").success());
    assert_eq!(images(&engine), [alive], "the killed build's image is gone, and the living one's is not");
    let notes = std::fs::read_dir(home.data().join("store/lent")).expect("lists").count();
    assert_eq!(notes, 1, "only what is lent still is noted");
}
