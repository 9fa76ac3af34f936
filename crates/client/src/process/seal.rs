//! The key of a sealed volume: opened when the client starts, and wrapped anew on request.

use std::cell::{Cell, RefCell};
use std::io::Read as _;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use futures_channel::oneshot;
use sublet_api::mount::{MountingInformation, SetSeal};
use sublet_api::{ErrorKind, Refusal};
use sublet_coordinator::Manager;
use sublet_doors::real::RealDoors;
use sublet_doors::{Chunk, Clock as _};
use sublet_link::ManagerLink;
use sublet_seal::{Cipher, Header, HeaderError, MasterKey, Unlock};
use sublet_types::{SealText, ServerId};
use sublet_volume::{BlockCipher, Volume, VolumeError};
use zeroize::Zeroizing;

use super::ClientArgs;

/// How long the header in the volume may take: all lenders were there a moment ago.
const HEADER_TIME_MAX: Duration = Duration::from_secs(30);
/// More does not belong to a line with a key.
const LINE_MAX: u64 = 64 << 10;

struct Blocks(Cipher);

impl BlockCipher for Blocks {
    fn encrypt(&self, block: u64, from: &[u8], into: &mut [u8]) -> Result<(), String> {
        self.0.encrypt(block, from, into).map_err(|error| format!("a block cannot be encrypted: {error}"))
    }

    fn decrypt(&self, block: u64, from: &[u8], into: &mut [u8]) -> Result<(), String> {
        self.0.decrypt(block, from, into).map_err(|error| format!("a block cannot be decrypted: {error}"))
    }
}

fn refused(error: &HeaderError, name: &str) -> Refusal {
    let text = format!("volume '{name}' cannot be opened: {error}");
    match error {
        HeaderError::Wrong { .. } => Refusal::new(ErrorKind::BadRequest, text)
            .hint("nothing was changed; there is no other way to its bytes than the right one"),
        HeaderError::BadUnlock(_) => Refusal::new(ErrorKind::BadRequest, text).hint("give another passphrase or key file"),
        HeaderError::Newer(_) => Refusal::new(ErrorKind::BadRequest, text).hint("use the newer version of this program"),
        HeaderError::Foreign => Refusal::new(ErrorKind::Io, text)
            .hint("somebody has changed what is stored: nothing is written to it; ask who has its lenders' disks"),
        HeaderError::None | HeaderError::Damaged(_) | HeaderError::Failed(_) => Refusal::new(ErrorKind::Io, text),
    }
}

/// What opens the key, if the volume is sealed.
///
/// # Errors
/// `BadRequest` if it is missing, or the volume is not sealed.
pub(super) fn unlock(args: &ClientArgs, info: &MountingInformation) -> Result<Option<Unlock>, Refusal> {
    match (info.sealed, args.key_stdin) {
        (false, false) => Ok(None),
        (true, false) => Err(Refusal::new(ErrorKind::BadRequest, format!("volume '{}' is encrypted", info.name))
            .hint("mount it with --key-file or --passphrase-file, or on a terminal")),
        (false, true) => Err(Refusal::new(ErrorKind::BadRequest, format!("volume '{}' is not encrypted", info.name))
            .hint("mount it without a key")),
        (true, true) => {
            let mut line = Zeroizing::new(String::new());
            let read = std::io::stdin().take(LINE_MAX).read_to_string(&mut line);
            read.map_err(|e| Refusal::new(ErrorKind::Io, format!("no key was handed over: {e}")))?;
            Unlock::from_line(&line).map(Some).map_err(|error| refused(&error, info.name.as_str()))
        }
    }
}

/// What is there of key headers when a volume is mounted.
struct Found {
    /// Those of the present encryption, the newest first.
    headers: Vec<Header>,
    /// Whether every place in the volume was read, and has the newest one.
    is_stored: bool,
    /// Whether the volume may be written: every place in it was read.
    is_known: bool,
}

/// Of the headers in the table and in the volume those that count. Whoever had the volume before has left nothing in it: its wipe took
/// that along. So what is stored there is of the present encryption, and a table that was restored may have another one's.
///
/// # Errors
/// [`HeaderError::None`] or what is damaged if there is none; [`HeaderError::Newer`] if a newer program has written one of them;
/// [`HeaderError::Foreign`] if the volume has two that do not belong together.
fn found(table: Option<Result<Header, HeaderError>>, stored: &[Result<Header, HeaderError>]) -> Result<Found, HeaderError> {
    let all = || stored.iter().chain(&table);
    if let Some(Err(newer)) = all().find(|header| matches!(header, Err(HeaderError::Newer(_)))) {
        return Err(newer.clone());
    }
    let whole: Vec<&Header> = stored.iter().filter_map(|header| header.as_ref().ok()).collect();
    if whole.windows(2).any(|pair| matches!(pair, [one, other] if one.id() != other.id())) {
        return Err(HeaderError::Foreign);
    }
    let id = whole.first().map(|header| header.id());
    let mut headers: Vec<Header> =
        all().filter_map(|header| header.as_ref().ok()).filter(|header| id.is_none_or(|id| header.id() == id)).cloned().collect();
    headers.sort_by_key(|header| std::cmp::Reverse(header.serial()));
    headers.dedup();
    let Some(newest) = headers.first() else {
        // What is damaged says more than what is not there.
        let error = all().filter_map(|header| header.as_ref().err()).find(|error| **error != HeaderError::None);
        return Err(error.cloned().unwrap_or(HeaderError::None));
    };
    let is_stored = stored.iter().all(|header| header.as_ref() == Ok(newest));
    let is_known = !stored.iter().any(|header| matches!(header, Err(HeaderError::Failed(_))));
    Ok(Found { headers, is_stored, is_known })
}

/// The seal of an open volume.
pub(super) struct Seal {
    name: String,
    volume: String,
    server: ServerId,
    link: ManagerLink,
    header: RefCell<Header>,
    /// The highest serial that was seen.
    serial: Cell<u64>,
    /// As the table has it.
    told: RefCell<Option<SealText>>,
    is_changing: Cell<bool>,
}

/// Takes time and memory (Argon2id): not in the engine's thread, whose lenders wait for it.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    let (sender, receiver) = oneshot::channel();
    let failed = || Refusal::new(ErrorKind::Io, "a thread cannot be started");
    let spawned = thread::Builder::new().name("sublet-seal".into()).spawn(move || {
        // Whoever waited may be gone.
        let _ = sender.send(work());
    });
    spawned.map_err(|_| failed())?;
    receiver.await.map_err(|_| failed())
}

/// Opens the newest header that this opens. An older one only counts where a change of the key was broken off.
fn opened(headers: &[Header], unlock: &Unlock) -> Result<(Header, MasterKey), HeaderError> {
    let mut first = None;
    for header in headers {
        match header.open(unlock) {
            Ok(key) => return Ok((header.clone(), key)),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or(HeaderError::None))
}

impl Seal {
    /// Finds the header that counts, opens it, and gives the volume its key. The other places get that header where they have an older
    /// one or none.
    ///
    /// # Errors
    /// What is wrong with the key, or with all headers; what the volume says.
    pub(super) async fn open(
        doors: &RealDoors,
        volume: &Rc<Volume<RealDoors, Manager>>,
        info: &MountingInformation,
        link: ManagerLink,
        unlock: &Unlock,
    ) -> Result<Self, Refusal> {
        let name = info.name.to_string();
        let table = info.seal.as_ref().map(|text| Header::parse(text.as_str()));
        let missing = |_| Refusal::new(ErrorKind::LenderUnreachable, format!("the key header of '{name}' cannot be read"));
        let stored = doors.timeout(HEADER_TIME_MAX, volume.stored_seal()).await.map_err(missing)?.map_err(|e| e.refusal())?;
        let decoded = |block: Result<Chunk, VolumeError>| {
            block.map_err(|error| HeaderError::Failed(error.text)).and_then(|block| Header::decode(&block))
        };
        let stored: Vec<_> = stored.into_iter().map(decoded).collect();
        let Found { headers, is_stored, is_known } = found(table.clone(), &stored).map_err(|error| refused(&error, &name))?;
        let serial = headers.first().map_or(0, Header::serial);
        let (own, all) = (unlock.clone(), headers.clone());
        let (header, key) = beside(move || opened(&all, &own)).await?.map_err(|error| refused(&error, &name))?;
        let cipher = Cipher::new(&key).map_err(|error| refused(&error.into(), &name))?;
        let seal = Self {
            name,
            volume: info.volume.to_string(),
            server: info.borrower,
            link,
            header: RefCell::new(header.clone()),
            serial: Cell::new(serial),
            told: RefCell::new(info.seal.clone()),
            is_changing: Cell::new(false),
        };
        if header.serial() < serial {
            tracing::warn!("a change of the key was broken off: the former one still opens it; change it again");
        } else {
            seal.spread(doors, volume, is_stored || !is_known, table != Some(Ok(header.clone()))).await;
        }
        volume.unseal(Box::new(Blocks(cipher))).map_err(|e| e.refusal())?;
        Ok(seal)
    }

    /// Brings the other places up to date. What fails is made up for at the next mount: the volume can be opened all the same.
    async fn spread(&self, doors: &RealDoors, volume: &Rc<Volume<RealDoors, Manager>>, is_stored: bool, is_to_be_told: bool) {
        let header = self.header.borrow().clone();
        if !is_stored && !volume.read_only() {
            match doors.timeout(HEADER_TIME_MAX, volume.store_seal(header.bytes())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the key header cannot be stored in the volume"),
                Err(_) => tracing::warn!("the key header cannot be stored in the volume in time"),
            }
        }
        if is_to_be_told && let Err(refusal) = self.tell(&header).await {
            tracing::warn!(%refusal, "the manager does not have the key header; it is told at the next mount");
        }
    }

    /// The manager's table gets a header.
    async fn tell(&self, header: &Header) -> Result<(), Refusal> {
        let text = header.to_string();
        let to: SealText = text.parse().map_err(|_| Refusal::new(ErrorKind::Internal, "the key header is no text"))?;
        let set = SetSeal { server: self.server, from: self.told.borrow().clone(), to: to.clone() };
        let (link, volume) = (self.link.clone(), self.volume.clone());
        beside(move || link.set_seal(&volume, set)).await??;
        self.told.replace(Some(to));
        Ok(())
    }

    /// Wraps the key anew: first in the table, then in the volume.
    ///
    /// # Errors
    /// If `old` is not what opens it, and nothing was changed then; if it is not known how far it came: either may open it.
    pub(super) async fn rekey(&self, volume: &Rc<Volume<RealDoors, Manager>>, old: &str, new: &str) -> Result<(), Refusal> {
        if volume.read_only() {
            return Err(Refusal::new(ErrorKind::Conflict, "the volume is mounted read-only").hint("mount it for writing"));
        }
        if self.is_changing.replace(true) {
            return Err(Refusal::new(ErrorKind::Conflict, "its key is being changed already").hint("try again when that is done"));
        }
        let result = self.change(volume, old, new).await;
        self.is_changing.set(false);
        result
    }

    async fn change(&self, volume: &Rc<Volume<RealDoors, Manager>>, old: &str, new: &str) -> Result<(), Refusal> {
        let read = |line| Unlock::from_line(line).map_err(|error| refused(&error, &self.name));
        let (old, new, header, serial) = (read(old)?, read(new)?, self.header.borrow().clone(), self.serial.get() + 1);
        let fresh = beside(move || header.rewrapped(&old, &new, serial)).await?.map_err(|error| refused(&error, &self.name))?;
        let is_open = |refusal: Refusal| {
            let text = format!("the change was broken off: {}; the old key or the new one may open the volume", refusal.message);
            Refusal::new(refusal.kind, text).hint("keep both, and repeat the change until it is done")
        };
        // It counts from here on, also if the answer is lost.
        self.serial.set(serial);
        self.tell(&fresh).await.map_err(is_open)?;
        self.header.replace(fresh.clone());
        volume.store_seal(fresh.bytes()).await.map_err(|error| is_open(error.refusal()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(unlock: &Unlock) -> Header {
        Header::create(unlock).unwrap().0
    }

    #[test]
    fn what_is_stored_in_the_volume_says_which_encryption_it_is() {
        let unlock = Unlock::passphrase("sesame").unwrap();
        let (former, own) = (header(&unlock), header(&unlock));
        let former = former.rewrapped(&unlock, &unlock, 7).unwrap();
        let fresh = own.rewrapped(&unlock, &unlock, 2).unwrap();
        let none = || Err(HeaderError::None);
        let at = |table: &Header, stored: [Result<Header, HeaderError>; 2]| found(Some(Ok(table.clone())), &stored);
        // A table that was restored, with the header of a former borrower who had the same key: never that one.
        let restored = at(&former, [Ok(own.clone()), Ok(own.clone())]).unwrap();
        assert_eq!((restored.headers, restored.is_stored), (vec![own.clone()], true));
        // A new volume: nothing is stored yet.
        let new = at(&own, [none(), none()]).unwrap();
        assert_eq!((new.headers, new.is_stored, new.is_known), (vec![own.clone()], false, true));
        // A change that was broken off behind the table: both are tried, the newest first.
        let broken_off = at(&fresh, [Ok(own.clone()), Ok(own.clone())]).unwrap();
        assert_eq!((broken_off.headers, broken_off.is_stored), (vec![fresh.clone(), own.clone()], false));
        // A lost table: the newer copy.
        let lost = found(None, &[Ok(fresh.clone()), Ok(own.clone())]).unwrap();
        assert_eq!(lost.headers, [fresh, own.clone()]);
        // One copy cannot be read: the others do, and nothing is written.
        let failed = Err(HeaderError::Failed("I/O error".to_owned()));
        let unread = at(&own, [failed.clone(), Ok(own.clone())]).unwrap();
        assert_eq!((unread.headers, unread.is_known), (vec![own.clone()], false));
        assert_eq!(found(None, &[none(), failed.clone()]).err(), failed.err());
        assert_eq!(found(None, &[Ok(former), Ok(own.clone())]).err(), Some(HeaderError::Foreign));
        assert_eq!(at(&own, [Err(HeaderError::Newer(2)), none()]).err(), Some(HeaderError::Newer(2)));
        assert_eq!(found(None, &[none(), none()]).err(), Some(HeaderError::None));
    }

    #[test]
    fn a_change_that_was_broken_off_leaves_both_keys_in_force() {
        let (old, new) = (Unlock::passphrase("old").unwrap(), Unlock::passphrase("new").unwrap());
        let first = header(&old);
        let second = first.rewrapped(&old, &new, 2).unwrap();
        let headers = [second.clone(), first.clone()];
        assert_eq!(opened(&headers, &new).unwrap().0, second);
        assert_eq!(opened(&headers, &old).unwrap().0, first);
        assert!(matches!(opened(&headers, &Unlock::passphrase("other").unwrap()), Err(HeaderError::Wrong { .. })));
    }
}
