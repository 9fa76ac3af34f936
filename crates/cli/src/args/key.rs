//! What opens encrypted volumes.

use std::path::PathBuf;

use clap::Args;

/// What opens an encrypted volume; asked for on the terminal otherwise.
#[derive(Args, Clone, Debug, Default)]
pub struct Key {
    /// Its key is a file: 32 to 8192 random bytes, readable by its owner only.
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file")]
    pub key_file: Option<PathBuf>,
    /// Its passphrase is the first line of this file; - is the standard input.
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

impl Key {
    /// Whether it says where the key comes from.
    pub fn is_named(&self) -> bool {
        self.key_file.is_some() || self.passphrase_file.is_some()
    }
}

/// `sublet volume rekey`.
#[derive(Args, Debug)]
pub struct Rekey {
    /// Name or id of the volume; it is mounted here.
    pub volume: String,
    /// What opens it.
    #[command(flatten)]
    pub key: Key,
    /// What is to open it from then on: a key file.
    #[arg(long, value_name = "FILE", conflicts_with = "new_passphrase_file")]
    pub new_key_file: Option<PathBuf>,
    /// What is to open it from then on: the first line of this file.
    #[arg(long, value_name = "FILE")]
    pub new_passphrase_file: Option<PathBuf>,
}
