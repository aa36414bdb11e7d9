//! `cfc registry credentials`: a user name and password that expire.

use std::process::ExitCode;

use cfc_registry::{AskError, BucketLocation, Grant, Loan, LoanRequest, Permission};

use crate::args::RegistryCredentials;
use crate::commands::client_runtime;
use crate::failure::Failure;
use crate::output;
use crate::server::registry;
use crate::settings::Settings;

pub fn run(settings: &Settings, arguments: &RegistryCredentials) -> Result<ExitCode, Failure> {
    let request = request(arguments);
    let loan = client_runtime()?.block_on(lend(settings, arguments, &request))?;
    if arguments.json {
        output::data(serde_json::to_string_pretty(&loan)?);
        return Ok(ExitCode::SUCCESS);
    }
    output::data(format!("{}:{}", loan.username, loan.password));
    output::tell(format!("good until {}", loan.expires));
    Ok(ExitCode::SUCCESS)
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
        return by_hand(settings, &location, request).await;
    }
    registry::require(settings)?;
    let socket = settings.registry_socket()?;
    cfc_registry::ask_for_loan(&socket, request).await.map_err(|error| match error {
        AskError::Connect(error) => {
            let what = format!("no registry that runs can be reached at its operator's socket `{}`", socket.display());
            let hint = "one must run on this data directory; run this as the user who runs it";
            Failure::because(what, &error).hint(hint)
        }
        AskError::Refused { status, .. } if status.as_u16() == 404 => {
            Failure::new("the registry that is running here is of an earlier version, which makes no passwords")
                .hint("upgrade it")
        }
        error => Failure::because("the registry that is running here makes no such password", &error),
    })
}

async fn by_hand(settings: &Settings, location: &BucketLocation, request: &LoanRequest) -> Result<Loan, Failure> {
    let rules = registry::rules(settings)?.ok_or_else(|| {
        Failure::new("`htpasswd` below `[registry]` in the configuration file names no users")
            .hint("use the configuration file of those who serve the bucket; without users everybody may do everything")
    })?;
    let rules = rules.with_shared_tokens(&location.token_key().await?)?;
    let loan = rules.lend(request).map_err(|why| Failure::new(format!("no such password can be made: {why}")))?;
    if let Some(log) = registry::audit_by_hand(settings)? {
        log.note_loan(request, &loan);
    }
    Ok(loan)
}
