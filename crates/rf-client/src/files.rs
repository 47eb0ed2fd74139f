//! Files of a place: read, write, list, move, trees as tar, watch.

use bytes::Bytes;
use futures::{Stream, StreamExt, stream::BoxStream};
use reqwest::{Body, Method, Response};
use rf_types::{MachineId, SandboxId, Stat};
use serde_json::json;

use crate::{
    client::{Client, query},
    error::ClientError,
    types::Items,
};

/// Bytes from the server, as they come.
pub type ByteStream = BoxStream<'static, Result<Bytes, ClientError>>;

/// Whose files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Target {
    /// Those of the place that the user's preference chooses.
    Preferred,
    /// A sandbox's.
    Sandbox(SandboxId),
    /// A machine's.
    Machine(MachineId),
}

impl Target {
    fn base(self) -> String {
        match self {
            Self::Preferred => "/v1/files".to_owned(),
            Self::Sandbox(id) => format!("/v1/sandboxes/{id}/files"),
            Self::Machine(id) => format!("/v1/machines/{id}/files"),
        }
    }
}

/// What a file operation is done to, and as whom.
#[derive(Clone, Copy, Debug)]
pub struct FilePath<'a> {
    /// Whose files.
    pub target: Target,
    /// The path inside.
    pub path: &'a str,
    /// The user inside; `None` is the place's default one.
    pub user: Option<&'a str>,
}

impl FilePath<'_> {
    fn url(&self, what: &str, more: &[(&str, String)]) -> String {
        let mut pairs = vec![("path", self.path.to_owned())];
        pairs.extend(self.user.map(|user| ("user", user.to_owned())));
        pairs.extend_from_slice(more);
        format!("{}{what}{}", self.target.base(), query(&pairs))
    }
}

impl Client {
    pub(crate) fn bytes_of(&self, answer: Response) -> ByteStream {
        let url = self.url().to_owned();
        answer
            .bytes_stream()
            .map(move |piece| {
                piece.map_err(|source| ClientError::Unreachable {
                    url: url.clone(),
                    source: Box::new(source.without_url()),
                })
            })
            .boxed()
    }

    /// A file's bytes, and how many will come if the server says.
    ///
    /// # Errors
    /// `file_failed`, `not_found`; see [`ClientError`].
    pub async fn file_read(&self, at: FilePath<'_>) -> Result<(ByteStream, Option<u64>), ClientError> {
        let answer = self.send(self.request(Method::GET, &at.url("", &[]))).await?;
        let length = answer.content_length();
        Ok((self.bytes_of(answer), length))
    }

    /// Writes a file from a stream; with `parents`, missing directories are made. The file is there whole or not at
    /// all.
    ///
    /// # Errors
    /// `file_failed`, `disk_full`; see [`ClientError`].
    pub async fn file_write(
        &self,
        at: FilePath<'_>,
        permissions: u32,
        bytes: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), ClientError> {
        let more = [
            ("mode", "replace".to_owned()),
            ("permissions", format!("{permissions:o}")),
            ("parents", "true".to_owned()),
        ];
        let request = self.request(Method::PUT, &at.url("", &more)).body(Body::wrap_stream(bytes));
        let answer = self.send(request).await?;
        self.read(answer).await.map(drop)
    }

    /// A directory's entries, down to `depth`.
    ///
    /// # Errors
    /// `file_failed`, `not_found`; see [`ClientError`].
    pub async fn file_list(&self, at: FilePath<'_>, depth: u32) -> Result<Vec<Stat>, ClientError> {
        self.get::<Items<Stat>>(&at.url("/list", &[("depth", depth.to_string())])).await.map(|list| list.items)
    }

    /// One file's description; a link at the end of the path is followed.
    ///
    /// # Errors
    /// `file_failed`, `not_found`; see [`ClientError`].
    pub async fn file_stat(&self, at: FilePath<'_>) -> Result<Stat, ClientError> {
        self.get(&at.url("/stat", &[("follow", "true".to_owned())])).await
    }

    /// Makes a directory and its missing parents.
    ///
    /// # Errors
    /// `file_failed`; see [`ClientError`].
    pub async fn file_make_dir(&self, at: FilePath<'_>) -> Result<(), ClientError> {
        let body = json!({ "path": at.path, "user": at.user, "parents": true });
        self.post::<serde::de::IgnoredAny>(&format!("{}/mkdir", at.target.base()), &body).await.map(drop)
    }

    /// A directory or file as a tar archive.
    ///
    /// # Errors
    /// `file_failed`, `not_found`; see [`ClientError`].
    pub async fn tar_out(&self, at: FilePath<'_>) -> Result<ByteStream, ClientError> {
        let answer = self.send(self.request(Method::GET, &at.url("/tar", &[]))).await?;
        Ok(self.bytes_of(answer))
    }

    /// Unpacks a tar archive into a directory, which is made if missing.
    ///
    /// # Errors
    /// `file_failed`, `disk_full`; see [`ClientError`].
    pub async fn tar_in(
        &self,
        at: FilePath<'_>,
        bytes: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), ClientError> {
        let answer = self.send(self.request(Method::PUT, &at.url("/tar", &[])).body(Body::wrap_stream(bytes))).await?;
        self.read(answer).await.map(drop)
    }
}
