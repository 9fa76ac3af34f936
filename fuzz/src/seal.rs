//! The key header of an encrypted volume, and the line that hands a key from process to process. Opening a header is not tried:
//! that is other projects' arithmetic, made slow on purpose; how slow a header may ask for is checked when it is read.

use sublet_seal::{Header, HeaderError, Kind, Unlock};
use sublet_types::SealText;

/// Bytes of a header.
const SIZE: usize = 256;

/// A header as it is stored, as text, or a line.
pub fn header(input: &[u8]) -> bool {
    let mut was_taken = false;
    match Header::decode(input) {
        Ok(header) => {
            assert_eq!(input.get(..SIZE), Some(&header.bytes()[..]));
            assert_eq!(Header::decode(header.bytes()).as_ref(), Ok(&header));
            let text = header.to_string();
            assert_eq!(Header::parse(&text).as_ref(), Ok(&header));
            // The manager keeps it as such a text.
            assert!(text.parse::<SealText>().is_ok(), "{text}");
            assert_eq!(header.id()[..], input[16..32]);
            let cost = |at: usize| u32::from_le_bytes([input[at], input[at + 1], input[at + 2], input[at + 3]]);
            assert!(cost(40) <= 256 << 10 && cost(44) <= 16 && cost(48) <= 16, "it asks for too much");
            was_taken = true;
        }
        Err(error) => assert!(matches!(error, HeaderError::None | HeaderError::Damaged(_) | HeaderError::Newer(_))),
    }
    if let Ok(text) = std::str::from_utf8(input) {
        if let Ok(header) = Header::parse(text) {
            assert_eq!(header.to_string(), text);
            was_taken = true;
        }
        if let Ok(unlock) = Unlock::from_line(text) {
            let line = unlock.to_line();
            assert!(Unlock::from_line(&line).as_ref() == Ok(&unlock) && line.trim_end() == text.trim_end());
            was_taken = true;
        }
    }
    was_taken
}

pub fn mend(input: &mut [u8]) {
    if let Some(header) = input.get_mut(..SIZE) {
        let (body, sum) = header.split_at_mut(SIZE - 4);
        sum.copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    }
}

/// A header with nothing sensible in it that is random in a real one: it reads well, and nothing opens it.
fn plain(kind: u32, serial: u64, cost: [u32; 3]) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    bytes[..8].copy_from_slice(b"SubletSl");
    bytes[8] = 1;
    bytes[12..16].copy_from_slice(&kind.to_le_bytes());
    bytes[16..32].fill(0x11);
    bytes[32..40].copy_from_slice(&serial.to_le_bytes());
    bytes[40..52].copy_from_slice(&cost.map(u32::to_le_bytes).concat());
    bytes[64..108].fill(0x22);
    bytes[112..192].fill(0x33);
    mend(&mut bytes);
    bytes
}

pub fn seeds() -> Vec<Vec<u8>> {
    let usual = plain(1, 1, [64 << 10, 3, 4]);
    let text = Header::decode(&usual).map(|header| header.to_string()).unwrap_or_default();
    let lines = [Unlock::passphrase("sesame"), Unlock::key_file(&[7; 32])];
    let lines = lines.into_iter().flatten().map(|unlock: Unlock| {
        assert!(matches!(unlock.kind(), Kind::Passphrase | Kind::KeyFile));
        unlock.to_line().as_bytes().to_vec()
    });
    let headers = [usual, plain(2, u64::MAX, [256 << 10, 16, 16]), plain(1, 2, [64, 1, 1]), text.into_bytes()];
    headers.into_iter().chain(lines).collect()
}
