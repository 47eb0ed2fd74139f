//! `ringfence template`: what roots are made from.

use std::{fs::File, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use rf_types::TemplateName;

use crate::{cli::Global, connect, output::Output, transfer};

#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// List templates.
    List,
    /// Make a template from an image, an `oci-layout` folder, a directory or a tarball.
    Import(ImportArgs),
    /// Remove a template.
    Rm {
        /// Its name.
        name: TemplateName,
    },
}

#[derive(Args, Debug)]
pub(crate) struct ImportArgs {
    /// Its name.
    name: TemplateName,
    /// An image of a registry, such as `docker.io/library/debian:12`.
    #[arg(long, value_name = "REFERENCE", required_unless_present = "path", conflicts_with = "path")]
    image: Option<String>,
    /// A root as a directory or a tarball, an `oci-layout` folder, or with --saved what `docker save` writes.
    path: Option<PathBuf>,
    /// The tarball holds an image: what `docker save` writes, or an `oci-layout` folder.
    #[arg(long, requires = "path")]
    saved: bool,
}

pub(crate) fn template(global: &Global, command: TemplateCommand, out: &Output) -> Result<ExitCode> {
    let client = connect::client(global)?;
    let runtime = connect::runtime()?;
    match command {
        TemplateCommand::List => {
            let templates = runtime.block_on(client.templates())?;
            out.rows(&templates, &["template", "layers"], |template| {
                vec![template.name.to_string(), template.layers.len().to_string()]
            })?;
        }
        TemplateCommand::Import(ImportArgs { name, image: Some(image), .. }) => {
            let bar = out.spinner(&format!("pulling {image}"));
            let template = runtime.block_on(client.template_pull(&name, &image))?;
            bar.finish_and_clear();
            out.value(&template, |template| template.name.to_string())?;
        }
        TemplateCommand::Import(ImportArgs { name, path, saved, .. }) => {
            let path = path.unwrap_or_else(|| PathBuf::from("."));
            let bar = out.bytes_bar(path.metadata().ok().filter(|m| m.is_file()).map(|m| m.len()), "importing");
            let image = saved || path.join("oci-layout").is_file();
            let template = if path.is_dir() {
                runtime.block_on(client.template_upload(&name, image, transfer::tar_stream(path, bar.clone())))?
            } else {
                let file = File::open(&path).with_context(|| format!("cannot open `{}`", path.display()))?;
                runtime.block_on(client.template_upload(&name, image, transfer::file_stream(file, bar.clone())))?
            };
            bar.finish_and_clear();
            out.value(&template, |template| template.name.to_string())?;
        }
        TemplateCommand::Rm { name } => runtime.block_on(client.template_remove(&name))?,
    }
    Ok(ExitCode::SUCCESS)
}
