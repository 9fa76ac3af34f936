//! Bytes on their way out: whatever is there when the sender comes round leaves in one send.

use crate::Chunk;

/// Small bytes are joined into one chunk, large ones are sent from where they lie.
#[derive(Debug, Default)]
pub struct Gather {
    chunks: Vec<Chunk>,
    /// Behind the last chunk, not yet one itself.
    tail: Vec<u8>,
}

impl Gather {
    /// Where small bytes, such as headers, are appended.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }

    /// Appends bytes that are not copied.
    pub fn push(&mut self, data: Chunk) {
        self.seal();
        self.chunks.push(data);
    }

    /// True if nothing is there.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.tail.is_empty()
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.chunks.clear();
        self.tail.clear();
    }

    /// Everything, in order; empty afterwards.
    pub fn take(&mut self) -> Vec<Chunk> {
        self.seal();
        std::mem::take(&mut self.chunks)
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push(Chunk::copy_of(&self.tail));
            self.tail.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_and_small_neighbours_in_one_chunk() {
        let mut gather = Gather::default();
        assert!(gather.is_empty() && gather.take().is_empty());
        gather.tail().extend(b"ab");
        gather.tail().extend(b"c");
        gather.push(Chunk::copy_of(b"DATA"));
        gather.push(Chunk::copy_of(b"MORE"));
        gather.tail().extend(b"d");
        assert!(!gather.is_empty());
        let chunks: Vec<Vec<u8>> = gather.take().iter().map(|chunk| chunk.to_vec()).collect();
        assert_eq!(chunks, [&b"abc"[..], b"DATA", b"MORE", b"d"]);
        assert!(gather.is_empty());
        gather.tail().extend(b"e");
        gather.push(Chunk::copy_of(b"F"));
        gather.clear();
        assert!(gather.take().is_empty());
    }
}
