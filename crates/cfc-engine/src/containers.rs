//! What can be done with one container: instances of the runtime, and the sidecars beside them.

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use cfc_runtime::{ExitReport, InstanceEventKind, InstanceSpec, Refusal, RuntimeError, RuntimeErrorKind, fail_point};
use serde::Deserialize;
use serde_json::json;

use crate::Engine;
use crate::container::{Container, id_of};
use crate::docker::{self, Create, IMAGE_LABEL, empty, error, no_such_container, not_implemented};
use crate::operations::is_set;
use crate::sidecar::Sidecar;
use crate::stillborn::Stillborn;
use crate::worker::{beside, sidecar_of};

const SIGKILL: i32 = 9;

#[derive(Deserialize)]
pub(crate) struct CreateQuery {
    name: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct WaitQuery {
    condition: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct KillQuery {
    signal: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct RemoveQuery {
    force: Option<String>,
}

pub(crate) async fn create(State(engine): State<Engine>, Query(query): Query<CreateQuery>, body: Bytes) -> Response {
    let create: Create = match serde_json::from_slice(&body) {
        Ok(create) => create,
        Err(problem) => return error(StatusCode::BAD_REQUEST, format!("malformed body: {problem}")),
    };
    let Some(name) = query.name else {
        return not_implemented("containers without a name (snapshots need them)");
    };
    let names = engine.names();
    if beside(&name).is_some() && create.image == names.sidecar_image {
        return create_sidecar(&engine, &name);
    }
    let Some(application) = names.application_of(&name) else {
        let message = format!("`{name}` is no container of the Worker `{}`", names.worker);
        return error(StatusCode::BAD_REQUEST, message);
    };
    if let Some(feature) = create.unsupported() {
        return not_implemented(feature);
    }
    let Some(image) = names.image(&create.image, application, engine.runtime()) else {
        return error(StatusCode::NOT_FOUND, format!("No such image: {}", create.image));
    };
    let mut labels = create.labels.unwrap_or_default();
    labels.insert(IMAGE_LABEL.to_string(), create.image);
    let spec = InstanceSpec {
        name: name.clone(),
        application: application.to_string(),
        image,
        command: create.cmd.filter(|words| !words.is_empty()),
        env: create.env.unwrap_or_default(),
        labels,
    };
    engine.claim(&name);
    engine.outlive(&name).await;
    if engine.is_ownerless(&name) {
        if engine.take_over_as(&spec) {
            return created(&name);
        }
        engine.take_over(&name);
        engine.runtime().remove(&name).await;
    }
    if let Some(answer) = fails("engine.create.asked") {
        return answer;
    }
    match engine.runtime().create(spec).await {
        Ok(()) => {
            let _ = fail_point("engine.create.made");
            created(&name)
        }
        Err(problem) => failure(&problem),
    }
}

fn create_sidecar(engine: &Engine, name: &str) -> Response {
    let is_new = engine.with_sidecar(name, |sidecar| {
        let is_new = sidecar.is_none();
        sidecar.get_or_insert_default();
        is_new
    });
    match is_new {
        true => created(name),
        false => error(StatusCode::CONFLICT, format!("the container name `{name}` is taken")),
    }
}

fn created(name: &str) -> Response {
    docker::answer(StatusCode::CREATED, &json!({ "Id": id_of(name), "Warnings": [] }))
}

pub(crate) async fn start(State(engine): State<Engine>, Container { name }: Container) -> Response {
    if let Some(response) = start_sidecar(&engine, &name) {
        return response;
    }
    engine.forget_stillborn(&name);
    let was_expected = engine.was_start_expected(&name);
    if let Some(answer) = fails("engine.start.asked") {
        return answer;
    }
    match engine.runtime().start(&name).await {
        // It was restarted, and whoever starts it now gets the process that runs.
        Err(RuntimeError { kind: RuntimeErrorKind::Refused(Refusal::AlreadyRunning(_)), .. }) if was_expected => {
            empty(StatusCode::NO_CONTENT)
        }
        Ok(()) => {
            let _ = fail_point("engine.start.started");
            engine.with_sidecar(&sidecar_of(&name), |sidecar| {
                if let Some(sidecar) = sidecar {
                    sidecar.carry(&engine, &name);
                }
            });
            empty(StatusCode::NO_CONTENT)
        }
        Err(RuntimeError { kind: RuntimeErrorKind::Refused(Refusal::AlreadyRunning(_)), .. }) => {
            empty(StatusCode::NOT_MODIFIED)
        }
        Err(RuntimeError { kind: RuntimeErrorKind::Refused(Refusal::NoInstance(_)), .. }) => no_such_container(&name),
        Err(problem) => {
            tracing::warn!(instance = name, reason = %problem.kind, "not started");
            engine.set_stillborn(&name, Stillborn::new(&problem));
            empty(StatusCode::NO_CONTENT)
        }
    }
}

/// Starts the sidecar `name`, if it is one.
fn start_sidecar(engine: &Engine, name: &str) -> Option<Response> {
    let instance = beside(name)?;
    engine.with_sidecar(name, |sidecar| {
        let sidecar = sidecar.as_mut()?;
        if sidecar.port().is_some() {
            return Some(empty(StatusCode::NOT_MODIFIED));
        }
        Some(match fail_point("engine.sidecar.start").and_then(|()| sidecar.start(engine, instance)) {
            Ok(_) => empty(StatusCode::NO_CONTENT),
            Err(problem) => error(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("cannot listen on the loopback for `{instance}`: {problem}"),
            ),
        })
    })
}

pub(crate) async fn inspect(State(engine): State<Engine>, Container { name }: Container) -> Response {
    if let Some(port) = sidecar_port(&engine, &name) {
        let image = &engine.names().sidecar_image;
        return docker::answer(StatusCode::OK, &docker::sidecar(&name, image, port));
    }
    let Some(view) = engine.runtime().inspect(&name) else { return no_such_container(&name) };
    let body = match engine.stillborn(&name) {
        Some(stillborn) => docker::stillborn(&view, stillborn.seems_to_run(), stillborn.reason()),
        None => {
            let image = engine.runtime().image_config(&view.spec.image).await;
            docker::instance(&view, image.as_ref())
        }
    };
    docker::answer(StatusCode::OK, &body)
}

/// The port of the sidecar `name`, if it is one. An instance that was adopted has none yet, and a workerd that finds
/// it running asks for it: it gets one.
fn sidecar_port(engine: &Engine, name: &str) -> Option<Option<u16>> {
    let instance = beside(name)?;
    let is_live = engine.runtime().inspect(instance).is_some_and(|view| view.phase.is_live());
    let is_live = is_live && !engine.is_outdated(instance);
    engine.with_sidecar(name, |sidecar| {
        if sidecar.is_none() && is_live {
            let mut adopted = Sidecar::default();
            match adopted.start(engine, instance) {
                Ok(_) => {
                    adopted.carry_adopted(engine, instance);
                    *sidecar = Some(adopted);
                }
                Err(problem) => tracing::warn!(instance, error = %problem, "cannot listen for an adopted instance"),
            }
        }
        sidecar.as_ref().map(Sidecar::port)
    })
}

pub(crate) async fn wait(
    State(engine): State<Engine>,
    Container { name }: Container,
    Query(query): Query<WaitQuery>,
) -> Response {
    let condition = query.condition.unwrap_or_default();
    if let Some(stillborn) = engine.stillborn(&name)
        && condition != "removed"
    {
        stillborn.ended().await;
        return error(StatusCode::SERVICE_UNAVAILABLE, stillborn.reason());
    }
    let is_ownerless = engine.is_ownerless(&name);
    let report = match condition.as_str() {
        "" | "not-running" => {
            engine.take_over(&name);
            engine.runtime().wait(&name).await
        }
        // Whoever waits removed the process before.
        "removed" if is_ownerless => None,
        "removed" => engine.runtime().wait_removed(&name).await,
        "next-exit" => next_exit(&engine, &name).await,
        other => return not_implemented(&format!("the condition `{other}` to wait for")),
    };
    match report {
        Some(report) => docker::answer(StatusCode::OK, &docker::exit(&report)),
        None => no_such_container(&name),
    }
}

/// Waits for the end of the process that runs, or of the next one that does.
async fn next_exit(engine: &Engine, name: &str) -> Option<ExitReport> {
    let runtime = engine.runtime();
    let mut events = runtime.event_reader();
    runtime.read_events(&mut events);
    if runtime.inspect(name)?.phase.is_live() {
        return runtime.wait(name).await;
    }
    while events.wait().await {
        for event in runtime.read_events(&mut events).iter().filter(|event| event.instance == name) {
            match &event.kind {
                InstanceEventKind::Exited(report) => return Some(report.clone()),
                InstanceEventKind::Removed => return None,
                _ => {}
            }
        }
    }
    None
}

pub(crate) async fn kill(
    State(engine): State<Engine>,
    Container { name }: Container,
    Query(query): Query<KillQuery>,
) -> Response {
    let text = query.signal.filter(|text| !text.is_empty());
    let Some(number) = text.as_deref().map_or(Some(SIGKILL), cfc_oci::parse_signal) else {
        return error(StatusCode::BAD_REQUEST, format!("unknown signal `{}`", text.unwrap_or_default()));
    };
    if let Some(stillborn) = engine.stillborn(&name) {
        stillborn.end();
        return empty(StatusCode::NO_CONTENT);
    }
    if let Some(answer) = fails("engine.kill.asked") {
        return answer;
    }
    match engine.runtime().kill(&name, number).await {
        Ok(()) => {
            let _ = fail_point("engine.kill.sent");
            empty(StatusCode::NO_CONTENT)
        }
        Err(problem) => failure(&problem),
    }
}

pub(crate) async fn remove(
    State(engine): State<Engine>,
    Container { name }: Container,
    Query(query): Query<RemoveQuery>,
) -> Response {
    if beside(&name).is_some() && engine.with_sidecar(&name, Option::take).is_some() {
        return empty(StatusCode::NO_CONTENT);
    }
    if engine.is_ownerless(&name) {
        return empty(StatusCode::NO_CONTENT);
    }
    let is_forced = is_set(query.force.as_deref());
    let is_live = engine.runtime().inspect(&name).is_some_and(|view| view.phase.is_live());
    if is_live && !is_forced {
        return error(StatusCode::CONFLICT, format!("`{name}` is running; stop it, or remove it with force"));
    }
    if let Some(answer) = fails("engine.remove.asked") {
        return answer;
    }
    engine.forget_stillborn(&name);
    match engine.runtime().remove(&name).await {
        true => {
            let _ = fail_point("engine.remove.removed");
            empty(StatusCode::NO_CONTENT)
        }
        false => no_such_container(&name),
    }
}

/// The answer where a test wants a step to fail.
fn fails(name: &'static str) -> Option<Response> {
    fail_point(name).err().map(|problem| error(StatusCode::INTERNAL_SERVER_ERROR, format!("{name}: {problem}")))
}

/// The answer to what the runtime could not do.
pub(crate) fn failure(problem: &RuntimeError) -> Response {
    let status = match &problem.kind {
        RuntimeErrorKind::Refused(Refusal::NoInstance(_) | Refusal::NoApplication(_)) => StatusCode::NOT_FOUND,
        RuntimeErrorKind::Refused(_) | RuntimeErrorKind::NotRunning => StatusCode::CONFLICT,
        RuntimeErrorKind::InvalidName | RuntimeErrorKind::NoCommand | RuntimeErrorKind::Invalid(_) => {
            StatusCode::BAD_REQUEST
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    error(status, format!("{problem}: {}", problem.kind))
}
