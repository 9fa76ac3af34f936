//! The key of a sealed volume: opened when the client starts, and wrapped anew on request.

use std::cell::RefCell;
use std::io::Read as _;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use futures_channel::oneshot;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use sublet_api::mount::{MountingInformation, SetSeal};
use sublet_api::{ErrorKind, Refusal};
use sublet_coordinator::Manager;
use sublet_doors::Clock as _;
use sublet_doors::real::RealDoors;
use sublet_link::ManagerLink;
use sublet_seal::{Cipher, Header, HeaderError, MasterKey, Unlock};
use sublet_types::{SealText, ServerId};
use sublet_volume::{BlockCipher, Volume};

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
        HeaderError::Wrong(_) => Refusal::new(ErrorKind::BadRequest, text)
            .hint("nothing was changed; there is no other way to its bytes than the right one"),
        HeaderError::BadUnlock(_) => Refusal::new(ErrorKind::BadRequest, text).hint("give another passphrase or key file"),
        HeaderError::Newer(_) => Refusal::new(ErrorKind::BadRequest, text).hint("use the newer version of this program"),
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
            // The key is in the memory of this process from now on: no core file may have it.
            set_dumpable_behavior(DumpableBehavior::NotDumpable)
                .map_err(|e| Refusal::new(ErrorKind::Io, format!("core files cannot be turned off: {e}")))?;
            let mut line = String::new();
            let read = std::io::stdin().take(LINE_MAX).read_to_string(&mut line);
            read.map_err(|e| Refusal::new(ErrorKind::Io, format!("no key was handed over: {e}")))?;
            Unlock::from_line(&line).map(Some).map_err(|error| refused(&error, info.name.as_str()))
        }
    }
}

/// The seal of an open volume.
pub(super) struct Seal {
    name: String,
    volume: String,
    server: ServerId,
    urls: Vec<String>,
    header: RefCell<Header>,
    /// As the table has it.
    told: RefCell<Option<SealText>>,
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

async fn opened(header: &Header, unlock: &Unlock) -> Result<Result<MasterKey, HeaderError>, Refusal> {
    let (header, unlock) = (header.clone(), unlock.clone());
    beside(move || header.open(&unlock)).await
}

impl Seal {
    /// Finds the newest header, opens it, and gives the volume its key. The other places get that header where they have an older one
    /// or none.
    ///
    /// # Errors
    /// What is wrong with the key, or with all headers; what the volume says.
    pub(super) async fn open(
        doors: &RealDoors,
        volume: &Rc<Volume<RealDoors, Manager>>,
        info: &MountingInformation,
        urls: Vec<String>,
        unlock: &Unlock,
    ) -> Result<Self, Refusal> {
        let name = info.name.to_string();
        let table = info.seal.as_ref().map(|text| Header::parse(text.as_str()));
        let missing = |_| Refusal::new(ErrorKind::LenderUnreachable, format!("the key header of '{name}' cannot be read"));
        let stored = doors.timeout(HEADER_TIME_MAX, volume.stored_seal()).await.map_err(missing)?.map_err(|e| e.refusal())?;
        let stored: Vec<_> = stored.iter().map(|block| Header::decode(block)).collect();
        let all = table.iter().chain(&stored);
        let newest = all.clone().filter_map(|header| header.as_ref().ok()).max_by_key(|header| header.serial());
        let Some(header) = newest.cloned() else {
            // What is damaged says more than what is not there.
            let error = all.filter_map(|header| header.as_ref().err()).find(|error| **error != HeaderError::None);
            return Err(refused(error.unwrap_or(&HeaderError::None), &name));
        };
        let key = opened(&header, unlock).await?.map_err(|error| refused(&error, &name))?;
        let cipher = Cipher::new(&key).map_err(|error| refused(&error.into(), &name))?;
        let is_everywhere = stored.iter().all(|one| one.as_ref() == Ok(&header));
        if !is_everywhere && !volume.read_only() {
            volume.store_seal(header.bytes()).await.map_err(|e| e.refusal())?;
        }
        volume.unseal(Box::new(Blocks(cipher))).map_err(|e| e.refusal())?;
        let seal = Self {
            name,
            volume: info.volume.to_string(),
            server: info.borrower,
            urls,
            told: RefCell::new(info.seal.clone()),
            header: RefCell::new(header.clone()),
        };
        if table != Some(Ok(header.clone()))
            && let Err(refusal) = seal.tell(&header).await
        {
            tracing::warn!(%refusal, "the manager does not have the key header; it is told at the next mount");
        }
        Ok(seal)
    }

    /// The manager's table gets a header.
    async fn tell(&self, header: &Header) -> Result<(), Refusal> {
        let text = header.to_string();
        let to: SealText = text.parse().map_err(|_| Refusal::new(ErrorKind::Internal, "the key header is no text"))?;
        let set = SetSeal { server: self.server, from: self.told.borrow().clone(), to: to.clone() };
        let (link, volume) = (ManagerLink::new(self.urls.clone()), self.volume.clone());
        beside(move || link.set_seal(&volume, set)).await??;
        self.told.replace(Some(to));
        Ok(())
    }

    /// Wraps the key anew: first in the table, then in the volume.
    ///
    /// # Errors
    /// If `old` is not what opens it; the manager's refusal; what the volume says, and then the next mount goes on with it.
    pub(super) async fn rekey(&self, volume: &Rc<Volume<RealDoors, Manager>>, old: &str, new: &str) -> Result<(), Refusal> {
        if volume.read_only() {
            return Err(Refusal::new(ErrorKind::Conflict, "the volume is mounted read-only").hint("mount it for writing"));
        }
        let read = |line| Unlock::from_line(line).map_err(|error| refused(&error, &self.name));
        let (old, new, header) = (read(old)?, read(new)?, self.header.borrow().clone());
        let fresh = beside(move || header.rewrapped(&old, &new)).await?.map_err(|error| refused(&error, &self.name))?;
        self.tell(&fresh).await?;
        self.header.replace(fresh.clone());
        volume.store_seal(fresh.bytes()).await.map_err(|e| e.refusal())
    }
}
