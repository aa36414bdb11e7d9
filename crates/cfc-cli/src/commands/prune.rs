//! `cfc prune`: takes out of the store what nobody needs.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use cfc_store::{Prunable, PrunableKind, PruneFilter, PrunePlan, Pruner};

use crate::args::Prune;
use crate::failure::Failure;
use crate::output;
use crate::settings::Settings;
use crate::size::{self, Size};
use crate::span::Span;

/// An id is a digest, whose beginning tells it from others, or a name.
const ID_CHARACTERS: usize = 40;

pub fn run(settings: &Settings, arguments: &Prune) -> Result<ExitCode, Failure> {
    let filter = filter(arguments)?;
    let bytes = |size: Option<Size>| size.map_or(0, Size::bytes);
    let plan = PrunePlan {
        max_used: bytes(arguments.max_used_space),
        min_free: bytes(arguments.min_free_space),
        reserved: bytes(arguments.keep_storage),
        dry_run: arguments.dry_run,
    };
    // Not opened: that would need room on the disk, and this is what makes some.
    let pruned = Pruner::of(&settings.data.join("store")).prune(&filter, &plan)?;
    if !pruned.removed.is_empty() {
        let rows: Vec<Vec<String>> = pruned.removed.iter().map(row).collect();
        output::table(&["ID", "TYPE", "SIZE", "LAST USED"], &rows);
    }
    let total = size::show(pruned.freed_bytes());
    output::data(match arguments.dry_run {
        true => format!("Would free: {total}"),
        false => format!("Total: {total}"),
    });
    Ok(ExitCode::SUCCESS)
}

fn row(removed: &Prunable) -> Vec<String> {
    let Prunable { id, kind, size, last_used } = removed;
    let id = id.chars().take(ID_CHARACTERS).collect();
    let ago = SystemTime::now().duration_since(*last_used).unwrap_or_default();
    vec![id, kind.name().to_string(), size::show(*size), format!("{} ago", rough(ago))]
}

/// The largest unit of a time is enough to see what is old.
fn rough(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
    let unit = units.into_iter().find(|(length, _)| seconds >= *length);
    unit.map_or_else(|| format!("{seconds}s"), |(length, unit)| format!("{}{unit}", seconds / length))
}

fn filter(arguments: &Prune) -> Result<PruneFilter, Failure> {
    let mut filter = PruneFilter { all: arguments.all, ..PruneFilter::default() };
    for text in &arguments.filters {
        let bad = |what: String| {
            Failure::new(format!("--filter `{text}`: {what}"))
                .hint("write `until=24h`, `type=regular|exec.cachemount|source.local|image`, or `id=ID`")
        };
        let (key, value) = text.split_once('=').ok_or_else(|| bad("it is not KEY=VALUE".to_string()))?;
        match key {
            // Docker knows both names.
            "until" | "unused-for" => {
                let span: Span = value.parse().map_err(bad)?;
                filter.used_before = SystemTime::now().checked_sub(span.duration());
            }
            "type" => {
                let kind = PrunableKind::ALL.into_iter().find(|kind| kind.name() == value);
                filter.kinds.push(kind.ok_or_else(|| bad(format!("there is no type `{value}`")))?);
            }
            "id" => filter.id = Some(value.to_string()),
            _ => return Err(bad(format!("the key `{key}` is not supported"))),
        }
    }
    // Without --all these stay, so a filter that names them would find nothing, ever.
    let is_named = |kind: PrunableKind| filter.kinds.contains(&kind);
    if !filter.all && (is_named(PrunableKind::Image) || is_named(PrunableKind::Context)) {
        return Err(Failure::new("pulled images and what is remembered of build contexts go only with --all"));
    }
    Ok(filter)
}
