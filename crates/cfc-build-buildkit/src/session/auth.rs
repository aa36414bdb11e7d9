//! Who we are to registries: the daemon asks when it pulls, or sends a cache.

use std::sync::Arc;

use bollard_buildkit_proto::moby::filesync::v1 as proto;
use tonic::{Request, Response, Status};

use crate::RegistryLogins;

/// Answers with what the machine's user has.
pub(crate) struct Auth(pub(crate) Option<Arc<dyn RegistryLogins>>);

/// What Docker's configuration and registries call Docker Hub, to those that only know one of the names.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

#[tonic::async_trait]
impl proto::auth_server::Auth for Auth {
    async fn credentials(
        &self,
        request: Request<proto::CredentialsRequest>,
    ) -> Result<Response<proto::CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        let host = if host == DOCKER_HUB_HOST { "docker.io".to_string() } else { host };
        let Some(logins) = self.0.clone() else { return Ok(Response::new(proto::CredentialsResponse::default())) };
        let login = tokio::task::spawn_blocking(move || logins.login(&host)).await;
        let login = login.map_err(|error| Status::internal(error.to_string()))?.map_err(Status::unavailable)?;
        let (username, secret) = login.unwrap_or_default();
        Ok(Response::new(proto::CredentialsResponse { username, secret }))
    }

    // The daemon then gets its tokens itself, with the credentials.
    async fn fetch_token(
        &self,
        _: Request<proto::FetchTokenRequest>,
    ) -> Result<Response<proto::FetchTokenResponse>, Status> {
        Err(Status::unimplemented("ask for credentials"))
    }

    async fn get_token_authority(
        &self,
        _: Request<proto::GetTokenAuthorityRequest>,
    ) -> Result<Response<proto::GetTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("ask for credentials"))
    }

    async fn verify_token_authority(
        &self,
        _: Request<proto::VerifyTokenAuthorityRequest>,
    ) -> Result<Response<proto::VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("ask for credentials"))
    }
}
