//! `--metrics`: what a mount has done, in words that Prometheus understands, over real connections. Off unless asked for, for
//! this machine alone unless told otherwise, and nobody who asks holds up another, or the end of the mount.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use common::place::{Place, said, umount};
use common::sources::two_codecs_and_damage;
use common::{Mounted, PATIENCE, is_mounted, wait_until, warpfs};
use rustix::process::{Pid, Signal, kill_process};

fn source() -> tempfile::TempDir {
    two_codecs_and_damage("secret-")
}

/// Where the server says that its metrics are.
fn address(log: &str) -> String {
    let (_, rest) = log.split_once("metrics are at http://").expect(log);
    rest.split('/').next().unwrap().to_owned()
}

/// Asks, and gives the head of the answer and its body.
fn ask(address: &str, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
    (head.to_owned(), body.to_owned())
}

fn get(address: &str, path: &str) -> (String, String) {
    ask(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n"),
    )
}

/// The values of a text of metrics by name and labels. Demands that every one is of a family whose type and meaning are told
/// before it, and that the text is complete.
fn parse(text: &str) -> HashMap<String, f64> {
    let (mut family, mut helped) = (String::new(), String::new());
    let mut values = HashMap::new();
    assert!(text.ends_with("# EOF\n"));
    for line in text.lines().filter(|line| *line != "# EOF") {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["#", "HELP", name, ..] => helped = name.to_owned(),
            ["#", "UNIT", name, unit] => assert!(name.ends_with(unit), "{line}"),
            ["#", "TYPE", name, kind] => {
                assert_eq!(name, helped);
                assert!(
                    ["counter", "gauge", "histogram", "info"].contains(&kind),
                    "{line}"
                );
                family = name.to_owned();
            }
            [sample, value] => {
                let name = sample.split('{').next().unwrap();
                let suffix = name.strip_prefix(&family).expect(line);
                assert!(
                    ["", "_total", "_bucket", "_sum", "_count", "_info"].contains(&suffix),
                    "{line}"
                );
                let before = values.insert(sample.to_owned(), value.parse().unwrap());
                assert!(before.is_none(), "{line}");
            }
            _ => panic!("{line}"),
        }
    }
    values
}

#[test]
fn what_is_collected_is_what_stats_tells_and_names_no_file() {
    let source = source();
    let mounted = Mounted::new(source.path(), &["--metrics", "0"]);
    let address = address(&mounted.logged());
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    fs::read(mounted.path("secret-lz4")).unwrap();
    fs::read(mounted.path("secret-zstd")).unwrap();
    fs::read(mounted.path("damaged")).unwrap_err();
    wait_until("all to be closed", || mounted.stats()["open_files"] == 0);
    let stats = mounted.stats();
    let (head, text) = get(&address, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains("Content-Type: application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    assert!(
        head.contains(&format!("Content-Length: {}", text.len())),
        "{head}"
    );
    let values = parse(&text);
    let expected = |pointer: &str| stats.pointer(pointer).unwrap().as_f64().unwrap();
    for (sample, pointer) in [
        ("reads_total", "/reads"),
        ("read_bytes_total", "/bytes_read"),
        ("cache_lookups_total{result=\"miss\"}", "/cache_misses"),
        ("prefetch_total{outcome=\"read\"}", "/prefetch_hits"),
        (
            "decoded_bytes_total{codec=\"lz4\"}",
            "/codecs/lz4/decoded_bytes",
        ),
        (
            "decoded_units_total{codec=\"zstd\",unit=\"chunk\"}",
            "/codecs/zstd/chunks",
        ),
        (
            "errors_total{request=\"read\",kind=\"damage\"}",
            "/errors/read/damage",
        ),
        ("memory_budget_bytes", "/memory_budget"),
        ("open_files", "/open_files"),
        (
            "read_duration_seconds_count{answered=\"decoded\"}",
            "/latency/decoded/count",
        ),
        (
            "read_duration_seconds_bucket{le=\"+Inf\",answered=\"cached\"}",
            "/latency/cached/count",
        ),
    ] {
        assert_eq!(
            values[&format!("warpfs_{sample}")],
            expected(pointer),
            "{sample}"
        );
    }
    assert!(values["warpfs_errors_total{request=\"read\",kind=\"damage\"}"] > 0.0);
    assert!(values["warpfs_decode_seconds_total{codec=\"lz4\"}"] > 0.0);
    let sum = values["warpfs_read_duration_seconds_sum{answered=\"decoded\"}"];
    assert!(sum > 0.0 && sum < 60.0, "{sum}");
    assert!(
        !text.contains("secret") && !text.contains("damaged.warp"),
        "{text}"
    );
}

#[test]
fn there_is_one_page_beside_and_nothing_else() {
    let source = source();
    let mounted = Mounted::new(source.path(), &["-o", "metrics=:0"]);
    let address = address(&mounted.logged());
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let (head, body) = get(&address, "/");
    assert!(
        head.starts_with("HTTP/1.1 200") && body.contains("href=\"/metrics\""),
        "{head}"
    );
    for (request, status) in [
        ("GET /etc/passwd HTTP/1.1\r\n\r\n", "404"),
        ("GET /../../etc/passwd HTTP/1.1\r\n\r\n", "404"),
        ("DELETE /metrics HTTP/1.1\r\n\r\n", "405"),
        ("\u{16}\u{3}\u{1}\r\n\r\n", "400"),
    ] {
        let (head, _) = ask(&address, request);
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:?}: {head}"
        );
    }
}

#[test]
fn who_says_nothing_holds_up_neither_others_nor_the_end_of_the_mount() {
    let source = source();
    let mut mounted = Mounted::new(source.path(), &["--metrics", "0"]);
    let address = address(&mounted.logged());
    let stuck: Vec<TcpStream> = (0..40)
        .map(|number| {
            let mut stream = TcpStream::connect(&address).unwrap();
            if number % 2 == 0 {
                stream.write_all(b"GET /metrics HT").unwrap();
            }
            stream
        })
        .collect();
    let began = Instant::now();
    for _ in 0..5 {
        let (head, _) = get(&address, "/metrics");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    let stuck_until_the_end = TcpStream::connect(&address).unwrap();
    let output = umount(&mounted.mount_point);
    assert!(output.status.success(), "{}", said(&output));
    let mut status = None;
    wait_until("the server's end", || {
        status = mounted.server.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success());
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    assert!(TcpStream::connect(&address).is_err());
    drop((stuck, stuck_until_the_end));
}

#[test]
fn of_many_who_ask_at_once_all_are_answered() {
    let source = source();
    let mounted = Mounted::new(source.path(), &["--metrics", "127.0.0.1:0"]);
    let address = address(&mounted.logged());
    for _ in 0..3 {
        let mut streams: Vec<_> = (0..100)
            .map(|_| TcpStream::connect(&address).unwrap())
            .collect();
        for stream in &mut streams {
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        }
        for stream in &mut streams {
            let patience = Some(Duration::from_secs(10));
            stream.set_read_timeout(patience).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
        }
    }
}

#[test]
fn who_is_too_slow_is_cut_off() {
    let source = source();
    let mounted = Mounted::new(source.path(), &["--metrics", "0"]);
    let address = address(&mounted.logged());
    let mut stream = TcpStream::connect(&address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(15)))
        .unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    // Neither an answer nor a wait without end.
    assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0);
}

#[test]
fn who_asks_while_the_server_cannot_run_is_answered_and_not_reset() {
    let source = source();
    let mounted = Mounted::new(source.path(), &["--metrics", "0"]);
    let address = address(&mounted.logged());
    let connect = || {
        let stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let mut streams = [connect(), connect()];
    // Both are taken on by the time that somebody else has been answered.
    get(&address, "/");
    let server = Pid::from_child(&mounted.server);
    kill_process(server, Signal::STOP).unwrap();
    let requests = ["GET /metrics HTTP/1.1\r\n\r\n", "GET /metrics HTTP/1.1\r\n"];
    for (stream, request) in streams.iter_mut().zip(requests) {
        stream.write_all(request.as_bytes()).unwrap();
    }
    // Longer than a connection may take.
    std::thread::sleep(Duration::from_secs(6));
    kill_process(server, Signal::CONT).unwrap();
    let answers = streams.each_mut().map(|stream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(answers[0].starts_with("HTTP/1.1 200 ") && answers[0].ends_with("# EOF\n"));
    assert_eq!(answers[1], "");
}

#[test]
fn an_address_that_is_taken_or_none_is_refused_before_anything_is_mounted() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for address in [
        port.clone(),
        format!(":{port}"),
        format!("127.0.0.1:{port}"),
    ] {
        let output = place.mount(&["--metrics", &address]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(
            said(&output).contains("choose another port"),
            "{}",
            said(&output)
        );
        assert!(said(&output).contains(&port), "{}", said(&output));
        assert!(!is_mounted(&place.mount_point()));
    }
    for wrong in ["", "http", "1:2:3", "localhost", "99999", "::1:80"] {
        let output = place.mount(&["--metrics", wrong]);
        assert_eq!(output.status.code(), Some(2), "{wrong}: {}", said(&output));
    }
    drop(taken);
    let output = place.mount(&["--metrics", &port]);
    assert!(output.status.success(), "{}", said(&output));
    let (head, _) = get(&format!("127.0.0.1:{port}"), "/metrics");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(umount(&place.mount_point()).status.success());
    place.wait_for_the_end();
}

#[test]
fn without_the_flag_nothing_listens() {
    let source = source();
    let with = Mounted::new(source.path(), &["--metrics", "0"]);
    let without = Mounted::new(source.path(), &[]);
    assert_eq!(
        (sockets(with.server.id()), sockets(without.server.id())),
        (1, 0)
    );
    let help = warpfs().args(["mount", "--help"]).output().unwrap();
    assert!(said(&help).is_empty());
    assert!(String::from_utf8_lossy(&help.stdout).contains("--metrics"));
}

/// How many network sockets a process has open.
fn sockets(process: u32) -> usize {
    let read = |table: &str| {
        fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap_or_default()
    };
    let tables = [read("tcp"), read("tcp6"), read("udp")].concat();
    let descriptors =
        fs::read_dir(Path::new("/proc").join(process.to_string()).join("fd")).unwrap();
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let inodes = targets.filter_map(|target| {
        let number = target
            .to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?
            .to_owned();
        Some(number)
    });
    inodes
        .filter(|inode| tables.contains(&format!(" {inode} ")))
        .count()
}
