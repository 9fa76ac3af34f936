//! The audit log: one JSON object a line, only ever appended to, on the disk before the answer leaves.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sublet_api::access::AuditLine;

/// So many bytes at the end of the log are looked at for its newest lines.
const TAIL_MAX: u64 = 16 << 20;

/// Where lines go.
pub(crate) struct AuditLog {
    path: PathBuf,
    file: Option<File>,
}

impl AuditLog {
    /// In this file, which is made at the first line (0600).
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// Appends a line. A failure is loud in the log, and does not undo what is committed already.
    pub(crate) fn append(&mut self, line: &AuditLine) {
        if let Err(error) = self.write(line) {
            // Opened anew for the next line: the administrator may have made room, or moved the file away.
            self.file = None;
            tracing::error!(%error, path = %self.path.display(), who = line.who, what = line.what, subject = line.subject, result = line.result, "the audit log cannot be written");
        }
    }

    fn write(&mut self, line: &AuditLine) -> io::Result<()> {
        let mut text = serde_json::to_vec(line).map_err(io::Error::other)?;
        text.push(b'\n');
        // One that was moved away by whoever rotates logs is begun anew.
        if self.file.is_some() && !self.path.exists() {
            self.file = None;
        }
        let file = match &mut self.file {
            Some(file) => file,
            empty => empty.insert(OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?),
        };
        file.write_all(&text)?;
        file.sync_data()
    }
}

/// The newest lines, oldest first. A line that cannot be read (the machine went down in the middle of it) is left out.
///
/// # Errors
/// The file cannot be read; none is no error.
pub(crate) fn tail(path: &Path, limit: usize) -> io::Result<Vec<AuditLine>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_MAX)))?;
    let mut newest = VecDeque::new();
    for line in BufReader::new(file).split(b'\n') {
        let Ok(line) = serde_json::from_slice(&line?) else { continue };
        newest.push_back(line);
        if newest.len() > limit {
            newest.pop_front();
        }
    }
    Ok(newest.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: u64) -> AuditLine {
        let text = |word: &str| word.to_owned();
        AuditLine {
            at_ms: n,
            who: text("olga"),
            from: text("127.0.0.1"),
            what: text("borrow"),
            subject: text("v"),
            result: text("done"),
        }
    }

    #[test]
    fn lines_are_appended_and_the_newest_are_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        assert!(tail(&path, 9).unwrap().is_empty());
        let mut log = AuditLog::new(path.clone());
        (0..5).for_each(|n| log.append(&line(n)));
        // A machine that goes down leaves half of a line.
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"at_ms\":\n").unwrap();
        let mut log = AuditLog::new(path.clone());
        log.append(&line(5));
        let found: Vec<u64> = tail(&path, 3).unwrap().iter().map(|line| line.at_ms).collect();
        assert_eq!(found, [3, 4, 5]);
        // It may be moved away.
        std::fs::rename(&path, dir.path().join("audit.log.1")).unwrap();
        log.append(&line(6));
        assert_eq!(tail(&path, 9).unwrap().len(), 1);
    }
}
