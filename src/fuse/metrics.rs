//! `--metrics`: a mount's statistics over HTTP, for Prometheus to collect.
//!
//! One thread serves all who ask, none of whom can hold up the mount or its end, or another for more than a moment: nothing is
//! waited for but by poll(2). Requests are short, connections few, and each has a deadline, after which it is closed as it is. Every
//! connection gets one answer. Who asks is not asked who he is; so nothing is told that is not for everybody who can reach
//! the address, names of files least of all.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::exposition::{CONTENT_TYPE, expose};
use super::observation::Observation;
use crate::error::{Error, Result};

/// How long a connection may take, from its beginning to its end.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many connections there are at a time; more of them wait in the kernel.
const MOST_CONNECTIONS: usize = 64;
/// After how long a connection that has not been answered yet gives its place to one that waits.
const MANNERS: Duration = Duration::from_millis(250);
/// The longest request, in bytes.
const LONGEST_REQUEST: usize = 8 << 10;
/// The most headers a request has.
const MOST_HEADERS: usize = 64;
/// How long nothing is accepted after that has failed, for want of descriptors as a rule.
const PAUSE: Duration = Duration::from_millis(100);

const FRONT_PAGE: &str =
    "<!doctype html><title>warpfs</title><p>A warpfs mount. <a href=\"/metrics\">Metrics</a>\n";

/// An address that is listened to.
#[derive(Debug)]
pub(super) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Begins to listen at an address, `HOST:PORT`.
    ///
    /// # Errors
    /// The address is none of this machine's, or taken.
    pub(super) fn bind(address: &str) -> Result<Self> {
        let bound = TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        });
        bound.map_err(|error| {
            let hint = match error.kind() {
                ErrorKind::AddrInUse => {
                    ": another program, or another mount, has it; choose another port"
                }
                _ => "",
            };
            Error::unusable(format!("cannot serve metrics at {address}: {error}{hint}"))
        })
    }

    /// Serves on a thread of its own until the result is dropped.
    ///
    /// # Errors
    /// There can be no thread.
    pub(super) fn serve(self, observation: Observation) -> Result<Service> {
        let failed = |error| Error::io("cannot serve metrics", error);
        let end = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        let end = Arc::new(end);
        tracing::info!("metrics are at http://{}/metrics", self.address);
        let mut server = Server {
            listener: self.listener,
            end: Arc::clone(&end),
            connections: Vec::new(),
            paused_until: None,
            observation,
        };
        let thread = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || server.run())
            .map_err(failed)?;
        Ok(Service {
            end,
            thread: Some(thread),
        })
    }
}

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Service {
    end: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Service {
    fn drop(&mut self) {
        let told = rustix::io::write(&*self.end, &1_u64.to_ne_bytes());
        if let (Ok(_), Some(thread)) = (told, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

struct Server {
    listener: TcpListener,
    end: Arc<OwnedFd>,
    /// The oldest first.
    connections: Vec<Connection>,
    paused_until: Option<Instant>,
    observation: Observation,
}

struct Connection {
    stream: TcpStream,
    begun: Instant,
    request: Vec<u8>,
    response: Vec<u8>,
    /// How much of the response is sent.
    sent: usize,
}

/// How a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    Over,
}

impl Server {
    fn run(&mut self) {
        while self.wait() {
            self.accept();
            let observation = &self.observation;
            let now = Instant::now();
            // Those too whose time is over: what they have sent while this thread could not run is answered, and closing a
            // connection that has not been read to its end would take back what it was sent.
            self.connections.retain_mut(|connection| {
                matches!(connection.go_on(observation), Ok(Progress::Waiting))
                    && now - connection.begun < PATIENCE
            });
        }
    }

    /// Waits until there is something to do; says whether to go on at all.
    fn wait(&mut self) -> bool {
        let now = Instant::now();
        self.paused_until = self.paused_until.filter(|&until| until > now);
        let deadlines = self
            .connections
            .iter()
            .map(|connection| connection.begun + PATIENCE);
        let room_from = self.room_from().filter(|&moment| moment > now);
        let moments = deadlines.chain(self.paused_until).chain(room_from);
        let timeout = moments.min().map(|deadline| {
            let left = deadline.saturating_duration_since(now);
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        let mut waited = vec![PollFd::new(&*self.end, PollFlags::IN)];
        if self.paused_until.is_none() && room_from.is_none() {
            waited.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        for connection in &self.connections {
            let flags = match connection.response.is_empty() {
                true => PollFlags::IN,
                false => PollFlags::OUT,
            };
            waited.push(PollFd::new(&connection.stream, flags));
        }
        match poll(&mut waited, timeout.as_ref()) {
            Ok(_) => waited.first().is_some_and(|end| end.revents().is_empty()),
            Err(rustix::io::Errno::INTR) => true,
            Err(error) => {
                tracing::error!("metrics are no longer served: {error}");
                false
            }
        }
    }

    /// From when on one more connection has a place, if it has not any time.
    fn room_from(&self) -> Option<Instant> {
        let oldest = self.connections.first();
        let full = self.connections.len() >= MOST_CONNECTIONS;
        oldest.filter(|_| full).map(|oldest| oldest.begun + MANNERS)
    }

    /// Takes on those who wait, as far as there is room for them, and no more at a time than there are places.
    fn accept(&mut self) {
        for _ in 0..MOST_CONNECTIONS {
            let now = Instant::now();
            if self.paused_until.is_some() || self.room_from().is_some_and(|from| from > now) {
                return;
            }
            let accepted = self.listener.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok(stream)
            });
            match accepted {
                Ok(stream) => {
                    let mut new = Connection {
                        stream,
                        begun: now,
                        request: Vec::new(),
                        response: Vec::new(),
                        sent: 0,
                    };
                    // Who has asked already is answered, and takes nobody's place.
                    if !matches!(new.go_on(&self.observation), Ok(Progress::Waiting)) {
                        continue;
                    }
                    if self.connections.len() >= MOST_CONNECTIONS {
                        // Its request may have come since it was looked at.
                        let _ = self.connections.remove(0).go_on(&self.observation);
                    }
                    self.connections.push(new);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::debug!("metrics: a connection was not accepted: {error}");
                    self.paused_until = Some(Instant::now() + PAUSE);
                    return;
                }
            }
        }
    }
}

impl Connection {
    /// Reads and writes as much as there is at the moment.
    fn go_on(&mut self, observation: &Observation) -> io::Result<Progress> {
        while self.response.is_empty() {
            let mut block = [0; 1024];
            match self.stream.read(&mut block) {
                Ok(0) => return Ok(Progress::Over),
                Ok(read) => self.request.extend(block.iter().take(read)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(Progress::Waiting);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if let Some(response) = answer(&self.request, || expose(observation.stats())) {
                self.response = response;
            }
        }
        while let Some(rest) = self
            .response
            .get(self.sent..)
            .filter(|rest| !rest.is_empty())
        {
            match self.stream.write(rest) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(Progress::Waiting);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.stream.shutdown(Shutdown::Write)?;
        Ok(Progress::Over)
    }
}

/// The answer to what has come of a request; `None` if more has to come.
fn answer(request: &[u8], metrics: impl FnOnce() -> Result<String>) -> Option<Vec<u8>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let (status, kind, body) = match parsed.parse(request) {
        Ok(httparse::Status::Partial) if request.len() <= LONGEST_REQUEST => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => (
            "431 Request Header Fields Too Large",
            TEXT,
            "too long a request\n".to_owned(),
        ),
        Err(_) => ("400 Bad Request", TEXT, "not HTTP\n".to_owned()),
        Ok(httparse::Status::Complete(_)) => {
            let target = parsed.path.unwrap_or_default();
            let path = target.split('?').next().unwrap_or_default();
            match (parsed.method.unwrap_or_default(), path) {
                ("GET" | "HEAD", "/metrics") => match metrics() {
                    Ok(text) => ("200 OK", CONTENT_TYPE, text),
                    Err(error) => ("500 Internal Server Error", TEXT, format!("{error}\n")),
                },
                ("GET" | "HEAD", "/") => {
                    ("200 OK", "text/html; charset=utf-8", FRONT_PAGE.to_owned())
                }
                ("GET" | "HEAD", _) => {
                    ("404 Not Found", TEXT, "there is only /metrics\n".to_owned())
                }
                _ => (
                    "405 Method Not Allowed\r\nAllow: GET, HEAD",
                    TEXT,
                    "there are only GET and HEAD\n".to_owned(),
                ),
            }
        }
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n\
         Connection: close\r\n\r\n"
    );
    let wants_body = parsed.method != Some("HEAD");
    let body = if wants_body { body } else { String::new() };
    Some([head.into_bytes(), body.into_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(request: &str) -> Option<String> {
        let answer = answer(request.as_bytes(), || Ok("# EOF\n".to_owned()))?;
        let text = String::from_utf8(answer).unwrap();
        Some(text.split(' ').nth(1).unwrap().to_owned())
    }

    #[test]
    fn there_is_one_thing_to_ask_for_and_one_way() {
        let whole = |line: &str| status(&format!("{line}\r\nHost: x\r\n\r\n")).unwrap();
        assert_eq!(whole("GET /metrics HTTP/1.1"), "200");
        assert_eq!(whole("GET /metrics?name=x HTTP/1.0"), "200");
        assert_eq!(whole("GET / HTTP/1.1"), "200");
        assert_eq!(whole("GET /metricsx HTTP/1.1"), "404");
        assert_eq!(whole("GET /../etc/passwd HTTP/1.1"), "404");
        assert_eq!(whole("POST /metrics HTTP/1.1"), "405");
        let head = answer(b"HEAD /metrics HTTP/1.1\r\n\r\n", || {
            Ok("# EOF\n".to_owned())
        });
        let head = String::from_utf8(head.unwrap()).unwrap();
        assert!(head.contains("Content-Length: 6\r\n") && head.ends_with("\r\n\r\n"));
        assert_eq!(whole("\u{1}\u{2}"), "400");
    }

    #[test]
    fn a_request_may_come_in_pieces_but_not_for_ever() {
        assert_eq!(status("GET /met"), None);
        assert_eq!(status("GET /metrics HTTP/1.1\r\nHost: x\r\n"), None);
        let long = "x".repeat(LONGEST_REQUEST);
        assert_eq!(status(&format!("GET /{long}")).unwrap(), "431");
        let headers = "A: b\r\n".repeat(MOST_HEADERS + 1);
        assert_eq!(
            status(&format!("GET / HTTP/1.1\r\n{headers}\r\n")).unwrap(),
            "431"
        );
    }
}
