//! [`Contexts`]: the build contexts of a build, each opened, and fetched where it is elsewhere, by the first step that
//! needs it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use cfc_plan::{Context, ContextFiles as Place, ContextName, Downloads, Ignore, NamedFiles};
use cfc_store::{Store, TempDir};

use crate::context::ContextTree;
use crate::failure::{Failure, Result};
use crate::given::inside;
use crate::remote::{git, make, url};
use crate::stat_cache::StatCache;

/// What a context at an address consists of, as BuildKit calls it.
const FETCHED_FILE: &str = "context";

/// The contexts of a build.
pub(crate) struct Contexts<'a> {
    store: &'a Store,
    downloads: Option<&'a dyn Downloads>,
    context: &'a Context,
    own: Slot<'a>,
    named: BTreeMap<&'a ContextName, (&'a NamedFiles, Slot<'a>)>,
}

/// A context, opened.
pub(crate) struct ContextFiles<'a> {
    pub(crate) tree: ContextTree<'a>,
    /// None where files are fetched anew each time, so that nothing is known of them.
    pub(crate) digests: Option<StatCache>,
    /// Where they were fetched to; gone with this.
    _fetched: Option<TempDir>,
}

#[derive(Default)]
struct Slot<'a> {
    /// Held while it is opened: two steps do not fetch one repository.
    opening: Mutex<()>,
    files: OnceLock<ContextFiles<'a>>,
}

impl<'a> Slot<'a> {
    fn get(&self, open: impl FnOnce() -> Result<ContextFiles<'a>>) -> Result<&ContextFiles<'a>> {
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = self.files.get() {
            return Ok(files);
        }
        let files = open()?;
        Ok(self.files.get_or_init(|| files))
    }
}

impl<'a> Contexts<'a> {
    pub(crate) fn new(store: &'a Store, downloads: Option<&'a dyn Downloads>, context: &'a Context) -> Contexts<'a> {
        let named = context.named.iter().map(|(name, files)| (name, (files, Slot::default())));
        Contexts { store, downloads, context, own: Slot::default(), named: named.collect() }
    }

    /// The context called `name`; the build's own when there is no name.
    pub(crate) fn get(&self, name: Option<&ContextName>) -> Result<&ContextFiles<'a>> {
        let Some(name) = name else {
            return self.own.get(|| self.directory(&self.context.directory, self.context.ignore.as_ref()));
        };
        let missing = || Failure::new(format!("there is no build context `{name}`"));
        let (files, slot) = self.named.get(name).ok_or_else(missing)?;
        slot.get(|| match &files.files {
            Place::Directory(directory) => self.directory(directory, files.ignore.as_ref()),
            Place::Git(source) => self.fetched(|root| {
                git::fetch(source, root)?;
                inside(root, &root.join(&source.subdirectory), &format!("`{}`", source.subdirectory))
            }),
            Place::Url(source) => self.fetched(|root| {
                url::fetch(self.store, self.downloads, source, &root.join(FETCHED_FILE))?;
                Ok(root.to_path_buf())
            }),
        })
    }

    /// Remembers the digests of files for the next build.
    pub(crate) fn save_digests(&self) -> Result<()> {
        let slots = std::iter::once(&self.own).chain(self.named.values().map(|(_, slot)| slot));
        let digests = slots.filter_map(|slot| slot.files.get()?.digests.as_ref());
        digests.into_iter().try_for_each(|digests| digests.save(self.store))
    }

    fn directory(&self, directory: &Path, ignore: Option<&'a Ignore>) -> Result<ContextFiles<'a>> {
        let tree = ContextTree::open(directory, ignore)?;
        let digests = Some(StatCache::load(self.store, tree.root())?);
        Ok(ContextFiles { tree, digests, _fetched: None })
    }

    /// What `fetch` brings into a directory of ours; it returns where in it the context is.
    fn fetched(&self, fetch: impl FnOnce(&Path) -> Result<std::path::PathBuf>) -> Result<ContextFiles<'a>> {
        let workspace = self.store.temp_dir()?;
        let root = workspace.path().join("context");
        make(&root)?;
        let tree = ContextTree::open(&fetch(&root)?, None)?;
        Ok(ContextFiles { tree, digests: None, _fetched: Some(workspace) })
    }
}
