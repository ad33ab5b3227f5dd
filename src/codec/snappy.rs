//! Snappy in its raw form: the length as a varint, then the elements.

mod stream;

use snap::raw::{self, Encoder, decompress_len, max_compress_len};

use super::{cannot_encode, damaged, larger_than, shorter};
use crate::error::Result;
use crate::format::Codec;

pub(super) use self::stream::Decoder;

pub(super) fn decode_into(payload: &[u8], output: &mut [u8]) -> Result<()> {
    // The decoder takes a longer buffer than the payload needs, so the lengths are compared first.
    let announced = output.len();
    let found = decompress_len(payload).map_err(|error| damaged(Codec::Snappy, error))?;
    if payload.is_empty() {
        return Err(damaged(Codec::Snappy, "the payload is empty"));
    }
    if found > announced {
        return Err(larger_than(Codec::Snappy, announced as u64));
    }
    if found < announced {
        return Err(shorter(Codec::Snappy, announced as u64, found as u64));
    }
    raw::Decoder::new()
        .decompress(payload, output)
        .map_err(|error| damaged(Codec::Snappy, error))?;
    Ok(())
}

pub(super) fn decoded_len(beginning: &[u8]) -> Option<u64> {
    match decompress_len(beginning) {
        Ok(len) if !beginning.is_empty() => Some(len as u64),
        _ => None,
    }
}

pub(super) fn measure(payload: &[u8], limit: u64) -> Result<u64> {
    let told = decoded_len(payload).ok_or_else(|| damaged(Codec::Snappy, "no length in front"))?;
    if told > limit {
        return Err(larger_than(Codec::Snappy, limit));
    }
    let found = stream::elements_len(payload)?;
    match found == told {
        true => Ok(told),
        false => Err(damaged(
            Codec::Snappy,
            format!("the payload tells {told} bytes and holds {found}"),
        )),
    }
}

pub(super) fn encode(input: &[u8], output: &mut Vec<u8>) -> Result<()> {
    let bound = max_compress_len(input.len());
    if bound == 0 {
        return Err(cannot_encode(Codec::Snappy, "a chunk of more than 3.6 GiB"));
    }
    output.resize(bound, 0);
    let written = Encoder::new()
        .compress(input, output)
        .map_err(|error| cannot_encode(Codec::Snappy, error))?;
    output.truncate(written);
    Ok(())
}
