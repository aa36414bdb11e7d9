//! Commands in containers: Docker's exec, as workerd and Docker's own client ask for it.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use cfc_oci::Digest;
use cfc_runtime::{ExecSpec, RuntimeError, RuntimeErrorKind, WindowSize, fail_point};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Engine;
use crate::container::{Container, id_of};
use crate::containers::failure;
use crate::docker::{self, empty, error, no_such_container, not_implemented};
use crate::exec_stream::{self, Framing};
use crate::exec_wrapper::{self, Wrapped};
use crate::execs::{ExecRecord, ExecState};

/// The body of a start is short.
const START_BYTES_MAX: usize = 64 << 10;
const DEFAULT_SIZE: WindowSize = WindowSize { rows: 24, columns: 80 };
/// What a shell exits with when it finds no command, or cannot run it.
const NOT_FOUND: i32 = 127;

/// The body of `POST /containers/<name>/exec`. Zero, false and empty mean unset.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Create {
    attach_stdin: bool,
    tty: bool,
    privileged: bool,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: String,
    user: String,
    console_size: Option<[u16; 2]>,
}

/// The body of `POST /exec/<id>/start`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Start {
    detach: bool,
    console_size: Option<[u16; 2]>,
}

/// The exec that a path names.
#[derive(Deserialize)]
pub(crate) struct ExecId {
    id: String,
}

#[derive(Deserialize)]
pub(crate) struct Size {
    h: Option<u16>,
    w: Option<u16>,
}

pub(crate) async fn create(State(engine): State<Engine>, Container { name }: Container, body: Bytes) -> Response {
    let create: Create = match serde_json::from_slice(&body) {
        Ok(create) => create,
        Err(problem) => return error(StatusCode::BAD_REQUEST, format!("malformed body: {problem}")),
    };
    let Some(view) = engine.runtime().inspect(&name) else { return no_such_container(&name) };
    if !view.phase.is_live() {
        return error(StatusCode::CONFLICT, format!("container {name} is not running"));
    }
    if create.privileged {
        return not_implemented("privileged commands (`Privileged`)");
    }
    let command = create.cmd.unwrap_or_default();
    if command.is_empty() {
        return error(StatusCode::BAD_REQUEST, "no command was given (`Cmd`)".to_string());
    }
    let size = create.console_size.map_or(DEFAULT_SIZE, window);
    let wrapped = exec_wrapper::recognise(command);
    let command = match &wrapped {
        Wrapped::Command { command, .. } | Wrapped::Plain(command) => command.clone(),
        Wrapped::Kill { .. } => Vec::new(),
    };
    let spec = ExecSpec {
        command,
        env: create.env.unwrap_or_default(),
        user: Some(create.user).filter(|user| !user.is_empty()),
        cwd: Some(create.working_dir).filter(|path| !path.is_empty()).map(Into::into),
        has_input: create.attach_stdin,
        terminal: create.tty.then_some(size),
    };
    let id = new_id(&name);
    engine.execs().insert(id.clone(), ExecRecord::new(name, spec, wrapped));
    docker::answer(StatusCode::CREATED, &json!({ "Id": id }))
}

fn window([rows, columns]: [u16; 2]) -> WindowSize {
    WindowSize { rows, columns }
}

/// Sixty-four digits, as Docker's ids are. Not a secret: the socket is its Worker's own.
fn new_id(name: &str) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    Digest::of(format!("{name} {} {number}", std::process::id()).as_bytes()).hex().to_string()
}

pub(crate) async fn start(
    State(engine): State<Engine>,
    Path(ExecId { id }): Path<ExecId>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = match axum::body::to_bytes(body, START_BYTES_MAX).await {
        Ok(body) => body,
        Err(problem) => return error(StatusCode::BAD_REQUEST, format!("no whole body: {problem}")),
    };
    let start: Start = match body.is_empty() {
        true => Start::default(),
        false => match serde_json::from_slice(&body) {
            Ok(start) => start,
            Err(problem) => return error(StatusCode::BAD_REQUEST, format!("malformed body: {problem}")),
        },
    };
    let Some(record) = engine.execs().begin(&id) else {
        return match engine.execs().get(&id) {
            Some(_) => error(StatusCode::CONFLICT, format!("the command {id} was started already")),
            None => no_such_exec(&id),
        };
    };
    let is_upgrade = parts.headers.contains_key(header::UPGRADE);
    if !start.detach && !is_upgrade {
        engine.execs().end(&id, NOT_FOUND);
        return not_implemented("the output of a command without an upgrade of the connection (`Upgrade: tcp`)");
    }
    if let Wrapped::Kill { pid_file, signal, is_guarded } = &record.wrapped {
        let code = kill(&engine, &record.container, pid_file, *signal, *is_guarded);
        engine.execs().end(&id, code);
        return if start.detach { empty(StatusCode::OK) } else { no_output(Request::from_parts(parts, Body::empty())) };
    }
    let mut spec = record.spec.clone();
    if let (Some(size), Some(_)) = (start.console_size, spec.terminal) {
        spec.terminal = Some(window(size));
    }
    spec.has_input &= !start.detach;
    let framing = if spec.terminal.is_some() { Framing::Raw } else { Framing::Multiplexed };
    let running = match engine.runtime().exec(&record.container, spec).await {
        Ok(running) => running,
        Err(problem) => return not_started(&engine, &id, &record, &problem, start.detach, parts, framing),
    };
    engine.execs().run(&id, running.pid, running.control.clone());
    let _ = fail_point("engine.exec.started");
    let (engine, finished) = (engine.clone(), running.control.clone());
    tokio::spawn(async move {
        let code = finished.ended().await;
        engine.execs().end(&id, code);
    });
    if start.detach {
        // It goes on when this engine ends. What it puts out until then is nobody's.
        if let Err(problem) = running.control.release() {
            tracing::debug!(error = %problem, "a detached command was not released");
        }
        tokio::spawn(exec_stream::discard(running));
        return empty(StatusCode::OK);
    }
    let request = Request::from_parts(parts, Body::empty());
    switch(request, framing, move |stream| exec_stream::carry(running, stream, framing))
}

/// The answer to a command that could not be started. To workerd's own wrapper it is a command that the shell did not
/// find: that has run, complained and ended.
fn not_started(
    engine: &Engine,
    id: &str,
    record: &ExecRecord,
    problem: &RuntimeError,
    is_detached: bool,
    parts: axum::http::request::Parts,
    framing: Framing,
) -> Response {
    let shell_code = match &problem.kind {
        RuntimeErrorKind::Sandbox(sandbox) => sandbox.exit_code(),
        _ => None,
    };
    engine.execs().end(id, shell_code.unwrap_or(NOT_FOUND));
    let (true, Some(_), false) = (record.wrapped.is_command(), shell_code, is_detached) else {
        return match (shell_code, &problem.kind) {
            (Some(_), _) => error(StatusCode::BAD_REQUEST, format!("{problem}: {}", problem.kind)),
            (_, RuntimeErrorKind::Sandbox(sandbox)) if sandbox.is_invalid() => {
                error(StatusCode::BAD_REQUEST, format!("{problem}: {}", problem.kind))
            }
            _ => failure(problem),
        };
    };
    let complaint = format!("sh: exec: {}\n", problem.kind);
    let request = Request::from_parts(parts, Body::empty());
    switch(request, framing, move |stream| exec_stream::complain(stream, framing, complaint))
}

fn no_output(request: Request) -> Response {
    switch(request, Framing::Raw, |stream| exec_stream::complain(stream, Framing::Raw, String::new()))
}

/// Answers that the connection now is the command's, and hands it to `carry`.
fn switch<F: Future<Output = ()> + Send + 'static>(
    mut request: Request,
    framing: Framing,
    carry: impl FnOnce(exec_stream::Stream) -> F + Send + 'static,
) -> Response {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => carry(TokioIo::new(upgraded)).await,
            Err(problem) => tracing::debug!(error = %problem, "nobody took a command's output"),
        }
    });
    let mut response = empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("tcp"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(framing.content_type()));
    response
}

/// Plays the helper by which workerd signals a command: reads the process id that the wrapper would have written, and
/// signals that process. The codes are the helper's.
fn kill(engine: &Engine, container: &str, pid_file: &str, signal: i32, is_guarded: bool) -> i32 {
    const NO_PID_YET: i32 = 3;
    const NO_SUCH_PROCESS: i32 = 1;
    match engine.execs().by_pid_file(container, pid_file) {
        Some(ExecState::Running { control, .. }) => match control.kill(signal) {
            Ok(()) => 0,
            Err(_) => NO_SUCH_PROCESS,
        },
        Some(ExecState::Ended { .. }) => NO_SUCH_PROCESS,
        Some(ExecState::Created | ExecState::Starting) | None if is_guarded => NO_PID_YET,
        Some(ExecState::Created | ExecState::Starting) | None => NO_SUCH_PROCESS,
    }
}

pub(crate) async fn inspect(State(engine): State<Engine>, Path(ExecId { id }): Path<ExecId>) -> Response {
    let Some(record) = engine.execs().get(&id) else { return no_such_exec(&id) };
    let (is_running, pid, code) = match &record.state {
        ExecState::Created => (false, 0, Value::Null),
        ExecState::Starting => (true, 0, Value::Null),
        ExecState::Running { pid, .. } => (true, *pid, Value::Null),
        ExecState::Ended { pid, code } => (false, *pid, json!(code)),
    };
    let mut words = record.spec.command.iter();
    let body = json!({
        "ID": id,
        "Running": is_running,
        "ExitCode": code,
        "Pid": pid,
        "ContainerID": id_of(&record.container),
        "OpenStdin": record.spec.has_input,
        "OpenStdout": true,
        "OpenStderr": true,
        "CanRemove": false,
        "DetachKeys": "",
        "ProcessConfig": {
            "tty": record.spec.terminal.is_some(),
            "privileged": false,
            "user": record.spec.user.as_deref().unwrap_or_default(),
            "entrypoint": words.next().map_or("", String::as_str),
            "arguments": words.collect::<Vec<_>>(),
        },
    });
    docker::answer(StatusCode::OK, &body)
}

pub(crate) async fn resize(
    State(engine): State<Engine>,
    Path(ExecId { id }): Path<ExecId>,
    Query(Size { h, w }): Query<Size>,
) -> Response {
    let (Some(rows), Some(columns)) = (h, w) else {
        return error(StatusCode::BAD_REQUEST, "expected `h` and `w` as numbers of characters".to_string());
    };
    let size = WindowSize { rows, columns };
    match engine.execs().get(&id).map(|record| record.state) {
        None => no_such_exec(&id),
        Some(ExecState::Running { control, .. }) => match control.resize(size) {
            Ok(()) => empty(StatusCode::OK),
            Err(problem) => error(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot resize its terminal: {problem}")),
        },
        Some(ExecState::Ended { .. }) => empty(StatusCode::OK),
        Some(ExecState::Created | ExecState::Starting) => {
            error(StatusCode::CONFLICT, format!("the command {id} has not started yet"))
        }
    }
}

fn no_such_exec(id: &str) -> Response {
    error(StatusCode::NOT_FOUND, format!("No such exec instance: {id}"))
}
