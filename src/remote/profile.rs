//! Credentials for S3 as its own tools keep them: in `~/.aws/credentials` and `~/.aws/config`, by profiles.
//!
//! Keys, region and endpoint of the profile that `AWS_PROFILE` names, or of `default`. What the environment says goes first. A
//! profile that names a role to be assumed or a single sign-on is passed over: those take a conversation with other services.

use std::collections::HashMap;
use std::env;
use std::path::PathBuf;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};

/// The profile that is meant where none is named.
const DEFAULT: &str = "default";
/// What these files call what the builder has other names for.
const KEYS: [(&str, AmazonS3ConfigKey); 5] = [
    ("aws_access_key_id", AmazonS3ConfigKey::AccessKeyId),
    ("aws_secret_access_key", AmazonS3ConfigKey::SecretAccessKey),
    ("aws_session_token", AmazonS3ConfigKey::Token),
    ("region", AmazonS3ConfigKey::Region),
    ("endpoint_url", AmazonS3ConfigKey::Endpoint),
];

/// Adds what the environment has not said.
///
/// # Errors
/// It names a profile that there is not, and says nothing else of who asks: the machine would be asked, which is not what was meant.
pub(super) fn complete(mut builder: AmazonS3Builder) -> object_store::Result<AmazonS3Builder> {
    let named = env::var("AWS_PROFILE").unwrap_or_default();
    let profile = match named.as_str() {
        "" => DEFAULT,
        named => named,
    };
    let found = found(profile);
    // Keys belong together: those of two places would be another's.
    let has_keys = builder
        .get_config_value(&AmazonS3ConfigKey::AccessKeyId)
        .is_some()
        || env::var_os("AWS_WEB_IDENTITY_TOKEN_FILE").is_some();
    if found.is_none() && !has_keys && profile != DEFAULT {
        let what = format!("no profile '{profile}' in ~/.aws/config or ~/.aws/credentials");
        return Err(object_store::Error::Generic {
            store: "S3",
            source: what.into(),
        });
    }
    let found = found.unwrap_or_default();
    for (name, key) in KEYS {
        let is_key = name.starts_with("aws_");
        let is_set = match key {
            AmazonS3ConfigKey::Endpoint => {
                let s3 = builder.get_config_value(&AmazonS3ConfigKey::S3Endpoint);
                s3.or(builder.get_config_value(&key)).is_some()
            }
            key => builder.get_config_value(&key).is_some(),
        };
        if let Some(value) = found.get(name).filter(|_| !(is_set || is_key && has_keys)) {
            builder = builder.with_config(key, value);
        }
    }
    Ok(builder)
}

/// What the files say of a profile; `None` if neither has it.
fn found(profile: &str) -> Option<HashMap<String, String>> {
    let mut found: Option<HashMap<_, _>> = None;
    let files = [
        ("AWS_CONFIG_FILE", "config"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
    ];
    for (variable, name) in files {
        let usual = || Some(PathBuf::from(env::var_os("HOME")?).join(".aws").join(name));
        let path = env::var_os(variable).map(PathBuf::from).or_else(usual);
        let text = path.and_then(|path| std::fs::read_to_string(path).ok());
        if let Some(settings) = text.and_then(|text| section(&text, profile)) {
            found.get_or_insert_default().extend(settings);
        }
    }
    found
}

/// The settings of a profile in such a file, if that has it.
fn section(text: &str, profile: &str) -> Option<HashMap<String, String>> {
    let mut found: Option<HashMap<_, _>> = None;
    let mut inside = false;
    for line in text.lines() {
        if let Some(name) = line
            .trim()
            .strip_prefix('[')
            .and_then(|line| line.split_once(']'))
            .map(|(name, _)| name.trim())
        {
            // In the one file they are called so, in the other not.
            let other = name
                .strip_prefix("profile")
                .filter(|name| name.starts_with([' ', '\t']));
            let name = other.map_or(name, str::trim);
            inside = name == profile;
            if inside {
                found.get_or_insert_default();
            }
        } else if inside
            && !line.starts_with([' ', '\t', '#', ';'])
            && let Some((name, value)) = line.split_once('=')
        {
            let settings = found.get_or_insert_default();
            settings.insert(name.trim().to_owned(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_found_in_both_files_ways() {
        let text = "\
[default]
aws_access_key_id = A
aws_secret_access_key=S=S
# region = no
[profile-like]
region = mars-1
[profile other]
region = eu-central-1
s3 =
    endpoint_url = nested
";
        let section = |profile| section(text, profile);
        let default = section("default").unwrap();
        assert_eq!(default["aws_access_key_id"], "A");
        assert_eq!(default["aws_secret_access_key"], "S=S");
        assert_eq!(default.get("region"), None);
        let other = section("other").unwrap();
        assert_eq!(other["region"], "eu-central-1");
        assert_eq!(other.get("endpoint_url"), None);
        assert_eq!(section("profile-like").unwrap()["region"], "mars-1");
        assert_eq!(section("third"), None);
    }
}
