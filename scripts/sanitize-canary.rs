//! Faults on purpose, for scripts/sanitize to see that they are caught; what to do wrong is the argument.

use std::hint::black_box;

unsafe extern "C" {
    fn read_byte(bytes: *const u8, at: u64) -> u8;
}

fn main() {
    let length = std::env::args().count() * 50;
    let bytes = black_box(vec![1_u8; length]);
    let fault = std::env::args().nth(1);
    // SAFETY: none, but for the last.
    let read = match fault.as_deref() {
        Some("rust") => unsafe { *bytes.as_ptr().add(length) },
        Some("c") => unsafe { read_byte(bytes.as_ptr(), length as u64) },
        Some("freed") => {
            let place = bytes.as_ptr();
            drop(bytes);
            unsafe { *black_box(place) }
        }
        Some("leak") => {
            std::mem::forget(black_box(bytes));
            // So that no register has the place any more.
            black_box((0..100).map(|number| vec![number; 100]).collect::<Vec<_>>()).len() as u8
        }
        _ => unsafe { read_byte(bytes.as_ptr(), length as u64 - 1) },
    };
    println!("read {read}");
}
