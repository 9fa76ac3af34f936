//! `sublet mount` (seed: S31, S34, S35): ask the manager, keep the mounting information, start the client, and put a file
//! system on it if wished. Whatever fails, the steps before are undone.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use sublet_api::mount::MountingInformation;
use sublet_api::request::{Mount, TaskOutcome};
use sublet_api::{ErrorKind, Refusal};
use sublet_link::{MountHome, write_private};
use sublet_seal::Unlock;

use super::local::{self, Client, Ready};
use super::{key, unmount};
use crate::args::{self, FileSystem, FrontEnd};
use crate::context::{Context, new_task, with_progress};
use crate::interrupt;
use crate::output::{print, print_json};

/// What `mount --json` prints.
#[derive(Serialize)]
struct Mounted<'a> {
    socket: String,
    device: Option<String>,
    mountpoint: Option<String>,
    pid: u32,
    mounting: &'a MountingInformation,
}

/// A volume that is mounted now.
pub(super) struct Up {
    pub home: MountHome,
    pub info: MountingInformation,
    pub ready: Ready,
}

/// How the client shall be started.
pub(super) struct How {
    pub fuse: bool,
    pub read_only: bool,
    pub idle_close: Option<Duration>,
    pub fail_after: Option<Duration>,
    pub key: args::Key,
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(super) fn run(c: &Context, options: &args::Mount) -> Result<(), Refusal> {
    interrupt::watch()?;
    clear_the_way(c, &options.volume)?;
    let fuse = check(options)?;
    let how = How {
        fuse,
        read_only: options.read_only,
        idle_close: options.idle_close,
        fail_after: options.fail_after,
        key: options.key.clone(),
    };
    let up = bring_up(c, &options.volume, &how)?;
    let mountpoint = match &options.dir {
        None => Ok(None),
        Some(dir) => attach(&up, dir, options).map(Some),
    };
    let mountpoint = match mountpoint.and_then(|place| interrupt::check().map(|()| place)) {
        Ok(mountpoint) => mountpoint,
        Err(refusal) => return Err(undo(c, &up.info, refusal)),
    };
    if options.dir.is_none()
        && let Some(file_system) = options.mkfs
        && let Err(refusal) = make_file_system(&up, file_system, options.read_only)
    {
        return Err(undo(c, &up.info, refusal));
    }
    let socket = local::socket_of(&up.home);
    if c.json {
        let mountpoint = mountpoint.map(|dir| dir.to_string_lossy().into_owned());
        print_json(&Mounted { socket, device: up.ready.device, mountpoint, pid: up.ready.pid, mounting: &up.info.printable() });
    } else {
        let device = up.ready.device.map(|d| format!(" as {d}")).unwrap_or_default();
        let place = mountpoint.map(|dir| format!(" at {}", dir.display())).unwrap_or_default();
        print(&format!("mounted {}{device}{place}\nNBD socket {socket}\n", up.info.name));
    }
    Ok(())
}

/// Refuses what cannot work before anything is begun; answers whether a block device is wanted.
fn check(options: &args::Mount) -> Result<bool, Refusal> {
    let wants_device = options.dir.is_some() || options.mkfs.is_some();
    let bad = |message: &str, hint: &str| Err(Refusal::new(ErrorKind::BadRequest, message).hint(hint));
    if wants_device && options.front_end == FrontEnd::Socket {
        return bad("a file system needs a block device, and --as socket gives none", "leave --as away");
    }
    if options.read_only && options.mkfs.is_some() {
        return bad("--mkfs writes, and --read-only forbids it", "leave one of them away");
    }
    if !is_root() && (wants_device || options.front_end == FrontEnd::Fuse) {
        return bad("a block device needs root", "run it as root, or use the NBD socket: --as socket");
    }
    if let Some(dir) = &options.dir {
        if local::is_mount_point(dir) {
            return bad(&format!("something is mounted at {} already", dir.display()), "unmount it, or name another directory");
        }
        if dir.exists() && !dir.is_dir() {
            return bad(&format!("{} is not a directory", dir.display()), "name a directory");
        }
    }
    let device_possible = is_root() && Path::new("/dev/fuse").exists() && Path::new("/dev/loop-control").exists();
    if !device_possible && (wants_device || options.front_end == FrontEnd::Fuse) {
        return bad(
            "this machine has no /dev/fuse or no /dev/loop-control",
            "load the kernel's fuse and loop modules (modprobe fuse loop), or use --as socket",
        );
    }
    Ok(match options.front_end {
        FrontEnd::Fuse => true,
        FrontEnd::Socket => false,
        FrontEnd::Auto => device_possible,
    })
}

/// Refuses a volume whose client runs here. What a client that died has left behind is cleared, its dead file system
/// too, so that a new epoch goes on in the same place (F5).
fn clear_the_way(c: &Context, volume: &str) -> Result<(), Refusal> {
    let Some(mount) = local::find(c, volume) else { return Ok(()) };
    let name = &mount.info.name;
    match mount.client() {
        Client::Answers(_) => Err(Refusal::new(ErrorKind::Conflict, format!("{name} is mounted here already"))
            .hint(format!("see sublet status; to mount it anew: sublet unmount {name}"))),
        Client::Silent => {
            Err(Refusal::new(ErrorKind::Conflict, format!("{name} is mounted here, but its client does not answer"))
                .hint(format!("to end it: sublet unmount {name} --force")))
        }
        Client::Gone => unmount::clear_remains(&mount, true),
    }
}

/// Makes the path and starts the client.
pub(super) fn bring_up(c: &Context, volume: &str, how: &How) -> Result<Up, Refusal> {
    interrupt::watch()?;
    let identity = c.identity()?;
    clear_the_way(c, volume)?;
    // Asked for before anything is begun.
    let unlock = key::for_volume(c, volume, &how.key)?;
    let mount = Mount { task: new_task()?, server: identity.server, read_only: how.read_only };
    let answer = with_progress(|p| c.manager().mount(volume, mount, p))?;
    let TaskOutcome::Mounted { mounting } = answer.outcome else {
        return Err(Refusal::new(ErrorKind::Internal, "the manager mounted the volume without mounting information"));
    };
    let info = *mounting;
    match interrupt::check().and_then(|()| start(c, &info, how, unlock.as_ref())) {
        Ok((home, ready)) => Ok(Up { home, info, ready }),
        Err(refusal) => Err(undo(c, &info, refusal)),
    }
}

/// Keeps the mounting information (S35) and starts the client; returns once the volume can be used.
fn start(c: &Context, info: &MountingInformation, how: &How, unlock: Option<&Unlock>) -> Result<(MountHome, Ready), Refusal> {
    let home = local::folder(c, &info.name, info.volume)?;
    let io =
        |what: &str, e: std::io::Error| Refusal::new(ErrorKind::Io, format!("cannot {what} in {}: {e}", home.dir().display()));
    let json = serde_json::to_vec_pretty(info).map_err(|e| Refusal::new(ErrorKind::Internal, e.to_string()))?;
    write_private(&home.mount_json(), &json).map_err(|e| io("keep the mounting information", e))?;
    let log = File::options().create(true).append(true).open(home.log()).map_err(|e| io("open the log", e))?;
    let program = std::env::current_exe().map_err(|e| io("find the program", e))?;
    let mut command = Command::new(program);
    command.arg("--home").arg(c.home.root()).args(["client", "--ready-fd", "1", "--dir"]).arg(home.dir());
    if how.fuse {
        command.arg("--fuse");
    }
    for (flag, time) in [("--idle-close", how.idle_close), ("--fail-after", how.fail_after)] {
        if let Some(time) = time {
            command.args([flag, &format!("{}ms", time.as_millis())]);
        }
    }
    command.env("SUBLET_MANAGER", c.manager_urls().join(","));
    // The client must not keep a directory of the caller's busy.
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    if unlock.is_some() {
        command.arg("--key-stdin").stdin(Stdio::piped());
    }
    let mut child = command.spawn().map_err(|e| io("start the client", e))?;
    if let (Some(unlock), Some(mut input)) = (unlock, child.stdin.take()) {
        // Through a pipe: arguments and the environment can be read by others. A client that has ended says why.
        let _ = input.write_all(unlock.to_line().as_bytes());
    }
    let mut line = String::new();
    if let (Some(out), Some(pid)) = (child.stdout.take(), i32::try_from(child.id()).ok().and_then(Pid::from_raw)) {
        // It undoes what it has begun when it is told to end; the number is its own as long as nobody has waited for it.
        let end = move || {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, Signal::TERM);
        };
        let heard = interrupt::during(end, || BufReader::new(out).read_line(&mut line));
        heard.map_err(|e| io("hear from the client", e))?;
    }
    interrupt::check()?;
    if let Ok(ready) = serde_json::from_str::<Ready>(&line)
        && ready.pid != 0
    {
        return Ok((home, ready));
    }
    if let Ok(refusal) = serde_json::from_str::<Refusal>(&line) {
        return Err(refusal);
    }
    let log = home.log();
    let end = crate::playground::processes::end_of(&log);
    Err(Refusal::new(ErrorKind::Internal, format!("the client of {} did not come up; the end of its log:\n{end}", info.name)))
}

/// Makes everything undone, and returns the refusal that led to it.
fn undo(c: &Context, info: &MountingInformation, refusal: Refusal) -> Refusal {
    match unmount::take_down(c, info, true) {
        Ok(_) => refusal,
        Err(second) => {
            let message = format!("{refusal}; and undoing the mount failed: {second}");
            Refusal::new(refusal.kind, message).hint(format!("sublet unmount {}", info.name))
        }
    }
}

/// Makes the file system if wished, and mounts it.
fn attach(up: &Up, dir: &Path, options: &args::Mount) -> Result<PathBuf, Refusal> {
    if let Some(file_system) = options.mkfs {
        make_file_system(up, file_system, options.read_only)?;
    }
    let device = device_of(up)?;
    std::fs::create_dir_all(dir).map_err(|e| Refusal::new(ErrorKind::Io, format!("cannot make {}: {e}", dir.display())))?;
    let dir = dir.canonicalize().map_err(|e| Refusal::new(ErrorKind::Io, format!("cannot find {}: {e}", dir.display())))?;
    // Remembered first: an unmount after a crash must know of it.
    std::fs::write(local::mountpoint_file(&up.home), format!("{}\n", dir.display()))
        .map_err(|e| Refusal::new(ErrorKind::Io, format!("cannot remember the mount point: {e}")))?;
    let mut command = tool("mount");
    let mut hint = "if the volume has no file system yet, add --mkfs ext4";
    if options.read_only {
        command.args(["-o", "ro"]);
        // Its journal can only be replayed by writing.
        hint = "a file system that was not unmounted cleanly has to be mounted once without --read-only";
    }
    run_tool(command.arg(device).arg(&dir), "mount", hint)?;
    Ok(dir)
}

fn device_of(up: &Up) -> Result<&str, Refusal> {
    up.ready.device.as_deref().ok_or_else(|| Refusal::new(ErrorKind::Internal, "the client came up without a block device"))
}

/// Makes a file system on an empty volume; one of the same kind that is there already is kept.
fn make_file_system(up: &Up, file_system: FileSystem, read_only: bool) -> Result<(), Refusal> {
    debug_assert!(!read_only, "checked before");
    let device = device_of(up)?;
    let wanted = match file_system {
        FileSystem::Ext4 => "ext4",
        FileSystem::Xfs => "xfs",
    };
    // blkid -p looks at the bytes themselves; exit code 2 says that it knows nothing there (blkid(8)).
    let probe = tool("blkid").args(["-p", "-o", "value", "-s", "TYPE", "-s", "PTTYPE", device]).output();
    let probe = probe.map_err(|e| Refusal::new(ErrorKind::Io, format!("cannot run blkid: {e}")).hint("install util-linux"))?;
    let found = String::from_utf8_lossy(&probe.stdout).trim().replace('\n', ", ");
    match probe.status.code() {
        Some(0) if found == wanted => return Ok(()),
        Some(2) if found.is_empty() => {}
        _ => {
            let found = if found.is_empty() { String::from_utf8_lossy(&probe.stderr).trim().to_owned() } else { found };
            return Err(Refusal::new(ErrorKind::Conflict, format!("--mkfs {wanted}: the volume is not empty: {found}"))
                .hint("mount it without --mkfs, or make it empty: sublet volume init"));
        }
    }
    let mut command = match file_system {
        // Fresh volumes read as zero, so nothing needs to be discarded. The lender makes the zeroes of the inode tables: they
        // cost little, and made lazily they would keep the path in use for minutes.
        FileSystem::Ext4 => {
            let mut command = tool("mkfs.ext4");
            command.args(["-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0,assume_storage_prezeroed=0"]);
            command
        }
        FileSystem::Xfs => {
            let mut command = tool("mkfs.xfs");
            command.args(["-q", "-K"]);
            command
        }
    };
    run_tool(command.arg(device), &format!("mkfs.{wanted}"), "install e2fsprogs (ext4) or xfsprogs (xfs); xfs needs 300 MiB")
}

/// A system tool: root's programs are not on everybody's PATH in Debian.
pub(super) fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

fn run_tool(command: &mut Command, name: &str, hint: &str) -> Result<(), Refusal> {
    let output = command.output().map_err(|e| Refusal::new(ErrorKind::Io, format!("cannot run {name}: {e}")).hint(hint))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Refusal::new(ErrorKind::Io, format!("{name} failed: {text}")).hint(hint))
}
