//! Compresses an f16 cache from Rust: a prompt of 1,000 tokens, then 200 more, one at a time.
use lagkv::{Compressor, Policy};

const HEADS: usize = 4;
const CHANNELS: usize = 64;

/// Your engine writes keys and values here: n rows of each head from row `at` on.
fn append(rows: &mut [u16], at: usize, n: usize, state: &mut u32) {
    let capacity = rows.len() / (HEADS * CHANNELS);
    for head in 0..HEADS {
        let first = (head * capacity + at) * CHANNELS;
        for x in &mut rows[first..first + n * CHANNELS] {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *x = 0x3800 + (*state >> 21) as u16; // f16 numbers from 0.5 to 2
        }
    }
}

fn main() -> Result<(), String> {
    let policy = Policy::parse("lagkv:lag=64,ratio=0.25")?;
    let mut compressor = Compressor::new()?;
    let capacity = policy.peak_rows(1000, 1200);
    let mut keys = vec![0; HEADS * capacity * CHANNELS];
    let mut values = keys.clone();
    let (mut tokens, mut state) = (0, 1);
    for n in std::iter::once(1000).chain(std::iter::repeat(1).take(200)) {
        append(&mut keys, tokens, n, &mut state);
        append(&mut values, tokens, n, &mut state);
        tokens += n; // attention uses them, then:
        tokens = compressor.compress(&policy, &mut keys, &mut values, HEADS, CHANNELS, tokens)?;
    }
    println!("{tokens} rows of {capacity} in use; the next token has position {}", compressor.seen());

    let refused = Policy::parse("lagkv:ratio=2").err();
    assert_eq!(refused.as_deref(), Some("lagkv: ratio=2: must be above 0 and at most 1"));
    Ok(())
}
