//! The keys of a wrangler config, and what cfc does with each: the one table of them.

use Scope::{Environment, Inherited, Top};
use Use::{Ignored, Refused, Used};

/// How a key behaves when an environment is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The environment's value, else the top level's.
    Inherited,
    /// The environment's value, even when it has none.
    Environment,
    /// Only the top level may have it.
    Top,
}

/// What cfc does with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It means what it means for wrangler.
    Used,
    /// It changes nothing here, for this reason. An empty reason is not worth a warning.
    Ignored(&'static str),
    /// It asks for what cfc does not do: what to do instead.
    Refused(&'static str),
}

/// One key of the top level or of an environment.
pub(crate) struct Key {
    pub name: &'static str,
    pub scope: Scope,
    pub used: Use,
}

const fn key(name: &'static str, scope: Scope, used: Use) -> Key {
    Key { name, scope, used }
}

const NO_BINDING: Use = Refused("cfc has no such binding: remove it, or reach the service over HTTP");

/// Every key of wrangler's config schema.
pub(crate) const KEYS: &[Key] = &[
    key("$schema", Top, Used),
    key("env", Top, Used),
    key("name", Inherited, Used),
    key("main", Inherited, Used),
    key("compatibility_date", Inherited, Used),
    key("compatibility_flags", Inherited, Used),
    key("vars", Environment, Used),
    key("containers", Environment, Used),
    key("durable_objects", Environment, Used),
    key("migrations", Inherited, Used),
    key("exports", Inherited, Used),
    // What workerd translates by itself.
    key("kv_namespaces", Environment, Used),
    key("d1_databases", Environment, Used),
    key("queues", Environment, Used),
    key("workflows", Environment, Used),
    key("triggers", Inherited, Used),
    // What the bundler takes.
    key("define", Environment, Used),
    key("alias", Inherited, Used),
    key("minify", Inherited, Used),
    key("keep_names", Inherited, Used),
    key("tsconfig", Inherited, Used),
    key("jsx_factory", Inherited, Used),
    key("jsx_fragment", Inherited, Used),
    key("no_bundle", Inherited, Refused("remove it: cfc bundles the file that `main` names")),
    key("rules", Inherited, Refused("import `.txt`, `.html`, `.sql`, `.bin` and `.wasm` files, which need no rule")),
    key("find_additional_modules", Inherited, Refused("remove it and import each module")),
    key("base_dir", Inherited, Refused("remove it and import each module")),
    key("preserve_file_names", Inherited, Ignored("")),
    key("build", Inherited, Refused("run the command before cfc, and let `main` name what it makes")),
    key("upload_source_maps", Inherited, Ignored("cfc uploads no source maps")),
    // What only concerns Cloudflare's account and network.
    key("account_id", Inherited, Ignored("")),
    key("legacy_env", Top, Ignored("")),
    key("send_metrics", Top, Ignored("")),
    key("keep_vars", Top, Ignored("the vars of the config replace those that were deployed before")),
    key("dev", Top, Ignored("")),
    key("previews", Top, Ignored("cfc makes no previews")),
    key("workers_dev", Inherited, Ignored("")),
    key("preview_urls", Inherited, Ignored("")),
    key(
        "route",
        Inherited,
        Ignored("cfc serves the Worker at `<name>.localhost`; put a proxy before it for other names"),
    ),
    key(
        "routes",
        Inherited,
        Ignored("cfc serves the Worker at `<name>.localhost`; put a proxy before it for other names"),
    ),
    key("placement", Inherited, Ignored("the Worker runs on this machine")),
    key("limits", Inherited, Ignored("workerd does not limit the CPU time of a request")),
    key("usage_model", Inherited, Ignored("")),
    key("observability", Inherited, Ignored("")),
    key("logpush", Inherited, Ignored("logs stay in cfc's data directory")),
    key("first_party_worker", Inherited, Ignored("")),
    key("compliance_region", Inherited, Ignored("the Worker runs on this machine")),
    // Bindings that need a service of Cloudflare's.
    key("assets", Inherited, Refused("serve the files from the Worker or from the container")),
    key("site", Top, Refused("serve the files from the Worker or from the container")),
    key("services", Environment, NO_BINDING),
    key("r2_buckets", Environment, NO_BINDING),
    key("vectorize", Environment, NO_BINDING),
    key("hyperdrive", Environment, NO_BINDING),
    key("analytics_engine_datasets", Environment, NO_BINDING),
    key("send_email", Environment, NO_BINDING),
    key("browser", Environment, NO_BINDING),
    key("ai", Environment, NO_BINDING),
    key("ai_search", Environment, NO_BINDING),
    key("ai_search_namespaces", Environment, NO_BINDING),
    key("images", Environment, NO_BINDING),
    key("media", Environment, NO_BINDING),
    key("stream", Environment, NO_BINDING),
    key("version_metadata", Environment, NO_BINDING),
    key("mtls_certificates", Environment, NO_BINDING),
    key("dispatch_namespaces", Environment, NO_BINDING),
    key("pipelines", Environment, NO_BINDING),
    key("secrets_store_secrets", Environment, NO_BINDING),
    key("secrets", Environment, Refused("leave it out, and set each with `cfc secret put`")),
    key("ratelimits", Environment, NO_BINDING),
    key("vpc_services", Environment, NO_BINDING),
    key("vpc_networks", Environment, NO_BINDING),
    key("worker_loaders", Environment, NO_BINDING),
    key("unsafe_hello_world", Environment, NO_BINDING),
    key("logfwdr", Environment, NO_BINDING),
    key("cloudchamber", Environment, NO_BINDING),
    key("unsafe", Environment, NO_BINDING),
    key("wasm_modules", Top, Refused("import the `.wasm` file")),
    key("text_blobs", Top, Refused("import the `.txt` file")),
    key("data_blobs", Top, Refused("import the `.bin` file")),
    key("python_modules", Inherited, Refused("write the Worker in JavaScript or TypeScript")),
    key("tail_consumers", Environment, Refused("remove it: cfc keeps the Worker's log itself")),
    key("streaming_tail_consumers", Environment, Refused("remove it: cfc keeps the Worker's log itself")),
];

/// The key of this name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Of `known`, the word that someone who wrote `word` most likely meant.
pub(crate) fn similar<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.map(|candidate| (distance(word, candidate), candidate));
    let (distance, candidate) = scored.min()?;
    (distance <= 1 + word.len() / 5).then_some(candidate)
}

/// How many characters must be added, removed or replaced to make one word of the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, letter) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}
