//! `cfc registry credentials`: user names and passwords that expire.

use std::process::ExitCode;

use cfc_registry::{AskError, Grant, Lender, Loan, LoanRecord, LoanRequest, Permission};

use crate::args::RegistryCredentials;
use crate::commands::client_runtime;
use crate::commands::registry::{Writer, writer};
use crate::failure::Failure;
use crate::output;
use crate::server::registry;
use crate::settings::Settings;

pub fn run(settings: &Settings, arguments: &RegistryCredentials) -> Result<ExitCode, Failure> {
    let runtime = client_runtime()?;
    match &arguments.revoke {
        _ if arguments.list => tell_all(&runtime.block_on(list(settings, arguments))?, arguments.json)?,
        Some(id) => tell_revoked(&runtime.block_on(revoke(settings, arguments, id))?, arguments.json)?,
        None => tell_lent(&runtime.block_on(lend(settings, arguments, &request(arguments)))?, arguments.json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn tell_lent(loan: &Loan, is_json: bool) -> Result<(), Failure> {
    if is_json {
        output::data(serde_json::to_string_pretty(loan)?);
        return Ok(());
    }
    output::data(format!("{}:{}", loan.username, loan.password));
    output::tell(format!("good until {}; `--revoke {}` takes it back", loan.expires, loan.id));
    Ok(())
}

fn tell_revoked(record: &LoanRecord, is_json: bool) -> Result<(), Failure> {
    if is_json {
        output::data(serde_json::to_string_pretty(record)?);
        return Ok(());
    }
    output::tell(format!("the password of `{}` until {} is taken back", record.username, record.expires));
    Ok(())
}

const HEADER: [&str; 6] = ["ID", "USER", "GOOD FOR", "REPOSITORIES", "UNTIL", "MADE BY"];

fn tell_all(records: &[LoanRecord], is_json: bool) -> Result<(), Failure> {
    if is_json {
        output::data(serde_json::to_string_pretty(records)?);
        return Ok(());
    }
    output::table(&HEADER, &records.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

fn row(record: &LoanRecord) -> Vec<String> {
    let permissions = record.grant.permissions.iter().map(|permission| permission_text(*permission));
    let by = match record.by {
        Lender::Operator => "operator",
        Lender::ControlApi => "control API",
    };
    vec![
        record.id.clone(),
        record.username.clone(),
        permissions.collect::<Vec<_>>().join(","),
        record.grant.repositories.join(","),
        record.revoked.as_ref().map_or_else(|| record.expires.clone(), |time| format!("taken back {time}")),
        by.to_string(),
    ]
}

fn permission_text(permission: Permission) -> &'static str {
    match permission {
        Permission::Pull => "pull",
        Permission::Push => "push",
        Permission::Delete => "delete",
        Permission::Catalog => "catalog",
        Permission::Collect => "collect",
        Permission::Metrics => "metrics",
    }
}

fn request(arguments: &RegistryCredentials) -> LoanRequest {
    let wanted = [
        (arguments.pull, Permission::Pull),
        (arguments.push, Permission::Push),
        (arguments.delete, Permission::Delete),
        (arguments.catalog, Permission::Catalog),
        (arguments.collect, Permission::Collect),
        (arguments.metrics, Permission::Metrics),
    ];
    let mut permissions: Vec<Permission> =
        wanted.into_iter().filter(|(is_wanted, _)| *is_wanted).map(|(_, permission)| permission).collect();
    if permissions.is_empty() {
        permissions.push(Permission::Pull);
    }
    LoanRequest {
        username: arguments.user.clone(),
        grant: Grant { permissions, repositories: arguments.repositories.clone() },
        seconds: arguments.expires.duration().as_secs(),
    }
}

/// The registry that runs on a data directory makes it. Who can open a bucket has the key that all who serve it sign with.
async fn lend(settings: &Settings, arguments: &RegistryCredentials, request: &LoanRequest) -> Result<Loan, Failure> {
    if let Some(location) = registry::bucket_location(settings, &arguments.place)? {
        let registry = registry::open_to_lend(settings, &location).await?;
        let cannot = |error| Failure::because("no such password can be made", &error);
        return registry.lend(request).await.map_err(cannot);
    }
    registry::require(settings)?;
    let socket = settings.registry_socket()?;
    cfc_registry::ask_for_loan(&socket, request).await.map_err(|error| match error {
        AskError::Connect(error) => {
            let what = format!("no registry that runs can be reached at its operator's socket `{}`", socket.display());
            let hint = "one must run on this data directory; run this as the user who runs it";
            Failure::because(what, &error).hint(hint)
        }
        error => refused(error, "the registry that is running here makes no such password"),
    })
}

/// The registry that runs on a data directory knows; where none does, what is there says it, as in a bucket.
async fn list(settings: &Settings, arguments: &RegistryCredentials) -> Result<Vec<LoanRecord>, Failure> {
    if registry::bucket_location(settings, &arguments.place)?.is_none()
        && let Writer::Server(socket) = writer(settings)?
    {
        let asked = cfc_registry::ask_for_loans(&socket).await;
        return asked.map_err(|error| refused(error, "the registry that is running here does not say"));
    }
    Ok(registry::open_beside(settings, &arguments.place).await?.loans().await?)
}

/// In a bucket we do it ourselves, whoever serves it; in a data directory the registry that runs, which then knows at once,
/// or we.
async fn revoke(settings: &Settings, arguments: &RegistryCredentials, id: &str) -> Result<LoanRecord, Failure> {
    let is_in_bucket = registry::bucket_location(settings, &arguments.place)?.is_some();
    let _lock = match is_in_bucket {
        true => None,
        false => match writer(settings)? {
            Writer::Us(lock) => Some(lock),
            Writer::Server(socket) => {
                let asked = cfc_registry::ask_to_revoke(&socket, id).await;
                return asked.map_err(|error| match error {
                    AskError::Refused { status, .. } if status.as_u16() == 400 => unknown(id),
                    error => refused(error, "the registry that is running here did not take it back"),
                });
            }
        },
    };
    let rules = registry::options(settings)?.collection;
    let registry = registry::open_by_hand(settings, &arguments.place, rules).await?;
    registry.revoke(id).await?.ok_or_else(|| unknown(id))
}

fn unknown(id: &str) -> Failure {
    Failure::new(format!("no password with the id `{id}` is known"))
        .hint("`cfc registry credentials --list` has the ids")
}

fn refused(error: AskError, what: &str) -> Failure {
    match error {
        AskError::Refused { status, .. } if matches!(status.as_u16(), 404 | 405) => {
            Failure::new("the registry that is running here is of an earlier version, which does not know of this")
                .hint("upgrade it")
        }
        error => Failure::because(what, &error),
    }
}
