//! A link to a server: the tests' proxy, with a delay and a rate, for programs that are told its address.

use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use crate::Result;
use crate::proxy::Proxy;

/// Stands until standard input ends.
pub(crate) fn stand(server: SocketAddr, delay: Duration, rate: u64) -> Result<()> {
    let proxy = Proxy::to(server);
    proxy.set_delay(delay);
    proxy.set_rate(rate);
    let mut output = io::stdout().lock();
    writeln!(
        output,
        "{}",
        json!({ "address": proxy.address.to_string() })
    )?;
    output.flush()?;
    for line in io::stdin().lock().lines() {
        line?;
        let passed = proxy.take_passed();
        let bytes: u64 = passed.iter().map(|request| request.bytes).sum();
        let answer = json!({
            "requests": passed.len(),
            "bytes": bytes,
            "most_at_once": proxy.most_under_way(),
        });
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}
