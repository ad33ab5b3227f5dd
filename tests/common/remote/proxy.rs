//! A proxy for HTTP/1.1 that counts what passes, slows it down, and breaks it on command.
//!
//! Requests on one connection are passed on one after the other, as they came but for what a [`Fault`] does to them. The delay is
//! that of a round trip: it is waited for before a request is passed on. The rate is one for all connections.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long the address may be another's when the server comes back.
const PATIENCE: Duration = Duration::from_secs(20);
/// How much is passed on at a time, in bytes.
const PIECE: usize = 16 << 10;

/// What is done to a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The whole is sent when a part was asked for.
    IgnoreRange,
    /// The body ends after this many bytes, and with it the connection.
    CutBody(usize),
    /// Other bytes of the same length are sent.
    OtherBytes,
    /// Another part of the same length is sent, as if it was the one that was asked for: that of so many bytes behind.
    Shift(u64),
    /// This ETag is told instead of the right one.
    OtherTag(&'static str),
    /// It is answered with a redirect to this place.
    Redirect(String),
    /// It is answered with 503, and the wish to be left alone for so many seconds.
    Throttle(u64),
    /// It is answered with this, whatever it is.
    Answer(u16, &'static str, Vec<u8>),
    /// It is never answered, as long as the proxy stands.
    Hang,
    /// The connection is closed.
    Drop,
    /// The connection is closed when the server has done what it was asked for.
    LoseAnswer,
    /// It is answered with this when the server has done what it was asked for.
    AnswerWhenDone(u16, &'static str),
}

/// Which requests a fault is done to.
pub struct Rule {
    /// The path and query hold this.
    pub path: &'static str,
    /// Those of this method, or of any.
    pub method: Option<&'static str>,
    /// How often; then it is forgotten.
    pub times: usize,
    pub fault: Fault,
}

/// A request that has passed.
#[derive(Debug, Clone)]
pub struct Passed {
    pub method: String,
    pub path: String,
    /// The `Range` it asked for.
    pub range: Option<String>,
    /// The ETag it asked for.
    pub if_match: Option<String>,
    pub status: u16,
    /// How many bytes of the answer's body have passed.
    pub bytes: u64,
}

/// See the module's description.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    listener: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    upstream: SocketAddr,
    gone: AtomicBool,
    delay: AtomicU64,
    /// Bytes a second; 0 for as fast as it goes.
    rate: AtomicU64,
    /// When the bytes that have passed would have, at that rate.
    passed_until: Mutex<Option<Instant>>,
    rules: Mutex<Vec<Rule>>,
    passed: Mutex<Vec<Passed>>,
    under_way: AtomicU64,
    most_under_way: AtomicU64,
    connections: Mutex<HashMap<u64, TcpStream>>,
}

impl Proxy {
    /// Stands in front of a server from now on.
    pub fn to(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            upstream,
            gone: AtomicBool::new(false),
            delay: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            passed_until: Mutex::default(),
            rules: Mutex::default(),
            passed: Mutex::default(),
            under_way: AtomicU64::new(0),
            most_under_way: AtomicU64::new(0),
            connections: Mutex::default(),
        });
        let accepting = Shared::accept(&shared, listener);
        Self {
            address,
            shared,
            listener: Mutex::new(Some(accepting)),
        }
    }

    /// Has each request wait so long.
    pub fn set_delay(&self, delay: Duration) {
        self.shared
            .delay
            .store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// Lets so many bytes of bodies pass in a second, over all connections and either way; 0 for as many as there are.
    pub fn set_rate(&self, bytes: u64) {
        self.shared.rate.store(bytes, Ordering::Relaxed);
    }

    /// Does something to all requests for paths like this, until it is told to stop.
    pub fn always(&self, path: &'static str, fault: Fault) {
        self.rule(Rule {
            path,
            method: None,
            times: usize::MAX,
            fault,
        });
    }

    /// Does something to the next requests for paths like this.
    pub fn times(&self, times: usize, path: &'static str, fault: Fault) {
        self.rule(Rule {
            path,
            method: None,
            times,
            fault,
        });
    }

    /// Adds a rule; of several that fit, the first holds.
    pub fn rule(&self, rule: Rule) {
        lock(&self.shared.rules).push(rule);
    }

    /// Does nothing to requests any more. Those that hang stay so.
    pub fn behave(&self) {
        lock(&self.shared.rules).clear();
    }

    /// Takes the server away: connections end, new ones are refused.
    pub fn vanish(&self) {
        self.shared.gone.store(true, Ordering::SeqCst);
        // To wake who accepts.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = lock(&self.listener).take() {
            accepting.join().unwrap();
        }
        for connection in lock(&self.shared.connections).values() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Brings the server back, at the same address.
    pub fn come_back(&self) {
        let start = Instant::now();
        let listener = loop {
            match TcpListener::bind(self.address) {
                Ok(listener) => break listener,
                Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
            }
            thread::sleep(Duration::from_millis(5));
        };
        self.shared.gone.store(false, Ordering::SeqCst);
        *lock(&self.listener) = Some(Shared::accept(&self.shared, listener));
    }

    /// Waits for what is under way, but not for what hangs: who has an answer may ask before it was noted down.
    fn settle(&self) {
        let start = Instant::now();
        while self.shared.under_way.load(Ordering::SeqCst) > 0
            && start.elapsed() < Duration::from_millis(300)
        {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The requests that have passed since it was asked for them last, in the order in which they were done.
    pub fn take_passed(&self) -> Vec<Passed> {
        self.settle();
        std::mem::take(&mut lock(&self.shared.passed))
    }

    /// How many requests have passed, and are still to be taken, of a method and for paths like this.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.settle();
        let passed = lock(&self.shared.passed);
        let fits = |request: &&Passed| request.method == method && request.path.contains(path);
        passed.iter().filter(fits).count()
    }

    /// The most requests that were ever under way at once.
    pub fn most_under_way(&self) -> u64 {
        self.shared.most_under_way.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.vanish();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The head of a request or an answer.
struct Head {
    first: String,
    fields: Vec<(String, String)>,
}

impl Head {
    /// `None` where the connection ends instead.
    fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let first = line.trim_end().to_owned();
        let mut fields = Vec::new();
        loop {
            line.clear();
            from.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                return Ok(Some(Self { first, fields }));
            };
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().find(|(known, _)| known == name);
        field.map(|(_, value)| value.as_str())
    }

    fn remove(&mut self, name: &str) {
        self.fields.retain(|(known, _)| known != name);
    }

    fn set(&mut self, name: &str, value: String) {
        self.remove(name);
        self.fields.push((name.to_owned(), value));
    }

    fn length(&self) -> Option<u64> {
        self.get("content-length")?.parse().ok()
    }

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        to.write_all(text.as_bytes())
    }
}

impl Shared {
    fn accept(shared: &Arc<Self>, listener: TcpListener) -> JoinHandle<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.gone.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                lock(&shared.connections).insert(number, client.try_clone().unwrap());
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    // Connections may end at any time, from either side.
                    let _ = shared.serve(&client);
                    let _ = client.shutdown(Shutdown::Both);
                    lock(&shared.connections).remove(&number);
                });
            }
        })
    }

    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let upstream = TcpStream::connect(self.upstream)?;
        upstream.set_nodelay(true)?;
        let mut from_client = BufReader::new(client);
        let mut from_server = BufReader::new(&upstream);
        while let Some(request) = Head::read(&mut from_client)? {
            let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_under_way.fetch_max(now, Ordering::Relaxed);
            let outcome = self.pass(
                request,
                &mut from_client,
                client,
                &mut from_server,
                &upstream,
            );
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            if !outcome? {
                break;
            }
        }
        Ok(())
    }

    /// The fault for a request, if there is one.
    fn fault_for(&self, method: &str, path: &str) -> Option<Fault> {
        let mut rules = lock(&self.rules);
        let place = rules.iter().position(|rule| {
            path.contains(rule.path) && rule.method.is_none_or(|wanted| wanted == method)
        })?;
        let rule = &mut rules[place];
        let fault = rule.fault.clone();
        rule.times -= 1;
        if rule.times == 0 {
            rules.remove(place);
        }
        Some(fault)
    }

    /// Passes a request on, and its answer back; says whether the connection goes on.
    fn pass(
        &self,
        mut request: Head,
        mut from_client: impl BufRead,
        mut client: &TcpStream,
        mut from_server: impl BufRead,
        mut server: &TcpStream,
    ) -> io::Result<bool> {
        let mut words = request.first.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let path = words.next().unwrap_or_default().to_owned();
        let mut passed = Passed {
            range: request.get("range").map(str::to_owned),
            if_match: request.get("if-match").map(str::to_owned),
            method,
            path,
            status: 0,
            bytes: 0,
        };
        let mut body = vec![0; request.length().unwrap_or(0) as usize];
        for piece in body.chunks_mut(PIECE) {
            from_client.read_exact(piece)?;
            self.wait_for_rate(piece.len());
        }
        thread::sleep(Duration::from_micros(self.delay.load(Ordering::Relaxed)));

        let fault = self.fault_for(&passed.method, &passed.path);
        let answer = match &fault {
            Some(Fault::Drop) => return Ok(false),
            Some(Fault::Hang) => {
                while !self.gone.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(20));
                }
                return Ok(false);
            }
            Some(Fault::Redirect(place)) => {
                Some((307, format!("location: {place}\r\n"), Vec::new()))
            }
            Some(Fault::Throttle(seconds)) => {
                Some((503, format!("retry-after: {seconds}\r\n"), Vec::new()))
            }
            Some(Fault::Answer(status, fields, body)) => {
                Some((*status, (*fields).to_owned(), body.clone()))
            }
            _ => None,
        };
        if let Some((status, fields, body)) = answer {
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status} So it is\r\ncontent-length: {length}\r\n{fields}\r\n");
            passed.status = status;
            client.write_all(head.as_bytes())?;
            if passed.method != "HEAD" {
                passed.bytes = length as u64;
                client.write_all(&body)?;
            }
            lock(&self.passed).push(passed);
            return Ok(true);
        }
        let range = passed.range.clone();
        match (&fault, range.as_deref().and_then(parse_range)) {
            (Some(Fault::IgnoreRange), _) => request.remove("range"),
            (Some(Fault::Shift(by)), Some((start, end))) => {
                request.set("range", format!("bytes={}-{}", start + by, end + by));
            }
            _ => {}
        }
        request.write(&mut server)?;
        server.write_all(&body)?;
        // The server may send an answer's head and body apart, and wait in between for the head to be acknowledged.
        rustix::net::sockopt::set_tcp_quickack(server, true)?;

        let Some(mut answer) = Head::read(&mut from_server)? else {
            return Ok(false);
        };
        passed.status = answer
            .first
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .unwrap_or(0);
        if matches!(fault, Some(Fault::LoseAnswer)) {
            lock(&self.passed).push(passed);
            return Ok(false);
        }
        if let Some(Fault::AnswerWhenDone(status, fields)) = fault {
            let head = format!("HTTP/1.1 {status} So it is\r\ncontent-length: 0\r\n{fields}\r\n");
            passed.status = status;
            lock(&self.passed).push(passed);
            client.write_all(head.as_bytes())?;
            return Ok(false);
        }
        if let Some(Fault::OtherTag(tag)) = fault {
            answer.set("etag", tag.to_owned());
        }
        if let (Some(Fault::Shift(_)), Some(range)) = (&fault, &range)
            && let Some((_, whole)) = answer
                .get("content-range")
                .and_then(|range| range.split_once('/'))
        {
            let asked = range.trim_start_matches("bytes=");
            answer.set("content-range", format!("bytes {asked}/{whole}"));
        }
        answer.write(&mut client)?;
        let has_body = passed.method != "HEAD" && !matches!(passed.status, 204 | 304);
        let goes_on = if !has_body {
            Ok(true)
        } else if answer.get("transfer-encoding").is_some() {
            let outcome = self.pass_chunks(&mut from_server, client, &mut passed.bytes);
            outcome.map(|()| true)
        } else {
            let length = answer.length().unwrap_or(u64::MAX);
            let outcome = self.pass_bytes(
                &mut from_server,
                server,
                client,
                length,
                fault.as_ref(),
                &mut passed.bytes,
            );
            outcome.map(|whole| whole && length < u64::MAX)
        };
        // One that its client has broken off was a request as well.
        lock(&self.passed).push(passed);
        goes_on
    }

    /// Passes a body on; says whether all of it.
    fn pass_bytes(
        &self,
        from: &mut impl BufRead,
        server: &TcpStream,
        mut to: &TcpStream,
        length: u64,
        fault: Option<&Fault>,
        passed: &mut u64,
    ) -> io::Result<bool> {
        let mut piece = vec![0; PIECE];
        let mut from = from.take(length);
        let mut room = match fault {
            Some(Fault::CutBody(room)) => *room,
            _ => usize::MAX,
        };
        loop {
            let read = from.read(&mut piece)?;
            if read == 0 {
                return Ok(true);
            }
            // It holds for a while only. A server that waits for this would be slower than the way to it.
            rustix::net::sockopt::set_tcp_quickack(server, true)?;
            let sent = &mut piece[..read.min(room)];
            room -= sent.len();
            if matches!(fault, Some(Fault::OtherBytes)) {
                sent.iter_mut().for_each(|byte| *byte ^= 0x5a);
            }
            self.wait_for_rate(sent.len());
            to.write_all(sent)?;
            *passed += sent.len() as u64;
            if room == 0 {
                return Ok(false);
            }
        }
    }

    fn pass_chunks(
        &self,
        from: &mut impl BufRead,
        mut to: &TcpStream,
        passed: &mut u64,
    ) -> io::Result<()> {
        let mut line = String::new();
        loop {
            line.clear();
            from.read_line(&mut line)?;
            let length = u64::from_str_radix(line.trim_end().split(';').next().unwrap_or(""), 16);
            let length = length.map_err(io::Error::other)?;
            to.write_all(line.as_bytes())?;
            let mut chunk = vec![0; length as usize + 2];
            from.read_exact(&mut chunk)?;
            self.wait_for_rate(chunk.len());
            to.write_all(&chunk)?;
            *passed += length;
            if length == 0 {
                return Ok(());
            }
        }
    }

    /// Waits until so many bytes more may pass: they take their time one behind the other, and what was not used is lost but for
    /// a few milliseconds, which is a token bucket.
    fn wait_for_rate(&self, bytes: usize) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let burst = Duration::from_millis(4);
        let now = Instant::now();
        let mut passed_until = lock(&self.passed_until);
        let until = passed_until.unwrap_or(now).max(now - burst) + takes;
        *passed_until = Some(until);
        drop(passed_until);
        thread::sleep(until.saturating_duration_since(now));
    }
}

/// First and last byte of `bytes=FIRST-LAST`.
fn parse_range(range: &str) -> Option<(u64, u64)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}
