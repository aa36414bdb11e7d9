//! Commands in instances, between the control API and the runtime.

use cfc_control::{ExecError, ExecInput, ExecOutput, ExecRequest, ExecSession, InstanceError};
use cfc_runtime::{Exec, ExecControl, ExecSpec, Refusal, Runtime, RuntimeErrorKind, WindowSize};
use tokio::sync::mpsc;

use crate::server::resolve::resolve;

/// How many pieces of input or output wait at most.
const QUEUE: usize = 4;
const BUFFER_BYTES: usize = 32 << 10;

/// Runs a command in the instance that `name` means.
pub async fn exec(runtime: &Runtime, name: &str, request: ExecRequest) -> Result<ExecSession, ExecError> {
    let instance = resolve(runtime, name)?;
    let spec = ExecSpec {
        command: request.command,
        env: request.env,
        user: request.user,
        cwd: request.workdir.map(Into::into),
        has_input: request.stdin,
        terminal: request.terminal.map(|(rows, columns)| WindowSize { rows, columns }),
    };
    let running = runtime.exec(&instance, spec).await.map_err(|error| match &error.kind {
        RuntimeErrorKind::NotRunning | RuntimeErrorKind::Refused(Refusal::NoInstance(_)) => {
            InstanceError::NotRunning(instance.clone()).into()
        }
        kind => {
            let shell_code = match kind {
                RuntimeErrorKind::Sandbox(error) => error.exit_code(),
                _ => None,
            };
            ExecError::NotStarted { reason: kind.to_string(), hint: kind.hint().map(str::to_string), shell_code }
        }
    })?;
    let (input, told) = mpsc::channel(QUEUE);
    let (tell, output) = mpsc::channel(QUEUE);
    tokio::spawn(carry(running, told, tell));
    Ok(ExecSession { input, output })
}

/// Carries input and output until the command has ended. When nobody listens any more, it is killed.
async fn carry(running: Exec, told: mpsc::Receiver<ExecInput>, tell: mpsc::Sender<ExecOutput>) {
    let Exec { input, mut stdout, stderr, control, .. } = running;
    let hearing = tokio::spawn(hear(input, told, control.clone()));
    let errors = async {
        if let Some(mut stderr) = stderr {
            pass_on(&mut stderr, &tell, ExecOutput::Stderr).await;
        }
    };
    let outputs = async { tokio::join!(pass_on(&mut stdout, &tell, ExecOutput::Stdout), errors) };
    tokio::select! {
        _ = outputs => {}
        () = tell.closed() => end(&control),
    }
    tokio::select! {
        code = control.ended() => drop(tell.send(ExecOutput::Exit(code)).await),
        () = tell.closed() => end(&control),
    }
    hearing.abort();
}

fn end(control: &ExecControl) {
    if let Err(error) = control.end() {
        tracing::debug!(%error, "a command whose client is gone");
    }
}

async fn pass_on(
    output: &mut cfc_runtime::ExecOutput,
    tell: &mpsc::Sender<ExecOutput>,
    kind: impl Fn(bytes::Bytes) -> ExecOutput,
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        if tell.send(kind(bytes::Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
            return;
        }
    }
}

async fn hear(input: Option<cfc_runtime::ExecInput>, mut told: mpsc::Receiver<ExecInput>, control: ExecControl) {
    let mut input = input;
    while let Some(event) = told.recv().await {
        match event {
            ExecInput::Data(bytes) => {
                if let Some(sink) = &mut input
                    && sink.write_all(&bytes).await.is_err()
                {
                    input = None;
                }
            }
            ExecInput::End => {
                if let Some(input) = input.take() {
                    let _ = input.finish().await;
                }
            }
            ExecInput::Resize(rows, columns) => drop(control.resize(WindowSize { rows, columns })),
            ExecInput::Signal(signal) => drop(control.kill(signal)),
        }
    }
}
