//! `cfc containers exec`: a command in a running instance, with this terminal or these pipes as its own.

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use cfc_control::{
    Client, ClientError, Code, ExecConnection, ExecInput, ExecOutput, ExecReceiver, ExecRequest, ExecSender,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::args::ContainersExec;
use crate::failure::Failure;
use crate::server::client::control_failure;
use crate::terminal::{RawTerminal, window_size};

/// What a terminal is taken for whose size is not known.
const DEFAULT_SIZE: (u16, u16) = (24, 80);
const BUFFER_BYTES: usize = 16 << 10;
/// Signals that are passed on to the command. With a terminal these come as keys.
const PASSED_ON: [SignalKind; 4] =
    [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::quit(), SignalKind::hangup()];

pub async fn run(client: &Client, arguments: &ContainersExec) -> Result<ExitCode, Failure> {
    let has_terminal = std::io::stdin().is_terminal();
    if arguments.tty && arguments.interactive && !has_terminal {
        return Err(Failure::new("the input is no terminal, which `-t` together with `-i` needs")
            .hint("leave out `-t`: input and output then are pipes"));
    }
    let request = ExecRequest {
        command: arguments.command.clone(),
        env: arguments.environment.iter().map(|text| variable(text)).collect::<Result<_, _>>()?,
        user: arguments.user.clone(),
        workdir: arguments.workdir.clone(),
        stdin: arguments.interactive,
        terminal: arguments.tty.then(|| window_size().unwrap_or(DEFAULT_SIZE)),
    };
    let connection = client.exec(&arguments.instance, &request).await.map_err(not_executed)?;
    let raw = (arguments.tty && arguments.interactive).then(RawTerminal::enter).transpose()?;
    let outcome = carry(connection, arguments).await;
    drop(raw);
    outcome
}

/// As a shell exits, so that a script can tell a command that is not there from one that failed.
fn not_executed(error: ClientError) -> Failure {
    let exit_code = match error.code() {
        Some(Code::CommandNotFound) => Some(127),
        Some(Code::NotExecutable) => Some(126),
        _ => None,
    };
    control_failure(error).exits_with(exit_code)
}

/// `KEY=value` as it is; `KEY` with the value that it has here.
fn variable(text: &str) -> Result<String, Failure> {
    if text.contains('=') {
        return Ok(text.to_string());
    }
    let value = std::env::var(text).map_err(|_| {
        Failure::new(format!("`-e {text}` has no value, and this environment has none for it"))
            .hint(format!("give it one: `-e {text}=VALUE`"))
    })?;
    Ok(format!("{text}={value}"))
}

async fn carry(connection: ExecConnection, arguments: &ContainersExec) -> Result<ExitCode, Failure> {
    let ExecConnection { sender, receiver } = connection;
    let (tell, told) = mpsc::channel(1);
    if arguments.interactive {
        std::thread::spawn({
            let tell = tell.clone();
            move || read_input(&tell)
        });
    }
    let signals = watch_signals(arguments.tty, tell)?;
    tokio::select! {
        outcome = show(receiver) => outcome,
        // Never ends by itself, since signals may always come.
        () = pass_on(sender, told) => Err(Failure::new("nobody listens to the command any more")),
        () = signals => Err(Failure::new("signals cannot be watched any more")),
    }
}

/// Puts out what comes until the command has ended.
async fn show(mut receiver: ExecReceiver) -> Result<ExitCode, Failure> {
    loop {
        let written = match receiver.next().await.map_err(control_failure)? {
            ExecOutput::Stdout(bytes) => write(&mut std::io::stdout().lock(), &bytes),
            ExecOutput::Stderr(bytes) => write(&mut std::io::stderr().lock(), &bytes),
            // What the kernel would keep of it, too.
            ExecOutput::Exit(code) => return Ok(ExitCode::from(code as u8)),
        };
        if let Err(error) = written {
            // A closed pipe ends the program quietly, as it does any Unix tool.
            let is_closed = error.kind() == std::io::ErrorKind::BrokenPipe;
            return if is_closed {
                Ok(ExitCode::SUCCESS)
            } else {
                Err(Failure::because("cannot write the output", &error))
            };
        }
    }
}

fn write(to: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// Tells the command what there is to tell, for as long as it runs.
async fn pass_on(mut sender: ExecSender, mut told: mpsc::Receiver<ExecInput>) {
    while let Some(input) = told.recv().await {
        if sender.send(input).await.is_err() {
            break;
        }
    }
    // Its end, or the server's, is heard of in the other direction.
    std::future::pending().await
}

/// On a thread of its own: a read of a terminal cannot be given up.
fn read_input(tell: &mpsc::Sender<ExecInput>) {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut stdin = std::io::stdin().lock();
    loop {
        let input = match stdin.read(&mut buffer) {
            Ok(0) | Err(_) => ExecInput::End,
            Ok(count) => ExecInput::Data(buffer[..count].to_vec().into()),
        };
        let is_end = input == ExecInput::End;
        if tell.blocking_send(input).is_err() || is_end {
            return;
        }
    }
}

/// Passes on this terminal's new sizes and, without one, signals.
fn watch_signals(has_terminal: bool, tell: mpsc::Sender<ExecInput>) -> Result<impl Future<Output = ()>, Failure> {
    let failed = |error: std::io::Error| Failure::because("cannot watch signals", &error);
    let mut resized = signal(SignalKind::window_change()).map_err(failed)?;
    let kinds: &[SignalKind] = if has_terminal { &[] } else { &PASSED_ON };
    let passed: Vec<(i32, Signal)> = kinds
        .iter()
        .map(|kind| signal(*kind).map(|watched| (kind.as_raw_value(), watched)))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    for (number, mut watched) in passed {
        let tell = tell.clone();
        tokio::spawn(async move {
            while watched.recv().await.is_some() && tell.send(ExecInput::Signal(number)).await.is_ok() {}
        });
    }
    Ok(async move {
        while resized.recv().await.is_some() {
            if let (true, Some((rows, columns))) = (has_terminal, window_size()) {
                let _ = tell.send(ExecInput::Resize(rows, columns)).await;
            }
        }
    })
}
