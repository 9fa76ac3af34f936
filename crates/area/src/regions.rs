//! Region states of a piece on a device (P1): blank regions read as zero without touching the disk.
//!
//! A region becomes written in this order: the whole region is zeroed, the disk synced, the mark made durable in both copies
//! of its page (L1), and only then the first data is written. A crash in between leaves a blank region.

use std::cell::RefCell;
use std::collections::HashMap;

use futures_channel::oneshot;
use futures_util::lock::Mutex;
use sublet_doors::DiskFile;

use crate::bytes::Put;
use crate::copies::{read_both, write_both};
use crate::envelope::{ENVELOPE_SIZE, REGIONS, seal};
use crate::error::{AreaError, AreaErrorKind};
use crate::layout::HEADER_SIZE;

/// Length of a page in bytes.
const PAGE_SIZE: usize = 4096;
/// Where the states begin in a page.
const STATES_AT: usize = ENVELOPE_SIZE + 24;
/// States in one page, a byte each.
const STATES_PER_PAGE: usize = PAGE_SIZE - STATES_AT;

/// The state of a region that was never written.
const BLANK: u8 = 0;
/// The state of a region whose every byte was zeroed or written.
const WRITTEN: u8 = 1;

/// Those who wait until a region may be written.
type Waiters = Vec<oneshot::Sender<Result<(), AreaError>>>;

/// The region states of one piece.
pub(crate) struct Regions {
    states: RefCell<Vec<u8>>,
    /// Regions that are zeroed and synced, and wait for their mark.
    zeroed: RefCell<Vec<usize>>,
    /// Per page: sequence, and the copy to write first.
    pages: Mutex<Vec<(u64, usize)>>,
    preparing: RefCell<HashMap<usize, Waiters>>,
}

/// Where both copies of a page lie in a piece: all first copies, then all second ones, at the start of the metadata reserve.
const fn page_at(page: usize, pages: usize) -> [u64; 2] {
    let size = PAGE_SIZE as u64;
    [HEADER_SIZE + page as u64 * size, HEADER_SIZE + (pages + page) as u64 * size]
}

fn encode(page: usize, states: &[u8], sequence: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_SIZE];
    Put(&mut bytes).u64(ENVELOPE_SIZE, page as u64).bytes(STATES_AT, states);
    seal(&mut bytes, REGIONS, sequence);
    bytes
}

fn shift(at: [u64; 2], by: u64) -> [u64; 2] {
    at.map(|at| at + by)
}

impl Regions {
    /// Writes the pages of a new piece: all blank.
    pub async fn format<F: DiskFile>(file: &F, piece_at: u64, count: usize) -> std::io::Result<()> {
        let pages = count.div_ceil(STATES_PER_PAGE);
        for page in 0..pages {
            let states = vec![BLANK; STATES_PER_PAGE.min(count - page * STATES_PER_PAGE)];
            let bytes = encode(page, &states, 1);
            for at in shift(page_at(page, pages), piece_at) {
                file.write_at(at, sublet_doors::Buffer::copy_of(&bytes).freeze()).await?;
            }
        }
        file.sync().await
    }

    /// Reads the pages of a piece.
    pub async fn load<F: DiskFile>(file: &F, piece_at: u64, count: usize, name: &str) -> Result<Self, AreaError> {
        let pages = count.div_ceil(STATES_PER_PAGE);
        let mut states = Vec::with_capacity(count);
        let mut sequences = Vec::with_capacity(pages);
        for page in 0..pages {
            let winner = read_both(file, shift(page_at(page, pages), piece_at), REGIONS, name).await?.ok_or_else(|| {
                AreaError::new(
                    AreaErrorKind::Format,
                    format!("{name} lacks its region states: it cannot be told what was written"),
                )
            })?;
            let own = STATES_PER_PAGE.min(count - page * STATES_PER_PAGE);
            let found = winner.bytes.get(STATES_AT..STATES_AT + own).unwrap_or(&[]);
            if crate::bytes::Get(&winner.bytes).u64(ENVELOPE_SIZE) != page as u64 || found.iter().any(|state| *state > WRITTEN) {
                return Err(AreaError::new(
                    AreaErrorKind::Format,
                    format!("page {page} of the region states of {name} makes no sense"),
                ));
            }
            states.extend_from_slice(found);
            sequences.push((winner.sequence, winner.write_first));
        }
        Ok(Self {
            states: RefCell::new(states),
            zeroed: RefCell::default(),
            pages: Mutex::new(sequences),
            preparing: RefCell::default(),
        })
    }

    /// True if the region reads as zero without touching the disk.
    pub fn is_blank(&self, region: usize) -> bool {
        self.states.borrow().get(region).is_none_or(|state| *state == BLANK)
    }

    /// Joins those who wait for a region; true for the first one, who has to [`prepare`](Self::mark) it.
    pub fn wait(&self, region: usize) -> (bool, oneshot::Receiver<Result<(), AreaError>>) {
        let (sender, receiver) = oneshot::channel();
        let mut preparing = self.preparing.borrow_mut();
        let first = !preparing.contains_key(&region);
        preparing.entry(region).or_default().push(sender);
        (first, receiver)
    }

    /// Tells those who wait how it ended.
    pub fn done(&self, region: usize, result: &Result<(), AreaError>) {
        let waiters = self.preparing.borrow_mut().remove(&region).unwrap_or_default();
        for waiter in waiters {
            // One who has gone needs no answer.
            let _ = waiter.send(result.clone());
        }
    }

    /// Makes the mark of a region durable whose zeroes are durable already. Marks of one page that wait meanwhile go
    /// together.
    pub async fn mark<F: DiskFile>(&self, file: &F, piece_at: u64, region: usize) -> std::io::Result<()> {
        self.zeroed.borrow_mut().push(region);
        let mut pages = self.pages.lock().await;
        if !self.is_blank(region) {
            return Ok(());
        }
        let page = region / STATES_PER_PAGE;
        let (ready, others) = self.zeroed.take().into_iter().partition::<Vec<usize>, _>(|r| *r / STATES_PER_PAGE == page);
        self.zeroed.replace(others);
        let begin = page * STATES_PER_PAGE;
        let mut states: Vec<u8> = self.states.borrow().iter().skip(begin).take(STATES_PER_PAGE).copied().collect();
        for region in &ready {
            if let Some(state) = states.get_mut(region - begin) {
                *state = WRITTEN;
            }
        }
        let count = pages.len();
        if let Some((sequence, first)) = pages.get_mut(page) {
            let bytes = encode(page, &states, *sequence + 1);
            write_both(file, shift(page_at(page, count), piece_at), &bytes, *first).await?;
            *sequence += 1;
            *first = 0;
        }
        for region in ready {
            if let Some(state) = self.states.borrow_mut().get_mut(region) {
                *state = WRITTEN;
            }
        }
        Ok(())
    }
}
