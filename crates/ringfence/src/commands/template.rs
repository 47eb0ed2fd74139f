//! `ringfence template`: what roots are made from.

use std::{convert::Infallible, fs::File, io::ErrorKind, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{ArgGroup, Args, Subcommand};
use rf_client::{Client, types::Template};
use rf_types::{Code, Fault, TemplateName};
use serde_json::json;

use crate::{
    cli::Global,
    connect,
    output::{self, Output, now_ms, span},
    transfer,
};

/// How often an import is asked how far it is. Chosen: each question is recorded.
const ASK_PERIOD: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// List templates.
    #[command(visible_alias = "ls")]
    List,
    /// Show one template: what it is made of, and how its image says that programs are started.
    Show {
        /// Its name.
        name: TemplateName,
    },
    /// Make a template from an image, an `oci-layout` folder, a directory or a tarball.
    Import(ImportArgs),
    /// Remove a template.
    Rm {
        /// Its name.
        name: TemplateName,
    },
}

#[derive(Args, Debug)]
#[command(group(ArgGroup::new("source").required(true)))]
pub(crate) struct ImportArgs {
    /// Its name.
    name: TemplateName,
    /// An image of a registry, such as `docker.io/library/debian:12`.
    #[arg(long, value_name = "REFERENCE", group = "source")]
    image: Option<String>,
    /// A root as a directory or a tarball, an `oci-layout` folder, or with --saved what `docker save` writes.
    #[arg(group = "source")]
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
            let now = now_ms();
            out.rows(&templates, &["template", "layers", "imported", "user", "command", "source"], |template| {
                let ago = template.created_at.map(|at| format!("{} ago", span(now.saturating_sub(at))));
                let command = template.config.command().join(" ");
                let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
                vec![
                    template.name.to_string(),
                    template.layers.len().to_string(),
                    or_none(ago.unwrap_or_default()),
                    or_none(template.config.user.clone()),
                    or_none(output::short(&command, 40)),
                    template.source.clone(),
                ]
            })?;
        }
        TemplateCommand::Show { name } => {
            let template = runtime.block_on(client.template(&name))?;
            out.value(&template, shown)?;
        }
        TemplateCommand::Import(ImportArgs { name, image: Some(image), .. }) => {
            let template = runtime.block_on(pull(&client, &name, &image, out))?;
            out.value(&template, |template| template.name.to_string())?;
        }
        TemplateCommand::Import(ImportArgs { name, path, saved, .. }) => {
            let path = path.unwrap_or_else(|| PathBuf::from("."));
            let bar = out.bytes_bar(path.metadata().ok().filter(|m| m.is_file()).map(|m| m.len()), "importing");
            let image = saved || path.join("oci-layout").is_file();
            let template = if path.is_dir() {
                runtime.block_on(client.template_upload(&name, image, transfer::tar_stream(path, bar.clone())))?
            } else {
                let file = match File::open(&path) {
                    Err(error) if error.kind() == ErrorKind::NotFound => bail!(Fault::new(
                        Code::NotFound,
                        format!("there is no file or directory `{}` here", path.display()),
                        "name an image of a registry with --image",
                    )),
                    other => other.with_context(|| format!("cannot open `{}`", path.display()))?,
                };
                runtime.block_on(client.template_upload(&name, image, transfer::file_stream(file, bar.clone())))?
            };
            bar.finish_and_clear();
            out.value(&template, |template| template.name.to_string())?;
        }
        TemplateCommand::Rm { name } => {
            runtime.block_on(client.template_remove(&name))?;
            out.done(&json!({ "removed": [name] }))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Has an image imported, and shows how far that is.
async fn pull(client: &Client, name: &TemplateName, image: &str, out: &Output) -> Result<Template> {
    let bar = out.bytes_bar(Some(0), &format!("waiting for {image}"));
    let watching = async {
        if bar.is_hidden() {
            return std::future::pending::<Infallible>().await;
        }
        loop {
            tokio::time::sleep(ASK_PERIOD).await;
            // The bar is for people alone: who may not ask, or asks too late, goes without.
            let Ok(import) = client.template_import(name).await else { continue };
            bar.set_message(output::tame(&format!("{} {image}", import.step)));
            bar.set_length(import.bytes_total);
            bar.set_position(import.bytes_done);
        }
    };
    let template = tokio::select! {
        template = client.template_pull(name, image) => template,
        never = watching => match never {},
    };
    bar.finish_and_clear();
    Ok(template?)
}

fn shown(template: &Template) -> String {
    let config = &template.config;
    let mut text = format!("{}\n\n", template.name);
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            // Whoever made the image chose most of it, and this goes to a terminal.
            text.push_str(&format!("{name:<12}{}\n", output::tame(&value)));
        }
    };
    line("source", template.source.clone());
    let ago = template.created_at.map(|at| format!("{} ago", span(now_ms().saturating_sub(at))));
    line("imported", ago.unwrap_or_default());
    line("digest", template.digest.clone().unwrap_or_default());
    line("user", config.user.clone());
    line("directory", config.cwd.clone());
    let quoted = |words: &[String]| words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" ");
    line("entrypoint", quoted(&config.entrypoint));
    line("command", quoted(&config.cmd));
    for (at, variable) in config.env.iter().enumerate() {
        line(if at == 0 { "environment" } else { "" }, variable.clone());
    }
    for (at, layer) in template.layers.iter().enumerate() {
        line(if at == 0 { "layers" } else { "" }, layer.clone());
    }
    text
}
