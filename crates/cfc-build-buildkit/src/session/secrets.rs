//! Secrets: read when the daemon asks for them, kept nowhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use bollard_buildkit_proto::moby::buildkit::secrets::v1 as proto;
use cfc_plan::SecretSource;
use tonic::{Request, Response, Status};

/// As much as BuildKit lets a secret have, in bytes.
const MAX_BYTES: u64 = 500 << 10;

/// The secrets of a build, by id.
pub(crate) struct Secrets(pub(crate) BTreeMap<String, SecretSource>);

#[tonic::async_trait]
impl proto::secrets_server::Secrets for Secrets {
    async fn get_secret(
        &self,
        request: Request<proto::GetSecretRequest>,
    ) -> Result<Response<proto::GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        // The daemon tells those that are required from those that are not.
        let source = self.0.get(&id).ok_or_else(|| Status::not_found(format!("there is no secret `{id}`")))?;
        read(&id, source).map(|data| Response::new(proto::GetSecretResponse { data }))
    }
}

fn read(id: &str, source: &SecretSource) -> Result<Vec<u8>, Status> {
    let data = match source {
        SecretSource::Variable(name) => {
            let gone =
                || Status::internal(format!("the variable `{name}`, which is to be the secret `{id}`, is not set"));
            std::env::var_os(name).ok_or_else(gone)?.into_encoded_bytes()
        }
        SecretSource::File(path) => {
            let mut bytes = Vec::new();
            let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
            read.map_err(|error| Status::internal(format!("cannot read the secret `{}`: {error}", path.display())))?;
            bytes
        }
    };
    if data.len() as u64 > MAX_BYTES {
        return Err(Status::invalid_argument(format!("the secret `{id}` is larger than {MAX_BYTES} bytes")));
    }
    Ok(data)
}
