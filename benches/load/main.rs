//! The load generator of `scripts/bench`: it reads files in a given pattern and says how fast that went, and it runs the
//! codecs in memory, for the limit that no reader or writer can pass. One line of JSON is the answer.
//!
//! It knows nothing of mounts and caches. What it reads, through what, and what is cached then is the caller's business.

mod limits;
mod link;
mod pattern;
#[path = "../../tests/common/remote/proxy.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the tests' own"
)]
mod proxy;
mod reads;

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use self::pattern::Pattern;
use self::reads::{ReadPlan, Sharing};

/// What can go wrong is told to whoever runs the benchmark, and ends it.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
#[command(about = "Reads files in a pattern, or runs codecs in memory, and says how fast")]
enum Command {
    /// Read files with positioned reads
    Read {
        #[arg(long, value_enum, default_value_t = PatternName::Random)]
        pattern: PatternName,
        /// Bytes from the start of one read to the start of the next, with the pattern "stride"
        #[arg(long, default_value_t = 256 << 10)]
        stride: u64,
        /// Bytes to read at a time
        #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
        block: u64,
        /// How many read at once
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
        readers: u64,
        /// How many reads all readers make together, at most
        #[arg(long, default_value_t = u64::MAX)]
        reads: u64,
        /// After how many seconds every reader stops, at the latest
        #[arg(long)]
        seconds: Option<f64>,
        /// What random offsets are made from: the same seed gives the same ones
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Random reads have different blocks of so many bytes, aligned ones, all to themselves
        #[arg(long, default_value_t = 0)]
        apart: u64,
        /// Random reads are within so many bytes of a file's beginning
        #[arg(long, default_value_t = u64::MAX)]
        within: u64,
        /// One descriptor for all readers of a file, rather than one each
        #[arg(long)]
        one_descriptor: bool,
        /// One thread makes the readers' reads in turn, rather than a thread each
        #[arg(long)]
        in_turn: bool,
        /// Files to read: random reads are spread over all of them, other readers take one each
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Encode a file's chunks in memory and throw the result away
    Encode {
        #[arg(long, value_enum)]
        codec: CodecName,
        /// Bytes of a chunk
        #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
        chunk_size: u64,
        /// Zstandard's level
        #[arg(long, default_value_t = 3)]
        zstd_level: i32,
        #[arg(long)]
        threads: usize,
        /// Compute BLAKE3 of the chunks as well
        #[arg(long)]
        hash: bool,
        file: PathBuf,
    },
    /// Stand in front of an HTTP server, until standard input ends, as a link of a delay and a rate. Its address is the first line
    /// of the answer; for each line of input, what has passed since the last one
    Link {
        /// The server's address and port
        server: SocketAddr,
        /// For how long each request waits, in milliseconds
        #[arg(long, default_value_t = 0)]
        delay: u64,
        /// Bytes a second of all connections together; 0 for as many as there are
        #[arg(long, default_value_t = 0)]
        rate: u64,
    },
    /// Decode a packed file's chunks in memory and throw the result away
    Decode {
        #[arg(long)]
        threads: usize,
        /// Compute BLAKE3 of the chunks as well
        #[arg(long)]
        hash: bool,
        file: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PatternName {
    Random,
    Forward,
    Reverse,
    Stride,
}

/// The codecs whose limits are of interest.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum CodecName {
    Zstd,
    Lz4,
}

fn main() -> Result<()> {
    // What `cargo bench` says to a benchmark; this is half of one.
    if std::env::args().nth(1).as_deref() == Some("--bench") {
        println!("scripts/bench runs this with what it needs");
        return Ok(());
    }
    let answer = match Command::parse() {
        Command::Read {
            pattern,
            stride,
            block,
            readers,
            reads,
            seconds,
            seed,
            apart,
            within,
            one_descriptor,
            in_turn,
            files,
        } => ReadPlan {
            pattern: match pattern {
                PatternName::Random => Pattern::Random {
                    seed,
                    apart,
                    within,
                },
                PatternName::Forward => Pattern::Forward,
                PatternName::Reverse => Pattern::Reverse,
                PatternName::Stride => Pattern::Stride(stride),
            },
            block,
            readers,
            reads,
            time: seconds.map(Duration::try_from_secs_f64).transpose()?,
            sharing: Sharing {
                one_descriptor,
                one_thread: in_turn,
            },
            files,
        }
        .run()?,
        Command::Encode {
            codec,
            chunk_size,
            zstd_level,
            threads,
            hash,
            file,
        } => limits::encode(
            &file,
            codec,
            usize::try_from(chunk_size)?,
            zstd_level,
            threads,
            hash,
        )?,
        Command::Link {
            server,
            delay,
            rate,
        } => {
            return link::stand(server, Duration::from_millis(delay), rate);
        }
        Command::Decode {
            threads,
            hash,
            file,
        } => limits::decode(&file, threads, hash)?,
    };
    println!("{answer}");
    Ok(())
}
