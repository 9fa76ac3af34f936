//! Which manager and which state directory a command means.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sublet_api::control::Identity;
use sublet_api::request::TaskAnswer;
use sublet_api::view::TaskView;
use sublet_api::{ErrorKind, Refusal};
use sublet_link::home::DEFAULT_HOME;
use sublet_link::manager::base_url;
use sublet_link::{Access, Home, ManagerLink, read_credentials};
use sublet_types::TaskId;
use sublet_types::limits::MANAGER_PORT;

use crate::output::ProgressLine;

/// Where the config file is unless `SUBLET_CONFIG` names another.
const CONFIG_FILE: &str = "/etc/sublet.conf";

/// What the flags, the environment and the config file say, in this order.
pub struct Context {
    /// The local server's state directory.
    pub home: Home,
    /// Answer in JSON.
    pub json: bool,
    urls: Vec<String>,
    credentials: Option<PathBuf>,
    /// One for the whole command: once a manager has answered, a restart of it is waited for.
    link: Mutex<Option<(Vec<String>, ManagerLink)>>,
}

/// The config file: `manager = URL[,URL]` and `home = DIR`, one a line; `#` begins a comment.
#[derive(Default, Debug, PartialEq, Eq)]
struct Config {
    managers: Vec<String>,
    home: Option<PathBuf>,
}

impl Config {
    fn parse(text: &str, path: &Path) -> Result<Self, Refusal> {
        let mut config = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let bad = || {
                Refusal::new(ErrorKind::BadRequest, format!("{}:{}: '{line}' is not understood", path.display(), number + 1))
                    .hint("write lines such as: manager = http://manager1:7470, or: home = /var/lib/sublet")
            };
            let (key, value) = line.split_once('=').ok_or_else(bad)?;
            match key.trim() {
                "manager" => config.managers = value.split(',').map(|url| url.trim().to_owned()).collect(),
                "home" => config.home = Some(PathBuf::from(value.trim())),
                _ => return Err(bad()),
            }
        }
        Ok(config)
    }

    fn load() -> Result<Self, Refusal> {
        let named = std::env::var_os("SUBLET_CONFIG").map(PathBuf::from);
        let path = named.clone().unwrap_or_else(|| PathBuf::from(CONFIG_FILE));
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path),
            Err(e) if named.is_none() && e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(Refusal::new(ErrorKind::Io, format!("cannot read {}: {e}", path.display()))),
        }
    }
}

impl Context {
    /// Puts flags, environment (both already in `urls` and `home`) and config file together.
    ///
    /// # Errors
    /// The config file or a URL is malformed.
    pub fn new(urls: &[String], home: Option<PathBuf>, credentials: Option<PathBuf>, json: bool) -> Result<Self, Refusal> {
        let config = Config::load()?;
        let home = Home::new(home.or(config.home).unwrap_or_else(|| PathBuf::from(DEFAULT_HOME)));
        let given = if urls.is_empty() { config.managers } else { urls.to_vec() };
        let urls = given.iter().filter(|url| !url.is_empty()).map(|url| base_url(url)).collect::<Result<_, _>>()?;
        Ok(Self { home, json, urls, credentials, link: Mutex::default() })
    }

    /// The manager's URLs that were given, by flag, environment or config file.
    pub fn given_urls(&self) -> Vec<String> {
        self.urls.clone()
    }

    /// Where `sublet login` puts the certificate: where it was told to, or in the user's own configuration.
    ///
    /// # Errors
    /// The user has no home directory.
    pub fn login_path(&self) -> Result<PathBuf, Refusal> {
        let none = || {
            Refusal::new(ErrorKind::BadRequest, "there is no home directory to keep the certificate in")
                .hint("name a file with --credentials or SUBLET_CREDENTIALS")
        };
        self.credentials.clone().or_else(user_credentials).ok_or_else(none)
    }

    /// By what this command is known: the file that was named; else the user's login, then the local server's certificate.
    fn credentials_files(&self) -> Vec<PathBuf> {
        match &self.credentials {
            Some(path) => vec![path.clone()],
            None => user_credentials().into_iter().chain([self.home.credentials_path()]).collect(),
        }
    }

    /// The manager's URLs: those given; else those that the certificate or the local server knows; else the default port of
    /// this machine.
    pub fn manager_urls(&self) -> Vec<String> {
        if !self.urls.is_empty() {
            return self.urls.clone();
        }
        let known = self.credentials_files().into_iter().find_map(|path| read_credentials(&path).ok().flatten());
        if let Some(known) = known.filter(|known| !known.managers.is_empty()) {
            return known.managers;
        }
        match self.home.identity() {
            Ok(identity) if !identity.managers.is_empty() => identity.managers,
            _ => vec![format!("http://127.0.0.1:{MANAGER_PORT}")],
        }
    }

    /// The manager.
    pub fn manager(&self) -> ManagerLink {
        let urls = self.manager_urls();
        let mut known = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((of, link)) if *of == urls => link.clone(),
            _ => {
                let link = ManagerLink::new(urls.clone()).with_access(Access::Files(self.credentials_files()));
                *known = Some((urls, link.clone()));
                link
            }
        }
    }

    /// The local server.
    ///
    /// # Errors
    /// There is none in the state directory.
    pub fn identity(&self) -> Result<Identity, Refusal> {
        self.home.identity()
    }
}

/// Where a user's certificate is (XDG Base Directory Specification).
fn user_credentials() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))?;
    Some(config.join("sublet/credentials.json"))
}

/// A new task's id: chosen here, so that a repeated request is the same task.
///
/// # Errors
/// The kernel gave no random bits.
pub fn new_task() -> Result<TaskId, Refusal> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| Refusal::new(ErrorKind::Internal, format!("no random bits: {e}")))?;
    Ok(TaskId::from_u128(u128::from_le_bytes(bytes)))
}

/// Runs a task with its progress shown.
///
/// # Errors
/// Those of the task.
pub fn with_progress(work: impl FnOnce(&mut dyn FnMut(&TaskView)) -> Result<TaskAnswer, Refusal>) -> Result<TaskAnswer, Refusal> {
    let mut line = ProgressLine::default();
    work(&mut |task: &TaskView| {
        let what = if task.reason.is_empty() {
            format!("{} {}", task.kind, task.subject)
        } else {
            format!("{} ({})", task.subject, task.reason)
        };
        line.show(&what, task.done, task.total);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_file_is_read_and_its_mistakes_are_named() {
        let path = Path::new("sublet.conf");
        let config = Config::parse("# pool\nmanager = http://a:1, http://b:2\n\nhome=/srv/sublet # here\n", path).unwrap();
        assert_eq!(config.managers, ["http://a:1", "http://b:2"]);
        assert_eq!(config.home.as_deref(), Some(Path::new("/srv/sublet")));
        for (text, place) in [("manager\n", ":1"), ("\nmanger = x\n", ":2")] {
            assert!(Config::parse(text, path).unwrap_err().message.contains(place));
        }
    }
}
