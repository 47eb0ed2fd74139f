//! The code of the E2B messages, made from our `.proto` files and checked in, so that no build needs the generator.

use std::{collections::BTreeMap, fs, path::Path, process::ExitCode};

use anyhow::{Context, Result, bail, ensure};
use buffa::Message as _;
use buffa_codegen::{BytesRepr, CodeGenConfig, GeneratedFileKind, generated::descriptor::FileDescriptorSet};

/// Where the `.proto` files are, and which.
const PROTO: &str = "crates/rf-e2b/proto";
const FILES: [&str; 2] = ["process/process.proto", "filesystem/filesystem.proto"];
/// Where their code goes; nothing else is there.
const GENERATED: &str = "crates/rf-e2b/src/generated";

/// The files that belong into the folder, by name.
fn generate(root: &Path) -> Result<BTreeMap<String, String>> {
    let proto = root.join(PROTO);
    let mut compiler = protox::Compiler::new([&proto]).context("the folder of the .proto files")?;
    compiler.include_imports(true);
    compiler.include_source_info(true);
    compiler.open_files(FILES).context("a .proto file")?;
    let set = FileDescriptorSet::decode_from_slice(&compiler.encode_file_descriptor_set())
        .map_err(|error| anyhow::anyhow!("the descriptors: {error}"))?;
    let mut config = CodeGenConfig::default();
    // Owned messages are all that is asked of them.
    config.generate_views = false;
    config.preserve_unknown_fields = false;
    config.emit_register_fn = false;
    config.generate_json = true;
    config.file_per_package = true;
    // Output and input pass through as they are.
    config.bytes_fields = vec![(".".to_owned(), BytesRepr::Bytes)];
    let names: Vec<String> = FILES.iter().map(|&name| name.to_owned()).collect();
    let made = buffa_codegen::generate(&set.file, &names, &config).context("the code")?;
    let mut files = BTreeMap::new();
    for file in made {
        ensure!(file.kind == GeneratedFileKind::PackageMod, "`{}` is no file of a package", file.name);
        files.insert(format!("{}.rs", file.package), file.content);
    }
    Ok(files)
}

/// Writes the code anew.
///
/// # Errors
/// When a `.proto` file is wrong, or the folder cannot be written.
pub(crate) fn write(root: &Path) -> Result<()> {
    let folder = root.join(GENERATED);
    fs::create_dir_all(&folder)?;
    for (name, content) in generate(root)? {
        fs::write(folder.join(&name), content).with_context(|| name)?;
    }
    Ok(())
}

/// Compares what is checked in with what would be made.
///
/// # Errors
/// When they differ; as for [`write`].
pub(crate) fn check(root: &Path) -> Result<()> {
    let folder = root.join(GENERATED);
    let made = generate(root)?;
    for (name, content) in &made {
        let there = fs::read_to_string(folder.join(name)).with_context(|| name.clone())?;
        ensure!(there == *content, "{GENERATED}/{name} is not what {PROTO} makes: run e2b-codegen");
    }
    for entry in fs::read_dir(&folder)? {
        let name = entry?.file_name();
        if !made.contains_key(&*name.to_string_lossy()) {
            bail!("{GENERATED}/{} is made from nothing", name.display());
        }
    }
    Ok(())
}

/// Prints why it failed.
pub(crate) fn report(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("e2b-codegen: {error:#}");
            ExitCode::FAILURE
        }
    }
}
