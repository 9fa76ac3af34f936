//! Little-endian fields at fixed offsets. Lengths are checked before parsing, so a field outside reads as zero and is never
//! reached; nothing here panics on foreign bytes.

use sublet_types::Name;

/// A structure being built: every byte that is not set stays zero (reserved).
pub(crate) struct Put<'a>(pub(crate) &'a mut [u8]);

impl Put<'_> {
    pub(crate) fn bytes(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        if let Some(field) = self.0.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        } else {
            debug_assert!(false, "a field lies in its structure");
        }
        self
    }

    pub(crate) fn u8(&mut self, at: usize, value: u8) -> &mut Self {
        self.bytes(at, &[value])
    }

    pub(crate) fn u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.bytes(at, &value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, at: usize, value: u64) -> &mut Self {
        self.bytes(at, &value.to_le_bytes())
    }

    pub(crate) fn u128(&mut self, at: usize, value: u128) -> &mut Self {
        self.bytes(at, &value.to_le_bytes())
    }

    /// A name: its length in one byte, and its bytes in a field of 64.
    pub(crate) fn name(&mut self, length_at: usize, at: usize, name: &Name) -> &mut Self {
        let bytes = name.as_str().as_bytes();
        self.u8(length_at, u8::try_from(bytes.len()).unwrap_or(0)).bytes(at, bytes)
    }
}

/// A structure being read.
pub(crate) struct Get<'a>(pub(crate) &'a [u8]);

impl Get<'_> {
    pub(crate) fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..at + N).and_then(|field| field.try_into().ok()).unwrap_or([0; N])
    }

    pub(crate) fn u8(&self, at: usize) -> u8 {
        u8::from_le_bytes(self.array(at))
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    pub(crate) fn u128(&self, at: usize) -> u128 {
        u128::from_le_bytes(self.array(at))
    }

    pub(crate) fn name(&self, length_at: usize, at: usize) -> Option<Name> {
        let length = usize::from(self.u8(length_at));
        std::str::from_utf8(self.0.get(at..at + length)?).ok()?.parse().ok()
    }
}
