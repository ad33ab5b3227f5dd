//! Promise: https is spoken with servers whose certificate the system, or `SSL_CERT_FILE`, vouches for, and with no other; nobody
//! is led from there to where anybody may read along. Of the stores that speak nothing else, one object each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::remote::servers::{Web, put_file};
use common::remote::{Site, succeeds};
use common::{Mounted, mixed, vector, warpfs};

/// A server with `bucket/x.warp`.
fn server() -> Web {
    let server = Web::start_secure();
    let packed = fs::read(vector("v2-zstd-blake3.warp")).unwrap();
    put_file(&server.root().join("bucket/x.warp"), &packed);
    server
}

/// The program, in an environment in which nothing but this server's certificate is trusted.
fn trusting(server: &Web) -> Command {
    let mut command = warpfs();
    command
        .env("SSL_CERT_FILE", server.certificate())
        .env_remove("SSL_CERT_DIR");
    command
}

/// What is said of a URL that is not mounted for want of a server that can be trusted. Jobs would try for longer.
fn refused(mut command: Command, url: &str) -> String {
    let mount_point = tempfile::tempdir().unwrap();
    let output = command
        .args(["mount", "-f", "--remote-timeout", "1", url])
        .arg(mount_point.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn a_server_whose_certificate_is_trusted_is_read_by_jobs_and_mounts() {
    let server = server();
    let url = format!("https://{}/bucket/x.warp", server.address);
    succeeds(trusting(&server), &["verify", "-q", &url]);
    let mounted = Mounted::by(trusting(&server), Path::new(&url), &[]);
    assert!(fs::read(mounted.path("x")).unwrap() == mixed());
}

#[test]
fn a_server_whose_certificate_nobody_vouches_for_is_refused_in_words() {
    let server = server();
    let url = format!("https://{}/bucket/x.warp", server.address);
    // Not by the system, and not as a name that it is not for.
    let other_name = url.replace("127.0.0.1", "localhost");
    let mut by_the_system = warpfs();
    by_the_system
        .env_remove("SSL_CERT_FILE")
        .env_remove("SSL_CERT_DIR");
    for (command, url) in [(by_the_system, url), (trusting(&server), other_name)] {
        let said = refused(command, &url);
        assert!(said.contains("certificate"), "{said}");
    }
}

#[test]
fn a_redirect_from_https_is_followed_to_https_and_not_to_http() {
    let server = server();
    let site = Site::new();
    site.put("x.warp", &fs::read(vector("v2-zstd-blake3.warp")).unwrap());
    let redirected = |place: &str| format!("https://{}/redirected?{place}", server.address);
    let secure = redirected(&format!("https://{}/bucket/x.warp", server.address));
    succeeds(trusting(&server), &["verify", "-q", &secure]);
    let plain = redirected(site.url("x.warp").to_str().unwrap());
    let said = refused(trusting(&server), &plain);
    assert!(site.proxy.take_passed().is_empty(), "{said}");
}

#[test]
fn objects_of_the_stores_that_speak_https_alone_are_read() {
    let server = server();
    let endpoint = format!("https://{}", server.address);
    for (url, environment) in [
        (
            "gs://bucket/x.warp",
            [
                ("GOOGLE_BASE_URL", &*endpoint),
                ("GOOGLE_SKIP_SIGNATURE", "true"),
            ]
            .as_slice(),
        ),
        (
            "az://bucket/x.warp",
            &[
                ("AZURE_STORAGE_ENDPOINT", &endpoint),
                ("AZURE_STORAGE_ACCOUNT_NAME", "somebody"),
                ("AZURE_SKIP_SIGNATURE", "true"),
            ],
        ),
        (
            "s3://bucket/x.warp",
            &[
                ("AWS_ENDPOINT_URL", &endpoint),
                ("AWS_REGION", "us-east-1"),
                ("AWS_SKIP_SIGNATURE", "true"),
            ],
        ),
    ] {
        let mut command = trusting(&server);
        command.envs(environment.iter().copied());
        let mounted = Mounted::by(command, Path::new(url), &[]);
        assert!(fs::read(mounted.path("x")).unwrap() == mixed(), "{url}");
    }
}
