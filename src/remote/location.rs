//! Where something lies beyond this machine: a URL, and which of its parts may be shown.
//!
//! Passwords, tokens and signatures travel in URLs, as `user:password@` or in the query of a presigned one. Nobody but the
//! requests gets to see them: [`Location`]'s `Display` and `Debug` leave them out, and everything that is logged, shown or
//! handed to the kernel goes through these.

use std::fmt;
use std::path::{Path, PathBuf};

use object_store::path::Path as Key;
use url::Url;

use crate::error::{Error, Result};

/// What is shown in the place of a query.
const NO_QUERY: &str = "?...";

/// Which interface a store is spoken to by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    /// Amazon S3 and what speaks as it does.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
    /// A web server: single objects, no listings.
    Http,
}

/// A URL of an object, or of the prefix of many.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Location {
    protocol: Protocol,
    url: Url,
    /// The whole path, decoded.
    path: Key,
    /// What is asked for in the store: the path, or nothing of a web server's, which is asked for the very URL that was given.
    key: Key,
    /// Whether the URL ends in a slash, or names a whole bucket: a prefix, and no object.
    is_prefix: bool,
}

impl Location {
    /// The location that a command line's word names; `None` if it names a local file. What begins like a URL is one: a local
    /// file of such a name is `./s3://...`.
    ///
    /// # Errors
    /// It begins like a URL and is none that can be used.
    pub(crate) fn in_word(word: &Path) -> Result<Option<Self>> {
        match word.to_str().filter(|text| scheme_of(text).is_some()) {
            Some(text) => Self::parse(text).map(Some),
            None => Ok(None),
        }
    }

    /// Reads a URL.
    ///
    /// # Errors
    /// It is none, or of a kind that is not known.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let refuse = |why: String| Error::unusable(why).in_file(Path::new(&redacted_url(text)));
        let scheme = scheme_of(text).map(str::to_ascii_lowercase);
        let protocol = match scheme.as_deref() {
            Some("s3" | "s3a") => Protocol::S3,
            Some("gs") => Protocol::Google,
            Some("az" | "abfs" | "abfss") => Protocol::Azure,
            Some("http" | "https") => Protocol::Http,
            _ => {
                return Err(refuse(
                    "not a URL that can be read: s3://, gs://, az://, http:// and https:// can"
                        .to_owned(),
                ));
            }
        };
        let mut url = Url::parse(text).map_err(|error| refuse(format!("not a URL: {error}")))?;
        if url.host_str().is_none_or(str::is_empty) {
            return Err(refuse("names no host or bucket".to_owned()));
        }
        if url.password().is_some() || (protocol != Protocol::Azure && !url.username().is_empty()) {
            // The command line is there for everybody to see.
            return Err(refuse(
                "credentials do not belong into a URL: give them in the environment (see docs/REMOTE.md)".to_owned(),
            ));
        }
        if protocol != Protocol::Http {
            // It would be part of a name that others write as it is.
            let odd = [("?", "%3F", url.query()), ("#", "%23", url.fragment())];
            if let Some((letter, written, _)) = odd.iter().find(|(_, _, part)| part.is_some()) {
                return Err(refuse(format!(
                    "has a '{letter}', which means nothing here: in a name it is written {written}"
                )));
            }
        }
        url.set_fragment(None);
        let path = Key::from_url_path(url.path()).map_err(|_| {
            refuse("its path has a part that no object can be asked for by".to_owned())
        })?;
        let key = match protocol {
            Protocol::Http => Key::default(),
            _ => path.clone(),
        };
        let is_prefix = url.path().ends_with('/') || url.path().is_empty();
        Ok(Self {
            protocol,
            url,
            path,
            key,
            is_prefix,
        })
    }

    /// Which interface it is spoken to by.
    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The URL as it is asked for, secrets included. Not to be shown.
    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// The name of the object, or of the prefix without its last slash, in its [store](super::Store): a bucket, or, of a web
    /// server, the URL itself.
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// What names the store among all that are asked in one environment: what its keys are names in.
    pub(super) fn store_name(&self) -> &str {
        match self.protocol {
            Protocol::Http => self.url.as_str(),
            _ => self.url[..url::Position::BeforePath].as_ref(),
        }
    }

    /// Whether it can only be a prefix: the URL ends in a slash, or is a bucket's.
    pub(crate) fn is_prefix(&self) -> bool {
        self.is_prefix
    }

    /// The directory that lies on a web server, if this is one: a URL that ends in a slash, or that of the file called `index` in
    /// it.
    pub(crate) fn web_directory(&self, index: &str) -> Option<Self> {
        if self.protocol != Protocol::Http || self.url.query().is_some() {
            return None;
        }
        if self.is_prefix {
            return Some(self.clone());
        }
        let is_index = self.name() == Some(index);
        let directory = self.url.join(".").ok().filter(|_| is_index)?;
        Self::parse(directory.as_str()).ok()
    }

    /// The last part of its path, decoded; `None` of a bucket's or a host's root.
    pub(crate) fn name(&self) -> Option<&str> {
        self.path.filename()
    }

    /// Its name for messages, which holds no secrets.
    pub(crate) fn shown(&self) -> PathBuf {
        PathBuf::from(self.to_string())
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // There is no password: a URL with one is refused.
        f.write_str(&self.url[..url::Position::AfterPath])?;
        match self.url.query() {
            Some(_) => f.write_str(NO_QUERY),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({self})")
    }
}

/// The scheme of what is written like a URL.
fn scheme_of(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter));
    is_scheme.then_some(scheme)
}

/// A text with nothing left of the URLs in it that may be secret: what stands in front of an `@` of a host, and queries.
pub(super) fn redacted(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find("://") {
        // Parentheses and apostrophes stand in URLs as they are: only a last one is the text's.
        let ends = |letter: char| letter.is_whitespace() || "\"<>".contains(letter);
        let end = rest.get(place..).and_then(|url| url.find(ends));
        let (url, _) = rest.split_at(end.map_or(rest.len(), |end| place + end));
        let url = url.trim_end_matches([')', '\'', ':', ',', ';', '.']);
        let (url, behind) = rest.split_at(url.len().max(place + "://".len()));
        shown.push_str(&redacted_url(url));
        rest = behind;
    }
    shown.push_str(rest);
    shown
}

/// The same of a text that ends in a URL, whatever letters that has.
fn redacted_url(text: &str) -> String {
    let Some((before, url)) = text.split_once("://") else {
        return text.to_owned();
    };
    let (place, query) = match url.split_once(['?', '#']) {
        Some((place, _)) => (place, NO_QUERY),
        None => (url, ""),
    };
    let (host, path) = place.split_at(place.find('/').unwrap_or(place.len()));
    let host = match host.rsplit_once('@') {
        // Of Azure's, the container stands there.
        Some((user, _)) if !user.contains(':') && before.contains("abfs") => host,
        Some((_, host)) => host,
        None => host,
    };
    format!("{before}://{host}{path}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Location {
        Location::parse(text).unwrap()
    }

    #[test]
    fn a_url_names_a_store_and_an_object_in_it() {
        let object = parsed("s3://bucket/a/b%20c.warp");
        assert_eq!(object.protocol(), Protocol::S3);
        assert_eq!(object.key().as_ref(), "a/b c.warp");
        assert_eq!(object.name(), Some("b c.warp"));
        assert!(!object.is_prefix());
        for prefix in ["s3://bucket", "s3://bucket/", "s3://bucket/a/"] {
            assert!(parsed(prefix).is_prefix(), "{prefix}");
        }
        assert_eq!(parsed("gs://b/x").protocol(), Protocol::Google);
        assert_eq!(parsed("az://b/x").protocol(), Protocol::Azure);
        assert_eq!(parsed("https://h/x").protocol(), Protocol::Http);
    }

    #[test]
    fn the_directory_of_a_web_server_is_that_of_its_index() {
        let directory = |text: &str| {
            let found = parsed(text).web_directory("index.json");
            found.map(|found| found.url().to_string())
        };
        for url in ["http://h/a%20b/", "http://h/a%20b/index.json"] {
            assert_eq!(directory(url).as_deref(), Some("http://h/a%20b/"));
        }
        assert_eq!(directory("http://h").as_deref(), Some("http://h/"));
        for other in [
            "http://h/x.warp",
            "http://h/index.json?signature=x",
            "s3://b/",
        ] {
            assert_eq!(directory(other), None, "{other}");
        }
    }

    #[test]
    fn what_begins_like_a_url_is_one_and_nothing_else_is() {
        let word = |text: &str| Location::in_word(Path::new(text));
        for file in [
            "x.warp",
            "./s3://bucket/x",
            "/s3://x",
            "a b://c",
            "://x",
            "s3:/x",
        ] {
            assert!(word(file).unwrap().is_none(), "{file}");
        }
        for refused in [
            "ftp://host/x",
            "s3://",
            "https://user:secret@host/x",
            "s3://b/x?y",
            "s3://b/r#1.txt.warp",
        ] {
            assert!(word(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn no_secret_of_a_url_is_shown() {
        let signed = parsed("https://host/a/x.warp?X-Amz-Signature=abc&sig=abc#abc");
        for shown in [signed.to_string(), format!("{signed:?}")] {
            assert!(
                shown.contains("https://host/a/x.warp?...") && !shown.contains("abc"),
                "{shown}"
            );
        }
        let text = "cannot (http://me:abc@host/x?abc) and https://h/?abc: no";
        assert_eq!(
            redacted(text),
            "cannot (http://host/x?...) and https://h/?...: no"
        );
        let error = Location::parse("https://me:abc@host/x?abc").unwrap_err();
        assert!(!error.to_string().contains("abc"), "{error}");
    }

    #[test]
    fn no_secret_is_shown_behind_a_parenthesis_or_an_apostrophe() {
        let path = "https://host/disk%20(1)'s.img.warp";
        for query in ["Signature=abc", "name=x%20(1)'s&Signature=abc", "'(abc"] {
            let signed = format!("{path}?{query}");
            assert_eq!(parsed(&signed).to_string(), format!("{path}?..."));
            let text = format!("for url ({signed}): at '{signed}'");
            let shown = format!("for url ({path}?...): at '{path}?...'");
            assert_eq!(redacted(&text), shown);
        }
        for letter in ['(', ')', '\'', ' ', '"', '<'] {
            for secret in [
                format!("https://me:a{letter}abc@host/x"),
                format!("https://me@host/x?a{letter}abc"),
            ] {
                let error = Location::parse(&secret).unwrap_err();
                assert!(!error.to_string().contains("abc"), "{error}");
            }
        }
        for odd in ["://", "a://)", "://://x", "a://b:// c"] {
            assert_eq!(redacted(odd), odd);
        }
    }
}
