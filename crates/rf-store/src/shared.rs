//! What all users share: templates and settings. Everybody authenticated reads templates; only operators write.

use rf_types::{TemplateConfig, TemplateName, units::UnixMs};
use rusqlite::{OptionalExtension, Row, params};
use serde::Serialize;

use crate::{
    OperatorScope, Store, StoreError, SystemScope, UserScope,
    users::{int, json, one, parsed, time, to_json},
};

/// Templates at once. Chosen.
const TEMPLATES_MAX: u32 = 10_000;
/// Most bytes of a template's settings as JSON. Chosen: above what an import lets through, escapes included.
const CONFIG_BYTES_MAX: usize = 2 << 20;
/// Most bytes of a setting's key and value. Chosen.
const SETTING_BYTES_MAX: usize = 64 << 10;

/// A template to be stored.
#[derive(Clone, Debug)]
pub struct NewTemplate<'a> {
    /// Its name; one that is there is replaced, for sandboxes made from then on.
    pub name: &'a TemplateName,
    /// Digests of its layers, lowest first; 1 to 128.
    pub layers: &'a [String],
    /// What it was made from, for people.
    pub source: &'a str,
    /// The digest that names its content.
    pub digest: &'a str,
    /// How programs are started in it.
    pub config: &'a TemplateConfig,
}

/// A template.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Template {
    /// Its name.
    pub name: TemplateName,
    /// Digests of its layers, lowest first.
    pub layers: Vec<String>,
    /// What it was made from, for people.
    pub source: String,
    /// The digest that names its content.
    pub digest: String,
    /// How programs are started in it.
    pub config: TemplateConfig,
    /// When it was stored.
    pub created: UnixMs,
}

impl Store {
    /// Stores a template, replacing one of the same name.
    ///
    /// # Errors
    /// [`StoreError::Invalid`]; [`StoreError::TooMany`].
    pub fn template_put(
        &self,
        _operator: &OperatorScope,
        new: &NewTemplate<'_>,
        now: UnixMs,
    ) -> Result<Template, StoreError> {
        if !(1..=128).contains(&new.layers.len()) || new.source.len() > 4_096 || new.digest.len() > 256 {
            return Err(StoreError::Invalid { what: "a template has 1 to 128 layers, a source and a digest".into() });
        }
        let layers = to_json(&new.layers)?;
        let config = to_json(new.config)?;
        if config.len() > CONFIG_BYTES_MAX {
            return Err(StoreError::Invalid {
                what: format!("a template's settings are at most {CONFIG_BYTES_MAX} bytes"),
            });
        }
        self.write(|transaction| {
            let at = StoreError::at("store a template");
            // One of the same name is replaced, and takes no room of its own.
            let others: u32 = transaction
                .query_row("SELECT count(*) FROM templates WHERE name <> ?1", [new.name.as_str()], |row| row.get(0))
                .map_err(&at)?;
            if others >= TEMPLATES_MAX {
                return Err(StoreError::TooMany { what: "templates", max: TEMPLATES_MAX });
            }
            transaction
                .execute(
                    "INSERT INTO templates (name, layers, source, digest, created, config)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                     ON CONFLICT (name) DO UPDATE
                     SET layers = ?2, source = ?3, digest = ?4, created = ?5, config = ?6",
                    params![new.name.as_str(), layers, new.source, new.digest, int(now), config],
                )
                .map_err(&at)?;
            Ok(())
        })?;
        Ok(Template {
            name: new.name.clone(),
            layers: new.layers.to_vec(),
            source: new.source.to_owned(),
            digest: new.digest.to_owned(),
            config: new.config.clone(),
            created: now,
        })
    }

    /// Every template, by name.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn template_list(&self, _scope: &UserScope) -> Result<Vec<Template>, StoreError> {
        self.read(|connection| {
            let at = StoreError::at("list templates");
            let mut statement = connection
                .prepare_cached("SELECT name, layers, source, digest, created, config FROM templates ORDER BY name")
                .map_err(&at)?;
            let rows = statement.query_map([], template_of).map_err(&at)?;
            rows.collect::<Result<_, _>>().map_err(&at)
        })
    }

    /// One template.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn template_get(&self, _scope: &UserScope, name: &TemplateName) -> Result<Template, StoreError> {
        self.read(|connection| {
            let at = StoreError::at("read a template");
            let mut statement = connection
                .prepare_cached("SELECT name, layers, source, digest, created, config FROM templates WHERE name = ?1")
                .map_err(&at)?;
            let found = statement.query_row([name.as_str()], template_of).optional().map_err(&at)?;
            found.ok_or(StoreError::NotFound { what: "template" })
        })
    }

    /// Forgets a template. Sandboxes made from it live on.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn template_remove(&self, _operator: &OperatorScope, name: &TemplateName) -> Result<(), StoreError> {
        self.write(|transaction| {
            let changed = transaction
                .execute("DELETE FROM templates WHERE name = ?1", [name.as_str()])
                .map_err(StoreError::at("remove a template"))?;
            one("template", changed)
        })
    }

    /// A setting of the server's own, such as the id of this installation.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn setting_get(&self, _system: &SystemScope, key: &str) -> Result<Option<String>, StoreError> {
        self.read(|connection| {
            let at = StoreError::at("read a setting");
            let mut statement = connection.prepare_cached("SELECT value FROM settings WHERE key = ?1").map_err(&at)?;
            statement.query_row([key], |row| row.get(0)).optional().map_err(&at)
        })
    }

    /// Sets a setting of the server's own.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] beyond 64 KiB.
    pub fn setting_set(&self, _system: &SystemScope, key: &str, value: &str) -> Result<(), StoreError> {
        if key.len() + value.len() > SETTING_BYTES_MAX {
            return Err(StoreError::Invalid { what: format!("a setting is at most {SETTING_BYTES_MAX} bytes") });
        }
        self.write(|transaction| {
            transaction
                .execute(
                    "INSERT INTO settings (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
                    [key, value],
                )
                .map(drop)
                .map_err(StoreError::at("set a setting"))
        })
    }
}

fn template_of(row: &Row<'_>) -> rusqlite::Result<Template> {
    Ok(Template {
        name: parsed(row, 0)?,
        layers: json(row, 1)?,
        source: row.get(2)?,
        digest: row.get(3)?,
        created: time(row, 4)?,
        config: json(row, 5)?,
    })
}
