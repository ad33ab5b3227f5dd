//! What went wrong with a request, and whether to try again.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use super::location::redacted;
use super::wire::Seen;

/// Why a request was not answered as it should have been.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) kind: FaultKind,
    /// What happened, in words that hold no secrets.
    pub(super) what: String,
    /// How long the server wants to be left alone.
    pub(super) retry_after: Option<Duration>,
}

/// See [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultKind {
    /// The object is another than the one that is meant.
    Changed,
    /// There is no such object.
    NotFound,
    /// There is one where there was to be none.
    Exists,
    /// We may not.
    Refused,
    /// There is nothing to say who we are with.
    NoCredentials,
    /// The server cannot do what is asked, and will not be able to.
    Unable,
    /// The answer is not one to what was asked.
    Garbled,
    /// It may go well another time.
    Passing,
}

impl Fault {
    pub(super) fn new(kind: FaultKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            retry_after: None,
        }
    }

    /// What an error of the stores' library means, with what was seen of its last request.
    pub(super) fn of(error: &object_store::Error, seen: &Seen) -> Self {
        use object_store::Error as E;
        let kind = match (error, seen.status) {
            // What the machine's service answers is not about the object.
            _ if seen.no_credentials => FaultKind::NoCredentials,
            (E::AlreadyExists { .. }, _) => FaultKind::Exists,
            (E::Precondition { .. }, _) | (_, Some(412)) => FaultKind::Changed,
            (E::NotFound { .. }, _) | (_, Some(404 | 410)) => FaultKind::NotFound,
            (E::PermissionDenied { .. } | E::Unauthenticated { .. }, _) | (_, Some(401 | 403)) => {
                FaultKind::Refused
            }
            _ if seen.ignored_range => FaultKind::Unable,
            // What the server has not learnt, it is not going to know in a minute.
            (_, Some(501 | 505)) => FaultKind::Unable,
            (_, Some(408 | 429 | 500..)) => FaultKind::Passing,
            // What we sent broke off, as S3 says it.
            (_, Some(400)) if seen.code.as_deref() == Some("RequestTimeout") => FaultKind::Passing,
            (_, Some(300..)) => FaultKind::Unable,
            (E::NotSupported { .. } | E::NotImplemented { .. }, _) => FaultKind::Unable,
            _ if seen.fails_for_good => FaultKind::Unable,
            // It broke off.
            _ if seen.failure.is_some() => FaultKind::Passing,
            (_, Some(_)) => FaultKind::Garbled,
            // No request was made: what was set up is wrong.
            (_, None) => FaultKind::Refused,
        };
        Self {
            kind,
            what: described(error, seen),
            retry_after: seen.retry_after,
        }
    }

    /// Whether the object is another than the one that is meant.
    pub(super) fn is_change(&self) -> bool {
        matches!(self.kind, FaultKind::Changed)
    }

    /// As the readers of files know errors.
    pub(super) fn into_io(self) -> io::Error {
        let kind = match self.kind {
            FaultKind::Changed => return io::ErrorKind::StaleNetworkFileHandle.into(),
            FaultKind::NotFound => io::ErrorKind::NotFound,
            FaultKind::Exists => io::ErrorKind::AlreadyExists,
            FaultKind::Refused | FaultKind::NoCredentials => io::ErrorKind::PermissionDenied,
            FaultKind::Unable => io::ErrorKind::Unsupported,
            FaultKind::Garbled => io::ErrorKind::InvalidData,
            FaultKind::Passing => io::ErrorKind::TimedOut,
        };
        io::Error::new(kind, self.what)
    }
}

/// What went wrong, in one line without secrets.
fn described(error: &object_store::Error, seen: &Seen) -> String {
    if seen.ignored_range {
        return "the server sends the whole object when asked for a part, so it cannot be read from there: nginx, Apache and \
                Caddy answer requests for ranges"
            .to_owned();
    }
    if seen.no_credentials {
        return "no credentials were found, in the environment or elsewhere (see docs/REMOTE.md)"
            .to_owned();
    }
    let mut text = String::new();
    match (seen.status, &seen.failure) {
        (Some(status @ 300..), _) => {
            let _ = write!(text, "the server answered {status}");
            if let Some(code) = &seen.code {
                let _ = write!(text, " ({code})");
            }
            match status {
                300..=399 => text.push_str(": it is elsewhere; is the region or the URL right?"),
                401 | 403 => text.push_str(": are the credentials right?"),
                _ => {}
            }
        }
        (_, Some(failure)) => text.push_str(&redacted(failure)),
        _ => {
            let mut cause: Option<&dyn std::error::Error> = Some(error);
            // The innermost says what it is about.
            while let Some(inner) = cause {
                text = redacted(&inner.to_string());
                cause = inner.source();
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(seen: Seen) -> FaultKind {
        let error = object_store::Error::NotFound {
            path: "x".to_owned(),
            source: "404".into(),
        };
        Fault::of(&error, &seen).kind
    }

    #[test]
    fn credentials_that_are_not_there_are_no_object_that_is_not_there() {
        let absent = Seen {
            status: Some(404),
            ..Seen::default()
        };
        assert_eq!(kind_of(absent.clone()), FaultKind::NotFound);
        let unknown = Seen {
            no_credentials: true,
            ..absent
        };
        assert_eq!(kind_of(unknown), FaultKind::NoCredentials);
    }
}
