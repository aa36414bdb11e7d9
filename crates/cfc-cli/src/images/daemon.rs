//! [`Daemon`]: a BuildKit daemon that builds for us: `--builder buildkit`.

use std::sync::Arc;

use cfc_build_buildkit::{Address, BuildkitBuilder, BuildkitOptions, RegistryLogins, TlsFiles};
use cfc_store::Store;
use cfc_transfer::Options;

use crate::args::Build;
use crate::failure::Failure;
use crate::images::build::ImageBuild;
use crate::images::cache::{CacheFrom, CacheTo};
use crate::settings::Settings;

/// Where the daemon is.
#[derive(Clone, Debug)]
pub struct Daemon {
    address: Address,
    tls: Option<TlsFiles>,
}

impl Daemon {
    /// What the command line says; none where this machine builds.
    pub fn parse(arguments: &Build) -> Result<Option<Daemon>, Failure> {
        if arguments.builder != "buildkit" {
            return match arguments.buildkit_tls_dir {
                Some(_) => {
                    Err(Failure::new("--buildkit-tls-dir is for a BuildKit daemon").hint("add `--builder buildkit`"))
                }
                None => Ok(None),
            };
        }
        if arguments.verify {
            return Err(Failure::new(
                "--verify compares what this machine makes twice, not what a BuildKit daemon does",
            )
            .hint("leave out --verify or `--builder buildkit`"));
        }
        let address = match arguments.buildkit_addr.as_deref() {
            None | Some("") => Address::usual(),
            Some(text) => text.parse().map_err(|error| {
                Failure::because("--buildkit-addr", &error).hint(
                    "write unix:///run/buildkit/buildkitd.sock, tcp://HOST:PORT, or docker:// for the one in Docker's engine",
                )
            })?,
        };
        let tls = arguments.buildkit_tls_dir.clone().map(|directory| TlsFiles { directory });
        Ok(Some(Daemon { address, tls }))
    }

    /// Who builds `build`.
    pub fn builder(&self, settings: &Settings, store: &Store, build: &ImageBuild) -> Result<BuildkitBuilder, Failure> {
        let options = BuildkitOptions {
            tls: self.tls.clone(),
            no_cache: build.no_cache,
            encoding: build.encoding,
            annotations: build.annotations.manifest.clone(),
            cache_from: build.cache_from.iter().filter_map(CacheFrom::for_daemon).collect(),
            cache_to: build.cache_to.iter().map(CacheTo::for_daemon).collect(),
            ..BuildkitOptions::at(self.address.clone())
        };
        let logins = Arc::new(Logins(settings.transfer_options()?));
        Ok(BuildkitBuilder::new(store.clone(), options).with_logins(logins))
    }
}

/// The same logins as a push has.
struct Logins(Options);

impl RegistryLogins for Logins {
    fn login(&self, host: &str) -> Result<Option<(String, String)>, String> {
        let runtime = crate::commands::client_runtime().map_err(|failure| failure.message)?;
        runtime.block_on(cfc_transfer::login(host, &self.0)).map_err(|error| error.to_string())
    }
}
