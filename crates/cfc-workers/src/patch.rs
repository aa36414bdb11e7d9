//! What `workerd compile` leaves out of a config, added to its message: the modules, each container class's image, the
//! container engine, and where the state lives. The only place that knows workerd's schema.
//!
//! The numbers below are positions in `workerd.capnp` as the compiler lays it out. To derive them again after an update
//! of workerd, take `workerd.capnp` from the npm package `workerd`, without its `Cxx` lines and without the default value
//! of `globalOutbound`, and run `capnp compile -ocapnp workerd.capnp`: every field is then listed with its `ptr[n]`,
//! every union with the bits of its tag. Cap'n Proto never moves a field, so old numbers stay true in newer workerds.
//!
//! ```text
//! Config                  services ptr[0]
//! Service                 name ptr[0]   union tag bits [0,16): worker = 1, disk = 4   their content ptr[1]
//! DiskDirectory           path ptr[0]
//! Worker                  union tag bits [0,16): modules = 0   its content ptr[0]
//!                         durableObjectNamespaces ptr[5]
//!                         containerEngine tag bits [32,48): none = 0, localDocker = 1   its content ptr[12]
//! Module                  name ptr[0]   union tag bits [0,16): the table `MODULE_KINDS`   its content ptr[1]
//! DurableObjectNamespace  className ptr[0]   union tag bits [0,16): uniqueKey = 0   its content ptr[1]   container ptr[2]
//! ContainerOptions        imageName ptr[0]
//! DockerConfiguration     socketPath ptr[0]   containerEgressInterceptorImage ptr[1]
//! ```

use std::collections::BTreeMap;

use crate::Module;
use crate::message::{Object, Struct};

const SERVICES: usize = 0;
const NAME: usize = 0;
const SERVICE_TAG_BIT: usize = 0;
const SERVICE_IS_WORKER: u16 = 1;
const SERVICE_IS_DISK: u16 = 4;
const SERVICE_CONTENT: usize = 1;
const DISK_PATH: usize = 0;
const WORKER_CODE_TAG_BIT: usize = 0;
const WORKER_CODE_IS_MODULES: u16 = 0;
const WORKER_CODE: usize = 0;
const WORKER_NAMESPACES: usize = 5;
const WORKER_ENGINE_TAG_BIT: usize = 32;
const ENGINE_IS_LOCAL_DOCKER: u16 = 1;
const WORKER_ENGINE: usize = 12;
const NAMESPACE_CLASS: usize = 0;
const NAMESPACE_TAG_BIT: usize = 0;
const NAMESPACE_HAS_UNIQUE_KEY: u16 = 0;
const NAMESPACE_UNIQUE_KEY: usize = 1;
const NAMESPACE_CONTAINER: usize = 2;

/// Content type in an upload, tag of the union, and whether the content is text.
const MODULE_KINDS: &[(&str, u16, bool)] = &[
    ("application/javascript+module", 0, true),
    ("application/javascript", 1, true),
    ("text/plain", 2, true),
    ("application/octet-stream", 3, false),
    ("application/wasm", 4, false),
    ("application/json", 5, true),
    ("text/x-python", 7, true),
];

/// A class's namespace, to be read and given a container.
pub(crate) struct Namespace<'a>(&'a mut Struct);

impl Namespace<'_> {
    /// The class.
    pub fn class_name(&self) -> Option<String> {
        self.0.pointer(NAMESPACE_CLASS).as_text()
    }

    /// The key that workerd uses in directories of storage and in names of containers.
    pub fn unique_key(&self) -> Option<String> {
        let has_key = self.0.u16_at(NAMESPACE_TAG_BIT) == NAMESPACE_HAS_UNIQUE_KEY;
        has_key.then(|| self.0.pointer(NAMESPACE_UNIQUE_KEY).as_text()).flatten()
    }

    /// Gives the class's objects a container of this image.
    pub fn set_image(&mut self, image: &str) {
        *self.0.pointer_mut(NAMESPACE_CONTAINER) = texts(&[image]);
    }
}

/// Gives the Worker `name` these modules, the main one first. The error names a module that workerd cannot load.
pub(crate) fn set_modules<'a>(
    config: &mut Object,
    name: &str,
    modules: impl Iterator<Item = &'a Module>,
) -> Result<Option<()>, String> {
    let modules = modules.map(module_struct).collect::<Result<_, _>>()?;
    let Some(worker) = worker(config, name) else { return Ok(None) };
    worker.set_u16_at(WORKER_CODE_TAG_BIT, WORKER_CODE_IS_MODULES);
    *worker.pointer_mut(WORKER_CODE) = Object::Structs(modules);
    Ok(Some(()))
}

fn module_struct(module: &Module) -> Result<Struct, String> {
    let essence = module.content_type.split(';').next().unwrap_or_default().trim();
    let Some(&(_, tag, is_text)) = MODULE_KINDS.iter().find(|kind| kind.0 == essence) else {
        return Err(format!("module `{}` has the content type `{}`", module.name, module.content_type));
    };
    let content = match std::str::from_utf8(&module.bytes) {
        _ if !is_text => Object::data(&module.bytes),
        Ok(text) => Object::text(text),
        Err(_) => return Err(format!("module `{}` is `{essence}` but not UTF-8", module.name)),
    };
    let mut structure = Struct { data: vec![0], pointers: vec![Object::text(&module.name), content] };
    structure.set_u16_at(0, tag);
    Ok(structure)
}

/// The namespaces of the Worker `name`.
pub(crate) fn namespaces<'a>(config: &'a mut Object, name: &str) -> Option<Vec<Namespace<'a>>> {
    match worker(config, name)?.pointer_mut(WORKER_NAMESPACES) {
        Object::Null => Some(Vec::new()),
        Object::Structs(namespaces) => Some(namespaces.iter_mut().map(Namespace).collect()),
        _ => None,
    }
}

/// Makes the Worker `name` ask the engine that listens at `socket` (`unix:/path`) for its containers.
pub(crate) fn set_engine(config: &mut Object, name: &str, socket: &str, egress_image: &str) -> Option<()> {
    let worker = worker(config, name)?;
    worker.set_u16_at(WORKER_ENGINE_TAG_BIT, ENGINE_IS_LOCAL_DOCKER);
    *worker.pointer_mut(WORKER_ENGINE) = texts(&[socket, egress_image]);
    Some(())
}

/// Lets `place` say anew where each disk service lies, and returns the new paths by the services' names.
pub(crate) fn relocate_disks(
    config: &mut Object,
    place: &dyn Fn(&str) -> Option<String>,
) -> Option<BTreeMap<String, String>> {
    let mut places = BTreeMap::new();
    for service in services(config)?.iter_mut().filter(|service| service.u16_at(SERVICE_TAG_BIT) == SERVICE_IS_DISK) {
        let name = service.pointer(NAME).as_text()?;
        let Object::Struct(disk) = service.pointer_mut(SERVICE_CONTENT) else { return None };
        let path = place(&disk.pointer(DISK_PATH).as_text()?)?;
        *disk.pointer_mut(DISK_PATH) = Object::text(&path);
        places.insert(name, path);
    }
    Some(places)
}

fn services(config: &mut Object) -> Option<&mut Vec<Struct>> {
    let Object::Struct(config) = config else { return None };
    match config.pointer_mut(SERVICES) {
        Object::Structs(services) => Some(services),
        _ => None,
    }
}

fn worker<'a>(config: &'a mut Object, name: &str) -> Option<&'a mut Struct> {
    let is_it = |service: &&mut Struct| {
        service.u16_at(SERVICE_TAG_BIT) == SERVICE_IS_WORKER && service.pointer(NAME).as_text().as_deref() == Some(name)
    };
    match services(config)?.iter_mut().find(is_it)?.pointer_mut(SERVICE_CONTENT) {
        Object::Struct(worker) => Some(worker),
        _ => None,
    }
}

/// A struct without data whose first pointers are these texts.
fn texts(texts: &[&str]) -> Object {
    Object::Struct(Struct { data: Vec::new(), pointers: texts.iter().map(|text| Object::text(text)).collect() })
}
