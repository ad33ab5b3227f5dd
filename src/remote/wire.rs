//! What stands between the stores' library and the network: every request passes here, whatever it is for.
//!
//! The library says too little of what went wrong, and nothing of `Retry-After`; so what a request met is noted down here for
//! the one who retries, [`super::store`]. Here requests and bytes are counted, and what a hostile server may send is bounded:
//! the answer to a failed request is cut off, redirects are few, lead from https to nowhere else, and never take credentials
//! or a signed URL along to another host.

use std::error::Error as _;
use std::fmt::Write as _;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest,
    HttpResponse, HttpResponseBody, HttpService,
};
use reqwest::redirect;
use rustls::CertificateError;

use super::names;
use crate::stats::Counters;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may send nothing, while it owes us something.
const SILENCE: Duration = Duration::from_secs(15);
/// How long nothing of what we send may go out, and no answer to it come: the last of it may wait in the system's buffers.
const SENDING_SILENCE: Duration = Duration::from_secs(60);
/// In pieces of how many bytes a body is sent.
const PIECE: usize = 64 << 10;
/// How many redirects are followed for one request.
const REDIRECTS: usize = 5;
/// How much of the answer to a failed request is looked at, in bytes.
const LONGEST_COMPLAINT: usize = 16 << 10;
/// How long a part of a listing may be, in bytes: a thousand of the longest names, each letter written as an entity.
const LONGEST_LISTING: usize = 16 << 20;
/// How long any other answer may be that is not of a part that was asked for, in bytes: stores say there what they have done, and
/// the services of credentials what those are.
const LONGEST_REPLY: usize = 1 << 20;
/// The longest wait that a server is believed to want, in seconds.
const LONGEST_WAIT: u64 = 3600;

tokio::task_local! {
    /// What the request that this task makes has met.
    static NOTE: Arc<Note>;
}

/// What the last request of a task has met.
#[derive(Debug, Default)]
pub(super) struct Note {
    seen: Mutex<Seen>,
    /// How many bytes of bodies have moved, either way.
    moved: AtomicU64,
}

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
    /// Whether it would fail as well another time: the server cannot be trusted, or wants us to do without that.
    pub(super) fails_for_good: bool,
    /// Whether the server answered a request for a part with the whole.
    pub(super) ignored_range: bool,
    /// How many names were taken out of a listing.
    pub(super) odd_names: u64,
    /// Whether it was this machine that was asked for credentials, and does not know of any.
    pub(super) no_credentials: bool,
}

impl Note {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn move_on(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// How many bytes of bodies have moved so far, either way.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
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

/// The status of the answer to the last request of this task.
pub(super) fn status() -> Option<u16> {
    NOTE.try_with(|note| note.lock().status).ok().flatten()
}

/// Connects the stores' library to the network.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    pub(super) counters: Arc<Counters>,
    /// Whether redirects to another host are followed. What stores are asked carries tokens and keys that would be told there.
    pub(super) goes_elsewhere: bool,
    /// Who is asked for credentials besides the clouds' own services: hosts with their ports.
    pub(super) machine: Vec<String>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let build = |builder: reqwest::ClientBuilder| {
            let failed = |source| object_store::Error::Generic {
                store: "client",
                source: Box::new(source),
            };
            builder.build().map_err(failed)
        };
        Ok(HttpClient::new(Wire {
            asking: build(self.client(options).read_timeout(SILENCE))?,
            sending: build(self.client(options))?,
            counters: Arc::clone(&self.counters),
            machine: self.machine.clone(),
        }))
    }
}

impl Connector {
    fn client(&self, options: &ClientOptions) -> reqwest::ClientBuilder {
        let allow_http = options.get_config_value(&ClientConfigKey::AllowHttp);
        let only_https = allow_http.as_deref() != Some("true");
        let goes_elsewhere = self.goes_elsewhere;
        let redirects = redirect::Policy::custom(move |attempt| {
            let from = attempt.previous().first();
            let is_same = from.is_some_and(|from| {
                let port = from.port_or_known_default();
                from.host() == attempt.url().host() && port == attempt.url().port_or_known_default()
            });
            match is_same || goes_elsewhere {
                true => redirect::Policy::limited(REDIRECTS).redirect(attempt),
                false => attempt.stop(),
            }
        });
        let builder = reqwest::Client::builder()
            .user_agent(concat!("warpfs/", env!("CARGO_PKG_VERSION")))
            .redirect(redirects)
            // It would tell another host a signed URL.
            .referer(false)
            .https_only(only_https)
            // Parallel requests are parallel connections: what one loses holds up no other.
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT);
        match options.get_default_headers() {
            Some(headers) => builder.default_headers(headers.clone()),
            None => builder,
        }
    }
}

/// See the module's description.
#[derive(Debug)]
struct Wire {
    /// For requests without a body.
    asking: reqwest::Client,
    /// For those with one: as long as it is sent, the server has nothing to say.
    sending: reqwest::Client,
    counters: Arc<Counters>,
    /// As in [`Connector`].
    machine: Vec<String>,
}

impl Wire {
    /// Sends a request with a body, for as long as some of it goes out now and then.
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let note = NOTE.try_with(Arc::clone).unwrap_or_default();
        let (parts, body) = request.into_parts();
        let url = parts.uri.to_string().parse();
        let url = url.map_err(|error| HttpError::new(HttpErrorKind::Request, error))?;
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        // Stores take no body whose length they are not told.
        let length = body.content_length().into();
        request.headers_mut().insert("content-length", length);
        let counted = Arc::clone(&note);
        let pieces = body.into_data_stream().flat_map(|bytes| {
            let length = bytes.as_ref().map_or(1, Bytes::len);
            stream::iter((0..length).step_by(PIECE).map(move |start| match &bytes {
                Ok(bytes) => Ok(bytes.slice(start..length.min(start + PIECE))),
                Err(error) => Err(std::io::Error::other(error.to_string())),
            }))
        });
        let pieces = pieces.inspect(move |piece| {
            counted.move_on(piece.as_ref().map_or(0, Bytes::len));
        });
        *request.body_mut() = Some(reqwest::Body::wrap_stream(pieces));
        let silent = async {
            let mut moved = None;
            while moved != Some(note.moved()) {
                moved = Some(note.moved());
                tokio::time::sleep(SENDING_SILENCE).await;
            }
        };
        let mut answer = match select(pin!(self.sending.execute(request)), pin!(silent)).await {
            Either::Left((answer, _)) => answer.map_err(failed)?,
            Either::Right(_) => {
                let silence = std::io::Error::from(std::io::ErrorKind::TimedOut);
                return Err(HttpError::new(HttpErrorKind::Timeout, silence));
            }
        };
        let (status, headers) = (answer.status(), std::mem::take(answer.headers_mut()));
        let body = reqwest::Body::from(answer).map_err(failed);
        let mut answer = HttpResponse::new(HttpResponseBody::new(body));
        (*answer.status_mut(), *answer.headers_mut()) = (status, headers);
        Ok(answer)
    }
}

fn failed(error: reqwest::Error) -> HttpError {
    let kind = match () {
        () if error.is_timeout() => HttpErrorKind::Timeout,
        () if error.is_connect() => HttpErrorKind::Connect,
        () => HttpErrorKind::Request,
    };
    HttpError::new(kind, error)
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
        let asks_machine = request.uri().authority().is_some_and(|authority| {
            let mut known = self.machine.iter();
            is_of_machine(authority.host()) || known.any(|known| authority == known)
        });
        let answer = match sent {
            0 => self.asking.call(request).await,
            _ => self.send(request).await,
        };
        let answer = answer.inspect_err(|error| {
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
            let is_refusal = parts.status.is_client_error() && !matches!(status, 408 | 429);
            seen.no_credentials = asks_machine && is_refusal;
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
                let _ = NOTE.try_with(|note| note.move_on(length));
                frame
            })
            .map_err(|error| {
                remember(&error);
                error
            });
        if ranged {
            return Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)));
        }
        if !lists {
            let body = http_body_util::Limited::new(body, LONGEST_REPLY);
            let body = body.map_err(|error| unreadable("the answer", error));
            return Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)));
        }
        let body = http_body_util::Limited::new(body, LONGEST_LISTING)
            .collect()
            .await;
        let body = body.map_err(|error| unreadable("the listing", error))?;
        let (body, odd) = names::without_odd(body.to_bytes());
        note(|seen| seen.odd_names = odd);
        parts.headers.remove("content-length");
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}

/// An answer that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be read: {why}")]
struct Unreadable {
    what: &'static str,
    why: Box<dyn std::error::Error + Send + Sync>,
}

fn unreadable(what: &'static str, why: Box<dyn std::error::Error + Send + Sync>) -> HttpError {
    HttpError::new(HttpErrorKind::Decode, Unreadable { what, why })
}

/// Whether this is where clouds tell their machines of roles and credentials.
fn is_of_machine(host: &str) -> bool {
    host.starts_with("169.254.") || host == "metadata.google.internal" || host == "metadata"
}

/// Notes down why a request failed, with all its causes.
fn remember(error: &HttpError) {
    let mut text = String::new();
    let mut fails_for_good = false;
    let mut cause = error.source();
    while let Some(error) = cause {
        let separator = if text.is_empty() { "" } else { ": " };
        let _ = write!(text, "{separator}{error}");
        fails_for_good |= is_for_good(error);
        cause = error.source();
    }
    note(|seen| {
        seen.failure = Some(text);
        seen.fails_for_good = fails_for_good;
    });
}

/// Whether this cause of a failure is a certificate that nobody vouches for, or a redirect from https to where anybody may read along.
fn is_for_good(cause: &(dyn std::error::Error + 'static)) -> bool {
    // What the system's errors wrap, and it may be another of them, is none of their sources.
    let wrapping = cause.downcast_ref::<std::io::Error>();
    if let Some(wrapped) = wrapping.and_then(std::io::Error::get_ref) {
        return is_for_good(wrapped);
    }
    let request = cause.downcast_ref::<reqwest::Error>();
    match cause.downcast_ref() {
        // One that is to be renewed, or this machine's clock is to be set.
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        )) => false,
        Some(rustls::Error::InvalidCertificate(_)) => true,
        _ => request.is_some_and(reqwest::Error::is_builder),
    }
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
