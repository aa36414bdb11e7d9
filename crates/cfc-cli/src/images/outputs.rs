//! Where a build's image goes besides the store: `--output`, `--push`, `--iidfile`, `--metadata-file`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use cfc_build_native::{ExportError, export_root};
use cfc_oci::{Descriptor, Reference, media_type};
use cfc_store::{ArchiveKind, Store};
use cfc_transfer::Options;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use serde_json::json;

use crate::args::Build;
use crate::commands::client_runtime;
use crate::failure::Failure;
use crate::images::directory::{beside, write_files, write_whole};
use crate::images::output_spec::{self, Destination, Output};
use crate::images::push::push_image;
use crate::interrupt;
use crate::output;

/// What becomes of an image.
#[derive(Debug, Default)]
pub struct Outputs {
    outputs: Vec<Output>,
    iidfile: Option<PathBuf>,
    metadata_file: Option<PathBuf>,
}

impl Outputs {
    /// What the command line says.
    pub fn parse(arguments: &Build) -> Result<Outputs, Failure> {
        let mut outputs = arguments.outputs.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
        outputs.extend(arguments.oci_layout.clone().map(Output::Layout));
        outputs.extend(arguments.push.then_some(Output::Registry));
        if outputs.iter().filter(|output| output.is_stdout()).count() > 1 {
            return Err(Failure::new("two outputs cannot both go to stdout"));
        }
        Ok(Outputs { outputs, iidfile: arguments.iidfile.clone(), metadata_file: arguments.metadata_file.clone() })
    }

    /// Whether stdout carries an output and nothing else may.
    pub fn use_stdout(&self) -> bool {
        self.outputs.iter().any(Output::is_stdout)
    }

    /// Refuses before the build what cannot succeed after it.
    pub fn check(&self, names: &[Reference], n_platforms: usize) -> Result<(), Failure> {
        let is_of_one = |output: &&Output| matches!(output, Output::Tar(_) | Output::Archive(ArchiveKind::Docker, _));
        if n_platforms > 1
            && let Some(output) = self.outputs.iter().find(is_of_one)
        {
            let kind = if matches!(output, Output::Tar(_)) { "tar" } else { "docker" };
            return Err(Failure::new(format!(
                "--output `type={kind}` holds the image of one platform, not of {n_platforms}"
            ))
            .hint("write `type=oci`, `type=local` (a directory a platform), or push it"));
        }
        let pushes = self.outputs.contains(&Output::Registry);
        match names.iter().find(|name| name.registry.is_none()) {
            Some(name) if pushes => Err(Failure::new(format!("`{name}` names no registry to push to"))
                .hint(format!("put the registry's host in front, for example `127.0.0.1:5000/{name}`"))),
            _ => Ok(()),
        }
    }

    /// Sends `image`, which is called `names`, to where it is to go.
    pub fn send(
        &self,
        store: &Store,
        image: &Descriptor,
        names: &[Reference],
        options: &Options,
    ) -> Result<(), Failure> {
        for output in &self.outputs {
            output.send(store, image, names, options)?;
        }
        // As Docker: what identifies an image is its config; an index has none.
        let config = match media_type::is_index(&image.media_type) {
            true => None,
            false => Some(store.images().load(image)?.manifest.config.digest),
        };
        if let Some(path) = &self.iidfile {
            write_file(path, config.as_ref().unwrap_or(&image.digest).to_string().as_bytes())?;
        }
        if let Some(path) = &self.metadata_file {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            let mut metadata = json!({
                "containerimage.descriptor": image,
                "containerimage.digest": image.digest,
                "image.name": names.join(","),
            });
            if let Some(config) = config {
                metadata["containerimage.config.digest"] = json!(config);
            }
            write_file(path, format!("{metadata:#}\n").as_bytes())?;
        }
        Ok(())
    }
}

impl Output {
    fn is_stdout(&self) -> bool {
        matches!(self, Output::Archive(_, Destination::Stdout) | Output::Tar(Destination::Stdout))
    }

    fn send(&self, store: &Store, image: &Descriptor, names: &[Reference], options: &Options) -> Result<(), Failure> {
        match self {
            Output::Archive(kind, destination) => {
                destination.write(|file| Ok(store.export_archive(image, names, *kind, file)?))
            }
            Output::Layout(directory) => write_whole(directory, |directory| {
                let mut exports = names.iter().map(|name| store.export_oci_layout(image, Some(name), directory));
                Ok(exports.try_for_each(|exported| exported)?)
            }),
            Output::Tar(destination) => destination.write(|file| export(store, image, file)),
            Output::Local(directory) => write_files(store, image, directory),
            Output::Registry => {
                for name in names {
                    let pushed = client_runtime()?.block_on(push_image(store, image, name, options))?;
                    output::tell(format!("pushed {pushed}"));
                }
                Ok(())
            }
        }
    }
}

fn export(store: &Store, image: &Descriptor, output: &mut dyn Write) -> Result<(), Failure> {
    export_root(store, image, output).map_err(files_failure)
}

/// An error of getting files in or out, with its hint.
pub fn files_failure(error: ExportError) -> Failure {
    let hint = error.hint.clone();
    Failure::from(error).maybe_hint(hint)
}

impl Destination {
    /// Writes a whole file or none; what is no regular file gets the bytes as they come.
    fn write(&self, content: impl FnOnce(&mut dyn Write) -> Result<(), Failure>) -> Result<(), Failure> {
        let path = match self {
            Destination::Stdout => return content(&mut BufWriter::new(io::stdout().lock())),
            Destination::File(path) => path,
        };
        let at = |error: io::Error| Failure::because(format!("cannot write `{}`", path.display()), &error);
        let is_special = path.metadata().is_ok_and(|metadata| !metadata.is_file());
        if is_special {
            return content(&mut File::options().write(true).open(path).map_err(at)?);
        }
        let partial = beside(path);
        interrupt::removes(partial.clone());
        let nameless = nameless_file_beside(path);
        let file = nameless.as_ref().map_or_else(|| File::create(&partial), File::try_clone).map_err(at)?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let written = content(&mut file).and_then(|()| file.flush().map_err(at));
        let written = written.and_then(|()| cfc_sandbox::fail_point("build.output.write").map_err(at));
        let named = written.and_then(|()| nameless.map_or(Ok(()), |file| give_name(&file, &partial).map_err(at)));
        let placed = named.and_then(|()| fs::rename(&partial, path).map_err(at));
        if placed.is_err() {
            let _ = fs::remove_file(&partial);
        }
        interrupt::finished(&partial);
        placed
    }
}

/// A file that is gone with us as long as it has no name; none where the filesystem makes no such files.
fn nameless_file_beside(path: &Path) -> Option<File> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::from_raw_mode(0o666)).ok().map(File::from)
}

fn give_name(file: &File, path: &Path) -> io::Result<()> {
    let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, descriptor, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    Destination::File(path.to_path_buf()).write(|file| {
        file.write_all(bytes).map_err(|error| Failure::because(format!("cannot write `{}`", path.display()), &error))
    })
}

/// What `--output` says, with what to write instead of what it cannot say.
fn parse(text: &str) -> Result<Output, Failure> {
    output_spec::parse(text).map_err(|what| {
        Failure::new(format!("--output `{text}`: {what}"))
            .hint("write `type=oci|docker|tar,dest=FILE`, `type=local,dest=DIR`, `type=registry`, or a directory")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_read_as_docker_reads_them() {
        let file = |path: &str| Destination::File(PathBuf::from(path));
        let cases = [
            ("out", Output::Local(PathBuf::from("out"))),
            ("-", Output::Tar(Destination::Stdout)),
            ("type=local,dest=a", Output::Local(PathBuf::from("a"))),
            ("type=tar,dest=-", Output::Tar(Destination::Stdout)),
            ("type=oci,dest=a.tar", Output::Archive(ArchiveKind::Oci, file("a.tar"))),
            ("type=oci,dest=a,tar=false", Output::Layout(PathBuf::from("a"))),
            ("type=docker,dest=a.tar", Output::Archive(ArchiveKind::Docker, file("a.tar"))),
            ("type=registry", Output::Registry),
            ("type=image,push=true", Output::Registry),
            ("push=true,type=image", Output::Registry),
            ("type=local,\"dest=a,\"\"b\"\"\"", Output::Local(PathBuf::from("a,\"b\""))),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).ok(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let message = |text: &str| parse(text).expect_err(text).message;
        assert!(message("type=oci").contains("it has no `dest`"));
        assert!(message("type=squash,dest=a").contains("there is no type `squash`"));
        assert!(
            message("type=oci,dest=a,force-compression=true").contains("`force-compression=true` is not supported")
        );
        assert!(message("type=local,dest=-").contains("cannot go to stdout"));
        assert!(message("type=oci,dest=a,push=true").contains("`push=true` is not supported"));
        assert!(message("type=image").contains("in cfc's store in any case"));
        assert!(message("dest=a").contains("it has no `type`"));
        assert!(message("type=tar,dest=").contains("its `dest` is empty"));
        assert!(message("").contains("it is empty"));
        assert!(message("type=tar,\"dest=a").contains("a quote has no end"));
        assert!(message("\"type=tar\"x,dest=a").contains("comes a comma, not `x,dest=a`"));
        assert!(message("type=tar,dest=a,tar=false").contains("only `type=oci`"));
    }
}
