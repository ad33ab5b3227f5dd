//! Promise: https is spoken with servers whose certificate the system, or `SSL_CERT_FILE`, vouches for, and with no other; nobody
//! is led from there to where anybody may read along. Of the stores that speak nothing else, one object each; and through the
//! proxies that the environment names.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

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

/// What is said of a URL that is not read for want of a server that can be trusted, and without trying for as long as jobs do.
fn refused(mut command: Command, url: &str) -> String {
    let began = Instant::now();
    let output = command.args(["verify", "-q", url]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(began.elapsed() < Duration::from_secs(60), "{said}");
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

/// A proxy that connects who asks, and tells what for, for as long as the test takes.
fn tunnel() -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = channel();
    let serve = move |client: TcpStream, tell: &dyn Fn(String)| -> io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        let mut asked = String::new();
        reader.read_line(&mut asked)?;
        let mut line = String::new();
        while reader.read_line(&mut line)? > 2 {
            line.clear();
        }
        let server = TcpStream::connect(asked.split(' ').nth(1).unwrap_or_default())?;
        tell(asked);
        (&client).write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
        let (mut from_server, mut to_client) = (server.try_clone()?, client);
        std::thread::spawn(move || io::copy(&mut from_server, &mut to_client));
        io::copy(&mut reader, &mut &server)?;
        Ok(())
    };
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let tell = tell.clone();
            // Connections may end at any time, from either side.
            std::thread::spawn(move || serve(client?, &|asked| drop(tell.send(asked))));
        }
    });
    (address, told)
}

#[test]
fn proxies_of_the_environment_are_asked_but_for_those_who_are_excepted() {
    let server = server();
    let url = format!("https://{}/bucket/x.warp", server.address);
    let (tunnel, told) = tunnel();
    let mut through_it = trusting(&server);
    through_it
        .env("HTTPS_PROXY", format!("http://{tunnel}"))
        .env_remove("NO_PROXY")
        .env_remove("no_proxy");
    succeeds(through_it, &["verify", "-q", &url]);
    let asked = told.try_recv().unwrap();
    assert!(
        asked.starts_with(&format!("CONNECT {}", server.address)),
        "{asked}"
    );

    let site = Site::new();
    site.put("x.warp", &fs::read(vector("v2-zstd-blake3.warp")).unwrap());
    let mut through_it = warpfs();
    through_it
        .env("HTTP_PROXY", format!("http://{}", site.proxy.address))
        .env_remove("NO_PROXY")
        .env_remove("no_proxy");
    succeeds(
        through_it,
        &["verify", "-q", "http://nowhere.invalid/x.warp"],
    );
    assert!(!site.proxy.take_passed().is_empty());

    let mut past_it = trusting(&server);
    past_it
        .env("HTTPS_PROXY", "http://127.0.0.1:1")
        .env("NO_PROXY", "127.0.0.1");
    succeeds(past_it, &["verify", "-q", &url]);
}
