//! Real servers: `s3s-fs`, which `scripts/object-server` builds, and Debian's nginx. Both serve a directory that a test fills.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::super::{Running, wait_until};
use super::{ACCESS_KEY, SECRET};

/// An object store that speaks S3. Objects are files of its directory, but for what it remembers of them beside.
pub struct S3 {
    pub address: SocketAddr,
    _server: Running,
    own: tempfile::TempDir,
}

impl S3 {
    pub fn start() -> Self {
        let own = tempfile::tempdir().unwrap();
        let root = own.path().join("root");
        fs::create_dir(&root).unwrap();
        let log = own.path().join("log");
        let server = Command::new(object_server())
            .args(["--host", "127.0.0.1", "--port", "0"])
            .args(["--access-key", ACCESS_KEY, "--secret-key", SECRET])
            .arg(&root)
            .env("RUST_LOG", "s3s_fs=info")
            .stdin(Stdio::null())
            .stdout(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let server = Running(server);
        let mut address = None;
        wait_until("the object store", || {
            let said = fs::read_to_string(&log).unwrap();
            let place = said.split_once("running at http://");
            let word = place.and_then(|(_, rest)| {
                rest.split_once(|end: char| end.is_whitespace() || end == ',')
            });
            address = word.and_then(|(word, _)| word.parse().ok());
            address.is_some()
        });
        Self {
            address: address.unwrap(),
            _server: server,
            own,
        }
    }

    /// Where its buckets lie, as directories.
    pub fn root(&self) -> PathBuf {
        self.own.path().join("root")
    }

    pub fn make_bucket(&self, name: &str) {
        fs::create_dir(self.root().join(name)).unwrap();
    }

    /// Puts an object there, in the place of what has its name. As the server does itself, its ETag is written down beside, or
    /// it would hash the whole object for each request.
    pub fn put(&self, bucket: &str, key: &str, bytes: &[u8]) {
        let etag = blake3::hash(bytes).to_hex();
        self.put_as(bucket, key, bytes, &etag[..32]);
    }

    /// The same with another ETag than that of these bytes.
    pub fn put_as(&self, bucket: &str, key: &str, bytes: &[u8], etag: &str) {
        let name = |text: &str| base64_url(text.as_bytes());
        let beside = format!(
            ".bucket-{}.object-{}.internal.json",
            name(bucket),
            name(key)
        );
        put_file(&self.root().join(bucket).join(key), bytes);
        let told = format!("{{\"e_tag\":\"{etag}\"}}");
        put_file(&self.root().join(beside), told.as_bytes());
    }

    /// Takes an object away.
    pub fn remove(&self, bucket: &str, key: &str) {
        fs::remove_file(self.root().join(bucket).join(key)).unwrap();
    }
}

/// A file in the place of another, at once.
pub fn put_file(path: &Path, bytes: &[u8]) {
    let directory = path.parent().unwrap();
    fs::create_dir_all(directory).unwrap();
    let new = tempfile::NamedTempFile::new_in(directory).unwrap();
    fs::write(new.path(), bytes).unwrap();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(new.path(), readable).unwrap();
    new.persist(path).unwrap();
}

/// Base64 in the alphabet for URLs, without padding.
fn base64_url(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let mut padded = [0; 4];
        padded[1..=three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes(padded);
        for place in 0..=three.len() {
            let letter = LETTERS[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(char::from(letter));
        }
    }
    text
}

/// The program that serves objects; built when it is needed first.
fn object_server() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/object-server");
        let output = Command::new(script).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "there is no object store to test with: {said}"
        );
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}

/// A web server.
pub struct Web {
    pub address: SocketAddr,
    _server: Running,
    own: tempfile::TempDir,
}

impl Web {
    pub fn start() -> Self {
        Self::start_with(false)
    }

    /// One that speaks nothing but https, with a certificate of its own, and redirects whoever asks for `/redirected?URL` there.
    pub fn start_secure() -> Self {
        Self::start_with(true)
    }

    fn start_with(secure: bool) -> Self {
        let own = tempfile::tempdir().unwrap();
        fs::create_dir(own.path().join("root")).unwrap();
        // Its workers may be another user.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(own.path(), open).unwrap();
        if secure {
            make_certificate(own.path());
        }
        // Somebody else may take the port that was found free.
        (0..10)
            .find_map(|_| {
                let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                let address = free.local_addr().unwrap();
                drop(free);
                Some((address, Self::start_at(own.path(), address, secure)?))
            })
            .map(|(address, server)| Self {
                address,
                _server: server,
                own,
            })
            .expect("a web server")
    }

    fn start_at(own: &Path, address: SocketAddr, secure: bool) -> Option<Running> {
        let place = own.display();
        let (ssl, certificate) = match secure {
            true => (
                " ssl",
                format!("ssl_certificate {place}/certificate; ssl_certificate_key {place}/key;"),
            ),
            false => ("", String::new()),
        };
        let configuration = format!(
            "daemon off; master_process off; pid {place}/pid; error_log stderr;
            events {{ worker_connections 256; }}
            http {{
                access_log off; types {{ }}
                client_body_temp_path {place}/client; proxy_temp_path {place}/proxy;
                fastcgi_temp_path {place}/fastcgi; uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
                server {{
                    listen {address}{ssl}; root {place}/root;
                    {certificate}
                    location /untold/ {{ etag off; add_header Last-Modified ''; }}
                    location /redirected {{ return 307 $args; }}
                }}
            }}"
        );
        let file = own.join("nginx.conf");
        fs::write(&file, configuration).unwrap();
        let log = own.join("log");
        let started = Command::new("nginx")
            .args(["-e", "stderr", "-p"])
            .arg(own)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn();
        let mut server = Running(started.expect("nginx (scripts/install-packages nginx-light)"));
        let mut ended = false;
        wait_until("the web server", || {
            ended = server.0.try_wait().unwrap().is_some();
            ended || TcpStream::connect(address).is_ok()
        });
        if ended {
            eprintln!("{}", fs::read_to_string(&log).unwrap());
        }
        (!ended).then_some(server)
    }

    /// The directory that is served.
    pub fn root(&self) -> PathBuf {
        self.own.path().join("root")
    }

    /// The certificate that it shows to who speaks https to it.
    pub fn certificate(&self) -> PathBuf {
        self.own.path().join("certificate")
    }
}

/// Makes a certificate that vouches for this machine, and its key.
fn make_certificate(directory: &Path) {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-nodes",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args([
            "-subj",
            "/CN=127.0.0.1",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "key", "-out", "certificate"])
        .current_dir(directory)
        .output();
    let made = made.expect("openssl (scripts/install-packages openssl)");
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{said}");
}
