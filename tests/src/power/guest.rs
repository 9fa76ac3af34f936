//! A virtual machine in software emulation that runs `sublet server` and lends a whole disk: Debian's kernel, busybox and the
//! `sublet` binary in an initial file system; its state directory is on a second disk. Both disks have a volatile cache.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::disk::{Cut, Disk, Toll};
use crate::all_there;
use crate::disks::sparse_file;
use crate::process::program;
use crate::random::Random;
use crate::run::{run_within, sh, tool};
use crate::torture::nets::Nets;

/// Modules that the machine needs, in the order of their dependencies.
const MODULES: &[&str] = &[
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
];

/// What the machine says once it lends; lines of its server may stand right before and after it.
const LENDS: &str = "the-guest-lends";

/// Block size of the state disk and of its file system, in bytes.
const STATE_BLOCK: usize = 4096;

/// What can run a guest.
#[derive(Clone, Debug)]
pub struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

fn has(name: &str) -> bool {
    tool("which").arg(name).output().is_ok_and(|output| output.status.success())
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

impl Kernel {
    /// Debian's kernel for virtual machines, downloaded (not installed) to `target/guest-kernel`; none where this machine
    /// cannot run a guest.
    ///
    /// # Panics
    /// The download fails; or as root, if a program is missing.
    pub fn find() -> Option<Self> {
        let programs = ["qemu-system-x86_64", "busybox", "cpio", "dpkg-deb", "mkfs.ext4"];
        let missing: Vec<&str> = programs.into_iter().filter(|name| !has(name)).collect();
        if !all_there(&missing) || !Nets::possible() {
            return None;
        }
        let target = program().ancestors().nth(2)?.join("guest-kernel");
        if folders(&target.join("boot")).is_empty() {
            std::fs::create_dir_all(&target).unwrap();
            let depends = sh("apt-cache", &["depends", "linux-image-cloud-amd64"]).out;
            let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "))?.to_owned();
            run_within(tool("apt-get").args(["download", &package]).current_dir(&target), Duration::from_secs(300)).ok();
            let deb = folders(&target).into_iter().find(|path| path.extension().is_some_and(|e| e == "deb"))?;
            sh("dpkg-deb", &["-x", &deb.to_string_lossy(), &target.to_string_lossy()]);
        }
        let named = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"));
        let image = folders(&target.join("boot")).into_iter().find(named)?;
        let modules = folders(&target.join("lib/modules")).into_iter().next()?.join("kernel");
        Some(Self { image, modules })
    }
}

/// The machine.
pub struct Guest {
    dir: PathBuf,
    kernel: Kernel,
    /// The words before qemu's command line.
    prefix: Vec<String>,
    node: usize,
    disks: [Disk; 2],
    process: Option<Child>,
}

/// Copies a program and the libraries that it needs.
fn copy_program(root: &Path, from: &Path) {
    let to = root.join("sublet");
    std::fs::copy(from, &to).unwrap();
    sh("strip", &[&to.to_string_lossy()]);
    for word in sh("ldd", &[&from.to_string_lossy()]).out.split_whitespace().filter(|word| word.starts_with('/')) {
        let place = root.join(word.trim_start_matches('/'));
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::copy(word, place).unwrap();
    }
}

impl Guest {
    /// A machine that is off. Its address is that of number `node`, which has no namespace; it is called `name`, and will lend a disk of
    /// `size` bytes as an area called `area`.
    ///
    /// # Panics
    /// Something that it needs cannot be made.
    pub fn new(dir: &Path, kernel: Kernel, nets: &Nets, node: usize, name: &str, area: &str, size: u64) -> Self {
        let (root, modules) = (dir.join("root"), dir.join("root/modules"));
        std::fs::create_dir_all(&modules).unwrap();
        for folder in ["proc", "sys", "dev", "state", "tmp"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        for module in MODULES {
            let file = format!("{module}.ko");
            let to = modules.join(Path::new(&file).file_name().unwrap());
            std::fs::copy(kernel.modules.join(&file), to).unwrap();
        }
        let busybox = String::from_utf8(tool("which").arg("busybox").output().unwrap().stdout).unwrap();
        std::fs::copy(busybox.trim(), root.join("busybox")).unwrap();
        copy_program(&root, &program());
        let names: Vec<&str> = MODULES.iter().filter_map(|m| m.rsplit('/').next()).collect();
        let (address, manager) = (Nets::address(node), Nets::address(0));
        let init = format!(
            "#!/busybox sh\n\
             b=/busybox\n\
             $b mount -t proc proc /proc; $b mount -t sysfs sysfs /sys; $b mount -t devtmpfs dev /dev\n\
             for m in {modules}; do $b insmod /modules/$m.ko; done\n\
             $b ip link set lo up; $b ip addr add {address}/24 dev eth0; $b ip link set eth0 up\n\
             $b mount -t ext4 /dev/vdb /state || $b echo 'the state disk cannot be mounted'\n\
             export SUBLET_HOME=/state/server\n\
             /sublet --manager http://{manager}:7470 server --data /state/server --listen {address}:7470 --name {name} &\n\
             if [ ! -e /state/lent ]; then\n\
             until /sublet lend /dev/vda --name {area}; do $b sleep 1; done\n\
             $b touch /state/lent; $b sync\n\
             fi\n\
             $b echo {LENDS}\n\
             wait\n\
             $b echo 'sublet server has ended'\n\
             while true; do $b sleep 1000; done\n",
            modules = names.join(" "),
        );
        std::fs::write(root.join("init"), init).unwrap();
        sh("chmod", &["755", &root.join("init").to_string_lossy()]);
        let pack = "cd \"$0\" && find . | cpio --quiet -o -H newc > ../initrd";
        sh("sh", &["-c", pack, &root.to_string_lossy()]);
        let (data, state) = (dir.join("data.raw"), dir.join("state.raw"));
        sparse_file(&data, size);
        sparse_file(&state, 64 << 20);
        // ext4 does not outlive a torn superblock: its disk writes whole blocks.
        sh("mkfs.ext4", &["-q", "-b", &STATE_BLOCK.to_string(), &state.to_string_lossy()]);
        let disks = [Disk::serve(&data, &dir.join("data.sock"), 512), Disk::serve(&state, &dir.join("state.sock"), STATE_BLOCK)];
        Self { dir: dir.to_owned(), kernel, prefix: nets.tap(&format!("tap{node}")), node, disks, process: None }
    }

    /// Switches it on.
    ///
    /// # Panics
    /// qemu cannot be started.
    pub fn start(&mut self) {
        let (program, words) = self.prefix.split_first().expect("it runs in a namespace");
        let mut command: Command = tool(program);
        let disk =
            |disk: &Disk, id: &str| format!("file=nbd:unix:{},format=raw,if=none,id={id},cache=writeback", disk.socket.display());
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        command.args(words).arg("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg,thread=multi", "-cpu", "max"]);
        command.args(["-m", "384", "-smp", "1", "-no-reboot", "-serial", "stdio", "-kernel"]).arg(&self.kernel.image);
        command.arg("-initrd").arg(self.dir.join("initrd"));
        command.args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off"]);
        let blocks = format!(",logical_block_size={STATE_BLOCK},physical_block_size={STATE_BLOCK}");
        for (number, (id, more)) in [("data", ""), ("state", &blocks)].into_iter().enumerate() {
            command.args(["-drive", &disk(&self.disks[number], id), "-device", &format!("virtio-blk-pci,drive={id}{more}")]);
        }
        let mac = format!("52:54:00:77:00:{:02x}", self.node);
        command.args(["-netdev", &format!("tap,id=net,ifname=tap{},script=no,downscript=no", self.node)]);
        command.args(["-device", &format!("virtio-net-pci,netdev=net,mac={mac}")]).args(["-device", "virtio-rng-pci"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        self.process = Some(command.spawn().unwrap());
    }

    /// Where it writes what it says.
    pub fn log(&self) -> PathBuf {
        self.dir.join("console")
    }

    /// How often it has come as far as lending.
    pub fn boots(&self) -> usize {
        std::fs::read_to_string(self.log()).unwrap_or_default().matches(LENDS).count()
    }

    /// Cuts its power: qemu is killed, and both disks lose, keep or tear what was not flushed. What the data disk lost.
    ///
    /// # Panics
    /// It does not run.
    pub fn cut(&mut self, cut: Cut, random: &mut Random) -> Toll {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
        self.disks[1].cut(cut, random);
        self.disks[0].cut(cut, random)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the end of the guest's console:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}
