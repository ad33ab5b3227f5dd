//! Credentials for S3 as its own tools keep them: in `~/.aws/credentials` and `~/.aws/config`, by profiles.
//!
//! Keys, region and endpoint of the profile that `AWS_PROFILE` names, or of `default`. What the environment says goes first. A
//! profile that names a role to be assumed or a single sign-on is passed over: those take a conversation with other services.

use std::collections::HashMap;
use std::env;
use std::path::PathBuf;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};

/// What these files call what the builder has other names for.
const KEYS: [(&str, AmazonS3ConfigKey); 5] = [
    ("aws_access_key_id", AmazonS3ConfigKey::AccessKeyId),
    ("aws_secret_access_key", AmazonS3ConfigKey::SecretAccessKey),
    ("aws_session_token", AmazonS3ConfigKey::Token),
    ("region", AmazonS3ConfigKey::Region),
    ("endpoint_url", AmazonS3ConfigKey::Endpoint),
];

/// Adds what the environment has not said.
pub(super) fn complete(mut builder: AmazonS3Builder) -> AmazonS3Builder {
    let found = found();
    // Keys belong together: those of two places would be another's.
    let has_keys = builder
        .get_config_value(&AmazonS3ConfigKey::AccessKeyId)
        .is_some()
        || env::var_os("AWS_WEB_IDENTITY_TOKEN_FILE").is_some();
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
    builder
}

/// What the files say of the profile.
fn found() -> HashMap<String, String> {
    let profile = env::var("AWS_PROFILE").unwrap_or_else(|_| "default".to_owned());
    let mut found = HashMap::new();
    let files = [
        ("AWS_CONFIG_FILE", "config"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
    ];
    for (variable, name) in files {
        let usual = || Some(PathBuf::from(env::var_os("HOME")?).join(".aws").join(name));
        let path = env::var_os(variable).map(PathBuf::from).or_else(usual);
        if let Some(text) = path.and_then(|path| std::fs::read_to_string(path).ok()) {
            found.extend(section(&text, &profile));
        }
    }
    found
}

/// The settings of a profile in such a file.
fn section(text: &str, profile: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
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
        } else if inside
            && !line.starts_with([' ', '\t', '#', ';'])
            && let Some((name, value)) = line.split_once('=')
        {
            found.insert(name.trim().to_owned(), value.trim().to_owned());
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
        let default = section(text, "default");
        assert_eq!(default["aws_access_key_id"], "A");
        assert_eq!(default["aws_secret_access_key"], "S=S");
        assert_eq!(default.get("region"), None);
        let other = section(text, "other");
        assert_eq!(other["region"], "eu-central-1");
        assert_eq!(other.get("endpoint_url"), None);
        assert_eq!(section(text, "profile-like")["region"], "mars-1");
        assert!(section(text, "third").is_empty());
    }
}
