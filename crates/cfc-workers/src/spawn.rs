//! Starts processes that end when this process ends, however it ends.
//!
//! The kernel can do that (`PR_SET_PDEATHSIG`), with two conditions. The child must ask for it, between fork and exec,
//! which needs `unsafe`; `setpriv` of util-linux asks instead and then becomes the program, under the same process id.
//! And "parent" means the *thread* that forked, so all such processes are started from one thread that never ends.
//! Without `setpriv` they start all the same, and [`crate::leftover`] ends what an earlier run left behind.

use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

type Job = Box<dyn FnOnce() + Send>;

/// A command for `program` that dies with the thread that spawns it.
pub(crate) fn dying_with_us(program: &std::path::Path) -> Command {
    static SETPRIV: OnceLock<bool> = OnceLock::new();
    let has_setpriv = *SETPRIV.get_or_init(|| Command::new("setpriv").arg("--version").output().is_ok());
    if !has_setpriv {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Spawns the command on the thread that never ends.
pub(crate) fn spawn(mut command: Command) -> std::io::Result<Child> {
    let (sender, answer) = channel();
    let job: Job = Box::new(move || {
        // The caller waits for the answer, so it is there to take it.
        let _ = sender.send(command.spawn());
    });
    let gone = || std::io::Error::other("the thread that starts processes has ended");
    spawner().send(job).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

fn spawner() -> &'static Sender<Job> {
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        std::thread::Builder::new()
            .name("cfc-spawner".to_string())
            .spawn(move || jobs.into_iter().for_each(|job| job()))
            .expect("a process that can start no thread cannot serve");
        sender
    })
}
