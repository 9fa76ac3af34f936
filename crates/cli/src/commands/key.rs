//! Keys of encrypted volumes: where they come from, `volume rekey`.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use sublet_api::control::{ClientAnswerLine, ClientRequest, Hidden};
use sublet_api::{ErrorKind, Refusal};
use sublet_link::hide_memory;
use sublet_seal::{Header, HeaderError, Unlock};
use sublet_types::SealText;
use zeroize::Zeroizing;

use super::contents::talk;
use super::local::{self, Client};
use crate::args::{Key, Rekey};
use crate::context::Context;
use crate::output::{print, print_json};

/// A file with more is neither a key nor a passphrase.
const FILE_MAX: u64 = 64 << 10;

fn bad(error: &HeaderError) -> Refusal {
    Refusal::new(ErrorKind::BadRequest, error.to_string())
        .hint("a key file: `dd if=/dev/urandom of=FILE bs=64 count=1 && chmod 600 FILE`; or give another passphrase")
}

/// The bytes of a file that only its owner can read.
fn private(path: &Path) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let failed = |e: std::io::Error| Refusal::new(ErrorKind::Io, format!("{} cannot be read: {e}", path.display()));
    let file = File::open(path).map_err(failed)?;
    let facts = file.metadata().map_err(failed)?;
    let (mode, owner) = (facts.mode(), facts.uid());
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        let text = format!("{} belongs to somebody else (user {owner})", path.display());
        return Err(Refusal::new(ErrorKind::BadRequest, text).hint("use a file of your own"));
    }
    if mode & 0o077 != 0 {
        let text = format!("others than its owner can read {} (mode {:03o})", path.display(), mode & 0o777);
        return Err(Refusal::new(ErrorKind::BadRequest, text).hint(format!("chmod 600 {}", path.display())));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(FILE_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn first_line(mut bytes: Zeroizing<Vec<u8>>) -> Result<Unlock, Refusal> {
    if let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        bytes.truncate(end);
    }
    let text = std::str::from_utf8(&bytes);
    let text = text.map_err(|_| bad(&HeaderError::BadUnlock("the passphrase is not UTF-8".to_owned())))?;
    Unlock::passphrase(text.trim_end_matches('\r')).map_err(|error| bad(&error))
}

fn ask(prompt: &str) -> Result<Zeroizing<String>, Refusal> {
    rpassword::prompt_password(prompt)
        .map(Zeroizing::new)
        .map_err(|e| Refusal::new(ErrorKind::Io, format!("the passphrase cannot be read from the terminal: {e}")))
}

/// What is named, or asked for on the terminal; `again` asks twice, for a new one. `options` are those that name it.
fn read(key: &Key, prompt: &str, again: bool, options: &str) -> Result<Unlock, Refusal> {
    // What is read is in the memory of this process: no core file may have it.
    hide_memory()?;
    if let Some(path) = &key.key_file {
        return Unlock::key_file(&private(path)?).map_err(|error| bad(&error));
    }
    if let Some(path) = &key.passphrase_file {
        if path == Path::new("-") {
            let mut bytes = Zeroizing::new(Vec::new());
            let read = std::io::stdin().take(FILE_MAX).read_to_end(&mut bytes);
            read.map_err(|e| Refusal::new(ErrorKind::Io, format!("no passphrase comes from the standard input: {e}")))?;
            return first_line(bytes);
        }
        return first_line(private(path)?);
    }
    if !std::io::stdin().is_terminal() {
        let text = format!("{} is needed, and there is no terminal to ask", prompt.trim_end_matches([':', ' ']).to_lowercase());
        return Err(Refusal::new(ErrorKind::BadRequest, text).hint(format!("name it with {options}")));
    }
    let first = ask(prompt)?;
    if again && ask("The same again: ")? != first {
        return Err(Refusal::new(ErrorKind::BadRequest, "the two passphrases are not the same").hint("try again"));
    }
    Unlock::passphrase(&first).map_err(|error| bad(&error))
}

const NAMED: &str = "--key-file or --passphrase-file";

/// A new seal for a volume that is about to be borrowed.
pub(super) fn new_seal(key: &Key) -> Result<SealText, Refusal> {
    let unlock = read(key, "Passphrase of the new volume: ", true, NAMED)?;
    let (header, _) = Header::create(&unlock).map_err(|error| bad(&error))?;
    header.to_string().parse().map_err(|_| Refusal::new(ErrorKind::Internal, "the key header is no text"))
}

/// What seals or opens the pool's authority in an export; none if nothing is named.
pub(super) fn named(key: &Key) -> Result<Option<Unlock>, Refusal> {
    if key.is_named() { read(key, "Passphrase: ", false, NAMED).map(Some) } else { Ok(None) }
}

/// What opens a volume that is about to be mounted; none if it is not encrypted.
pub(super) fn for_volume(c: &Context, volume: &str, key: &Key) -> Result<Option<Unlock>, Refusal> {
    let view = c.manager().volume(volume)?;
    match (view.sealed, key.is_named()) {
        (false, false) => Ok(None),
        (false, true) => Err(Refusal::new(ErrorKind::BadRequest, format!("volume '{}' is not encrypted", view.name))
            .hint("mount it without a key; `sublet borrow --encrypt` makes a volume that is")),
        (true, _) => read(key, &format!("Passphrase of {}: ", view.name), false, NAMED).map(Some),
    }
}

/// `volume rekey`.
pub(super) fn rekey(c: &Context, options: &Rekey) -> Result<(), Refusal> {
    let mount = local::find(c, &options.volume).filter(|mount| matches!(mount.client(), Client::Answers(_)));
    let Some(mount) = mount else {
        return Err(Refusal::new(ErrorKind::Conflict, format!("volume '{}' is not mounted here", options.volume))
            .hint(format!("its key is wrapped anew where it is mounted: sublet mount {}", options.volume)));
    };
    if !mount.info.sealed {
        return Err(Refusal::new(ErrorKind::Conflict, format!("volume '{}' is not encrypted", mount.info.name)));
    }
    let old = read(&options.key, &format!("Present passphrase of {}: ", mount.info.name), false, NAMED)?;
    let fresh = Key { key_file: options.new_key_file.clone(), passphrase_file: options.new_passphrase_file.clone() };
    let prompt = format!("New passphrase of {}: ", mount.info.name);
    let new = read(&fresh, &prompt, true, "--new-key-file or --new-passphrase-file")?;
    let hidden = |unlock: &Unlock| Hidden(unlock.to_line().to_string());
    let request = ClientRequest::Rekey { old: hidden(&old), new: hidden(&new) };
    match talk(&mount.home, &request, &mut |_| true)? {
        Some(ClientAnswerLine::Done) if c.json => {
            print_json(&serde_json::json!({ "name": mount.info.name, "rekeyed": true }));
        }
        Some(ClientAnswerLine::Done) => {
            print(&format!("the key of {} opens with the new one only, from now on\n", mount.info.name));
        }
        other => return Err(Refusal::new(ErrorKind::Internal, format!("the client answered strangely: {other:?}"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_that_others_can_read_is_refused_and_only_the_first_line_of_a_passphrase_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "sesame\r\nmore").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let named = Key { key_file: None, passphrase_file: Some(path.clone()) };
        let refusal = read(&named, "Passphrase: ", false, NAMED).unwrap_err();
        assert!(refusal.message.contains("mode 640") && refusal.hint.contains("chmod 600"), "{refusal}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&named, "Passphrase: ", false, NAMED).unwrap(), Unlock::passphrase("sesame").unwrap());
        let named = Key { key_file: Some(path.clone()), passphrase_file: None };
        assert!(read(&named, "", false, NAMED).unwrap_err().message.contains("32 to 8192"), "too short for a key");
        std::fs::write(&path, [7; 64]).unwrap();
        read(&named, "", false, NAMED).unwrap();
    }
}
