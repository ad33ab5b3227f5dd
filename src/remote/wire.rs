//! What stands between the stores' library and the network: every request passes here, whatever it is for.
//!
//! The library says too little of what went wrong, and nothing of `Retry-After`; so what a request met is noted down here for
//! the one who retries, [`super::store`]. Here requests and bytes are counted, and what a hostile server may send is bounded:
//! the answer to a failed request is cut off, redirects are few, lead from https to nowhere else, and never take credentials
//! or a signed URL along to another host.

use std::error::Error as _;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest,
    HttpResponse, HttpResponseBody, HttpService,
};
use reqwest::redirect;

use super::names;
use crate::stats::Counters;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may send nothing, while it owes us something.
const SILENCE: Duration = Duration::from_secs(15);
/// How many redirects are followed for one request.
const REDIRECTS: usize = 5;
/// How much of the answer to a failed request is looked at, in bytes.
const LONGEST_COMPLAINT: usize = 16 << 10;
/// How long a part of a listing may be, in bytes: a thousand of the longest names, each letter written as an entity.
const LONGEST_LISTING: usize = 16 << 20;
/// The longest wait that a server is believed to want, in seconds.
const LONGEST_WAIT: u64 = 3600;

tokio::task_local! {
    /// What the request that this task makes has met.
    static NOTE: Arc<Note>;
}

/// What the last request of a task has met.
#[derive(Debug, Default)]
pub(super) struct Note(Mutex<Seen>);

/// See [`Note`].
#[derive(Debug, Default, Clone)]
pub(super) struct Seen {
    /// The status of the answer.
    pub(super) status: Option<u16>,
    /// The code a store has given for its refusal, as in `NoSuchKey`.
    pub(super) code: Option<String>,
    /// How long the server wants to be left alone.
    pub(super) retry_after: Option<Duration>,
    /// Why there was no answer, or none that is whole.
    pub(super) failure: Option<String>,
    /// Whether the server answered a request for a part with the whole.
    pub(super) ignored_range: bool,
    /// How many names were taken out of a listing.
    odd_names: u64,
    /// Whether it was this machine that was asked for credentials, and does not know of any.
    pub(super) no_credentials: bool,
}

impl Note {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen so far.
    pub(super) fn seen(&self) -> Seen {
        self.lock().clone()
    }
}

/// Runs something whose requests note down what they meet.
pub(super) async fn noting<T>(note: Arc<Note>, work: impl Future<Output = T>) -> T {
    NOTE.scope(note, work).await
}

fn note(change: impl FnOnce(&mut Seen)) {
    // Nobody asks what a request met that the library makes by itself, in a task of its own.
    let _ = NOTE.try_with(|note| change(&mut note.lock()));
}

/// How many names the last request of this task has left out of a listing.
pub(super) fn odd_names() -> u64 {
    NOTE.try_with(|note| note.lock().odd_names).unwrap_or(0)
}

/// Connects the stores' library to the network.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    pub(super) counters: Arc<Counters>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allow_http = options.get_config_value(&ClientConfigKey::AllowHttp);
        let only_https = allow_http.as_deref() != Some("true");
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("warpfs/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::limited(REDIRECTS))
            // It would tell another host a signed URL.
            .referer(false)
            .https_only(only_https)
            // Parallel requests are parallel connections: what one loses holds up no other.
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(SILENCE);
        if let Some(headers) = options.get_default_headers() {
            builder = builder.default_headers(headers.clone());
        }
        let client = builder
            .build()
            .map_err(|source| object_store::Error::Generic {
                store: "client",
                source: Box::new(source),
            })?;
        Ok(HttpClient::new(Wire {
            client,
            counters: Arc::clone(&self.counters),
        }))
    }
}

/// See the module's description.
#[derive(Debug)]
struct Wire {
    client: reqwest::Client,
    counters: Arc<Counters>,
}

#[async_trait]
impl HttpService for Wire {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        note(|seen| *seen = Seen::default());
        let counters = Arc::clone(&self.counters);
        counters.remote_requests.add(1);
        let sent = request.body().content_length() as u64;
        let ranged = request.headers().contains_key("range");
        let lists = names::is_of_listing(request.uri().query().unwrap_or_default());
        let asks_machine = request.uri().host().is_some_and(is_of_machine);
        let answer = self.client.call(request).await.inspect_err(|error| {
            remember(error);
            note(|seen| seen.no_credentials = asks_machine);
        })?;
        counters.remote_bytes_sent.add(sent);
        let (mut parts, body) = answer.into_parts();
        let status = parts.status.as_u16();
        let retry_after = parts.headers.get("retry-after");
        let retry_after = retry_after
            .and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok())
            .map(|seconds| Duration::from_secs(seconds.min(LONGEST_WAIT)));
        note(|seen| {
            seen.status = Some(status);
            seen.retry_after = retry_after;
            seen.ignored_range = ranged && status == 200;
        });
        if !parts.status.is_success() {
            let complaint = beginning(body).await;
            counters.remote_bytes_received.add(complaint.len() as u64);
            let code = code_in(&String::from_utf8_lossy(&complaint));
            note(|seen| seen.code = code);
            return Ok(HttpResponse::from_parts(parts, complaint.into()));
        }
        let body = body
            .map_frame(move |frame| {
                let length = frame.data_ref().map_or(0, Bytes::len);
                counters.remote_bytes_received.add(length as u64);
                frame
            })
            .map_err(|error| {
                remember(&error);
                error
            });
        if !lists {
            return Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)));
        }
        let body = http_body_util::Limited::new(body, LONGEST_LISTING)
            .collect()
            .await;
        let body = body.map_err(|error| HttpError::new(HttpErrorKind::Decode, Listing(error)))?;
        let (body, odd) = names::without_odd(body.to_bytes());
        note(|seen| seen.odd_names = odd);
        parts.headers.remove("content-length");
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}

/// A listing that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the listing cannot be read: {0}")]
struct Listing(Box<dyn std::error::Error + Send + Sync>);

/// Whether this is where clouds tell their machines of roles and credentials.
fn is_of_machine(host: &str) -> bool {
    host.starts_with("169.254.") || host == "metadata.google.internal" || host == "metadata"
}

/// Notes down why a request failed, with all its causes.
fn remember(error: &HttpError) {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let separator = if text.is_empty() { "" } else { ": " };
        let _ = write!(text, "{separator}{error}");
        cause = error.source();
    }
    note(|seen| seen.failure = Some(text));
}

/// The first bytes of an answer, which may have no end.
async fn beginning(body: HttpResponseBody) -> Bytes {
    let mut stream = body.bytes_stream();
    let mut held = Vec::new();
    while held.len() < LONGEST_COMPLAINT
        && let Some(Ok(bytes)) = stream.next().await
    {
        let room = LONGEST_COMPLAINT - held.len();
        held.extend_from_slice(bytes.get(..room).unwrap_or(&bytes));
    }
    held.into()
}

/// The code in a store's XML answer.
fn code_in(complaint: &str) -> Option<String> {
    let (_, behind) = complaint.split_once("<Code>")?;
    let (code, _) = behind.split_once("</Code>")?;
    let is_word = code.len() <= 64 && code.chars().all(|letter| letter.is_ascii_alphanumeric());
    is_word.then(|| code.to_owned())
}
