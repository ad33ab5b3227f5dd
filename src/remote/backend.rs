//! What the library that speaks to the stores has to be told, from a location and the environment.
//!
//! Credentials are found where the stores' own tools find them: in the environment, in the files and from the services it
//! names, and from the machine's own role. `docs/REMOTE.md` lists them.

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::ClientConfigKey;
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::list::PaginatedListStore;
use object_store::multipart::MultipartStore;
use object_store::{ObjectStore, RetryConfig};
use serde_json::Value;
use url::{Host, Url};

use super::location::{Location, Protocol};
use super::profile;
use super::wire::Connector;

/// A store, as far as it can do each of these.
#[derive(Clone)]
pub(super) struct Backend {
    /// Whose store it is, as far as that is not in a location but in the environment: two of one name need have nothing in common.
    pub(super) place: String,
    pub(super) objects: Arc<dyn ObjectStore>,
    /// Lists objects page by page.
    pub(super) pages: Option<Arc<dyn PaginatedListStore>>,
    /// Takes objects part by part.
    pub(super) parts: Option<Arc<dyn MultipartStore>>,
}

/// Makes one of these of what has all three interfaces.
macro_rules! backend {
    ($place:expr, $builder:expr) => {{
        let place = $place;
        let store = Arc::new($builder.build()?);
        Backend {
            place,
            objects: store.clone(),
            pages: Some(store.clone()),
            parts: Some(store),
        }
    }};
}

impl Backend {
    /// The store that a location lies in.
    pub(super) fn of(location: &Location, mut connector: Connector) -> object_store::Result<Self> {
        // Whoever asks retries, and knows until when.
        let retry = RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        };
        let url = location.url();
        let bucket = url.host_str().unwrap_or_default();
        Ok(match location.protocol() {
            Protocol::S3 => {
                let builder = profile::complete(AmazonS3Builder::from_env())?
                    .with_bucket_name(bucket)
                    .with_retry(retry);
                let machine = [
                    AmazonS3ConfigKey::MetadataEndpoint,
                    AmazonS3ConfigKey::ContainerCredentialsFullUri,
                ];
                let machine = machine.iter().filter_map(|key| {
                    let url = builder.get_config_value(key)?;
                    authority(&url)
                });
                connector.machine = machine.collect();
                let builder = builder.with_http_connector(connector);
                let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
                    .iter()
                    .find_map(|key| builder.get_config_value(key));
                // In plain text only on this machine, or if AWS_ALLOW_HTTP says so.
                let local = endpoint.as_deref().is_some_and(is_loopback);
                let builder = if local {
                    builder.with_allow_http(true)
                } else {
                    builder
                };
                // Amazon's own, where none is named, have bucket names of their own in some parts of the world.
                let region = || builder.get_config_value(&AmazonS3ConfigKey::Region);
                backend!(endpoint.or_else(region).unwrap_or_default(), builder)
            }
            Protocol::Google => {
                let builder = GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(bucket)
                    .with_retry(retry)
                    .with_http_connector(connector);
                backend!(google_endpoint(&builder).unwrap_or_default(), builder)
            }
            Protocol::Azure => {
                let builder = MicrosoftAzureBuilder::from_env()
                    .with_url(url.as_str())
                    .with_retry(retry);
                let machine = builder.get_config_value(&AzureConfigKey::MsiEndpoint);
                connector.machine = machine.iter().filter_map(|url| authority(url)).collect();
                let place = [
                    AzureConfigKey::AccountName,
                    AzureConfigKey::Endpoint,
                    AzureConfigKey::UseFabricEndpoint,
                    AzureConfigKey::UseEmulator,
                ];
                let place = place.map(|key| builder.get_config_value(&key).unwrap_or_default());
                backend!(place.join(" "), builder.with_http_connector(connector))
            }
            Protocol::Http => {
                let allow_http = (url.scheme() == "http").to_string();
                let mut base = url.clone();
                if let Ok(mut segments) = base.path_segments_mut() {
                    segments.pop_if_empty();
                }
                let store = HttpBuilder::new()
                    .with_url(base.as_str())
                    .with_config(ClientConfigKey::AllowHttp, allow_http)
                    .with_retry(retry)
                    .with_http_connector(connector);
                Backend {
                    place: String::new(),
                    objects: Arc::new(store.build()?),
                    pages: None,
                    parts: None,
                }
            }
        })
    }
}

/// Another server than Google's own, if the environment names one, or the file of credentials that it names.
fn google_endpoint(builder: &GoogleCloudStorageBuilder) -> Option<String> {
    let named = builder.get_config_value(&GoogleConfigKey::BaseUrl);
    named.or_else(|| {
        let file = || {
            let path = builder.get_config_value(&GoogleConfigKey::ServiceAccount)?;
            fs::read_to_string(path).ok()
        };
        let key = builder.get_config_value(&GoogleConfigKey::ServiceAccountKey);
        let key: Value = serde_json::from_str(&key.or_else(file)?).ok()?;
        key.get("gcs_base_url")?.as_str().map(str::to_owned)
    })
}

/// A URL's host, with its port if it is not the usual one.
fn authority(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    Some(url.authority().to_owned())
}

/// Whether a URL's host is this machine.
fn is_loopback(url: &str) -> bool {
    let url = Url::parse(url).ok();
    match url.as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::from(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::from(address).is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_told_from_others() {
        for local in [
            "http://127.0.0.1:9000",
            "http://localhost/x",
            "http://[::1]:1",
        ] {
            assert!(is_loopback(local), "{local}");
        }
        for other in [
            "http://10.0.0.1",
            "http://localhost.example",
            "https://s3.amazonaws.com",
            "x",
        ] {
            assert!(!is_loopback(other), "{other}");
        }
    }
}
