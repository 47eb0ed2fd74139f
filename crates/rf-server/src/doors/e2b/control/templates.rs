//! Templates as these clients see them: the operator's, which everybody may use and nobody here may change.

use std::collections::VecDeque;

use axum::{
    body::Body,
    extract::State,
    http::{Response, StatusCode, Uri},
};
use rf_e2b::models::{Template, TemplateAlias, TemplateBuild, TemplateWithBuilds, timestamp};
use rf_places::Origin;
use rf_policy::Action;
use rf_types::{Code, Fault, TemplateName};
use serde::Deserialize;

use super::{
    sandboxes::{page_limit, template_name, with_next, within},
    snapshots,
    view::Size,
};
use crate::{
    app::{App, Caller, Named, json},
    doors::{e2b::interpreter, life},
    input,
    operation::Ask,
    refusal::Refusal,
};

/// The tag of a template that has no other.
const DEFAULT_TAG: &str = ":default";

/// The template that a request names: in either case, with or without the tag that every template has.
///
/// # Errors
/// `template_unavailable` naming it.
pub(super) fn find(app: &App, caller: &Caller, text: &str) -> Result<TemplateName, Fault> {
    let text = text.to_ascii_lowercase();
    let names = [Some(text.as_str()), text.strip_suffix(DEFAULT_TAG)];
    for name in names.into_iter().flatten().filter_map(template_name) {
        match app.check_template(caller, &name) {
            Ok(()) => return Ok(name),
            Err(fault) if fault.code == Code::TemplateUnavailable => {}
            Err(fault) => return Err(fault),
        }
    }
    if text == interpreter::TEMPLATE {
        // Where nobody imported one of that name, what its clients need is in `base`.
        return Ok(TemplateName::base());
    }
    Err(unavailable(&text))
}

fn unavailable(text: &str) -> Fault {
    let hint = "GET /templates lists those that are there";
    Fault::new(Code::TemplateUnavailable, format!("no such template `{}`", shown(text)), hint)
}

/// What a sandbox begins with.
pub(super) enum Start {
    /// A template.
    Template(TemplateName),
    /// The files of another sandbox.
    Snapshot(Origin),
}

/// What a request for a sandbox begins with: a snapshot of the user's by its id, a template, or a snapshot by its name.
///
/// # Errors
/// `template_unavailable` naming it, for whatever is not there or not the user's; what the gate says.
pub(super) async fn start(app: &App, caller: &Caller, text: &str) -> Result<Start, Refusal> {
    let named = match (snapshots::named_by_id(text), find(app, caller, text)) {
        (Some(id), _) => id.to_string(),
        (None, Ok(name)) => return Ok(Start::Template(name)),
        (None, Err(fault)) if fault.code != Code::TemplateUnavailable => return Err(fault.into()),
        (None, Err(fault)) => match snapshots::by_name(app, caller, text) {
            Some(row) => row.id.to_string(),
            None => return Err(fault.into()),
        },
    };
    match life::origin(app, caller, &named).await {
        Ok(origin) => Ok(Start::Snapshot(origin)),
        Err(refusal) if refusal.fault.code == Code::NotFound => Err(unavailable(text).into()),
        Err(refusal) => Err(refusal),
    }
}

/// What is told of one template.
struct About {
    name: TemplateName,
    /// Of its content; nothing for those that the server makes itself.
    digest: Option<String>,
    created_at: u64,
}

impl About {
    /// Those that are there, by name.
    fn all(app: &App, caller: &Caller) -> Result<Vec<Self>, Fault> {
        let made = |name| Self { name, digest: None, created_at: 0 };
        let mut all = vec![made(TemplateName::base()), made(TemplateName::host())];
        let imported = app.store().template_list(caller.who.scope())?.into_iter().filter(|row| !row.name.is_built_in());
        all.extend(imported.map(|row| Self { name: row.name, digest: Some(row.digest), created_at: row.created }));
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    fn names(&self) -> Vec<String> {
        vec![self.name.to_string()]
    }

    /// A UUID (RFC 9562, version 8) that stays the same for as long as the content does.
    fn build_id(&self) -> String {
        let content = format!("{}\n{}", self.name, self.digest.as_deref().unwrap_or_default());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&blake3::hash(content.as_bytes()).as_bytes()[..16]);
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }

    fn template(&self, size: &Size) -> Template {
        Template {
            template_id: self.name.to_string(),
            build_id: self.build_id(),
            cpu_count: size.cpus,
            memory_mb: size.memory_mb,
            disk_size_mb: size.disk_mb,
            public: true,
            aliases: self.names(),
            names: self.names(),
            created_at: timestamp(self.created_at),
            updated_at: timestamp(self.created_at),
            created_by: None,
            last_spawned_at: None,
            spawn_count: 0,
            build_count: 1,
            envd_version: rf_e2b::ENVD_VERSION,
            build_status: "ready",
        }
    }

    fn with_builds(&self, size: &Size) -> TemplateWithBuilds {
        let at = timestamp(self.created_at);
        let build = TemplateBuild {
            build_id: self.build_id(),
            status: "ready",
            created_at: at.clone(),
            updated_at: at.clone(),
            finished_at: at.clone(),
            cpu_count: size.cpus,
            memory_mb: size.memory_mb,
            disk_size_mb: size.disk_mb,
            envd_version: rf_e2b::ENVD_VERSION,
        };
        TemplateWithBuilds {
            template_id: self.name.to_string(),
            public: true,
            aliases: self.names(),
            names: self.names(),
            created_at: at.clone(),
            updated_at: at,
            last_spawned_at: None,
            spawn_count: 0,
            builds: vec![build],
        }
    }
}

async fn all(app: &App, caller: &Caller) -> Result<Vec<About>, Refusal> {
    let operation = app.begin(caller, Ask::of(Action::TemplateRead).detail("op", "list")).await?;
    operation.finish(About::all(app, caller)).await
}

fn size(app: &App, caller: &Caller) -> Size {
    Size::of(&within(app.config().e2b.limits(), caller.who.limits()))
}

/// All templates.
pub(super) async fn list(State(app): State<App>, caller: Caller) -> Result<Response<Body>, Refusal> {
    let size = size(&app, &caller);
    let items: Vec<_> = all(&app, &caller).await?.iter().map(|about| about.template(&size)).collect();
    Ok(json(StatusCode::OK, &items))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PageQuery {
    limit: Option<String>,
    next_token: Option<String>,
}

/// All templates, a page at a time, by name.
pub(super) async fn list_paged(State(app): State<App>, caller: Caller, uri: Uri) -> Result<Response<Body>, Refusal> {
    let PageQuery { limit, next_token } = input::query(&uri)?;
    let limit = limit.as_deref().map_or(Ok(100), page_limit)?;
    let size = size(&app, &caller);
    let after = next_token.filter(|token| !token.is_empty());
    let beyond = |about: &About| after.as_deref().is_none_or(|after| about.name.as_str() > after);
    let mut left: VecDeque<_> = all(&app, &caller).await?.into_iter().filter(beyond).collect();
    let more = left.len() > limit;
    left.truncate(limit);
    let items: Vec<_> = left.iter().map(|about| about.template(&size)).collect();
    let mut response = json(StatusCode::OK, &items);
    with_next(&mut response, left.back().filter(|_| more).map(|about| about.name.to_string()));
    Ok(response)
}

/// One of them by its name.
async fn named(app: &App, caller: &Caller, text: &str) -> Result<About, Refusal> {
    let operation = app.begin(caller, Ask::of(Action::TemplateRead).subject(recorded(app, text))).await?;
    let found = find(app, caller, text).and_then(|name| {
        let all = About::all(app, caller)?;
        all.into_iter().find(|about| about.name == name).ok_or_else(|| Fault::not_found("template"))
    });
    operation.finish(found).await
}

/// A client's text as the ledger has it: somebody will put a key where a name belongs.
fn recorded(app: &App, text: &str) -> String {
    app.redactor().text(&shown(text), &[])
}

/// A client's text as it is told back.
fn shown(text: &str) -> String {
    text.chars().take(128).collect()
}

/// One template with how it was made.
pub(super) async fn one(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
) -> Result<Response<Body>, Refusal> {
    let about = named(&app, &caller, &text).await?;
    Ok(json(StatusCode::OK, &about.with_builds(&size(&app, &caller))))
}

/// Whether a template of this name is there.
pub(super) async fn alias(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
) -> Result<Response<Body>, Refusal> {
    let about = named(&app, &caller, &text).await?;
    Ok(json(StatusCode::OK, &TemplateAlias { template_id: about.name.to_string(), public: true }))
}

/// Removes a snapshot, which clients take for a template. The operator's templates are removed by operators elsewhere.
pub(super) async fn remove(
    State(app): State<App>,
    caller: Caller,
    Named(text): Named<String>,
) -> Result<StatusCode, Refusal> {
    let found = snapshots::named_by_id(&text).or_else(|| snapshots::by_name(&app, &caller, &text).map(|row| row.id));
    match found {
        Some(id) => life::delete_snapshot(&app, &caller, id).await?,
        None => {
            let operation = app.begin(&caller, Ask::of(Action::SnapshotDelete).subject(recorded(&app, &text))).await?;
            let result = find(&app, &caller, &text).and_then(|name| {
                let what = format!("the template `{name}` is the operator's");
                Err(Fault::new(Code::Forbidden, what, "an operator removes it with DELETE /v1/templates"))
            });
            operation.finish(result).await?;
        }
    }
    Ok(StatusCode::NO_CONTENT)
}
