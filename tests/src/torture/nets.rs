//! Network namespaces: one for each machine of a pool, joined by a bridge in one of their own, so that nothing here ever
//! touches the machine's own network. Rules of nftables cut one direction of one pair.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::all_there;
use crate::run::{run, sh, tool};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// So many namespaces; they vanish when it is dropped.
pub struct Nets {
    tag: String,
    count: usize,
}

fn hub(tag: &str) -> String {
    format!("{tag}-hub")
}

impl Nets {
    /// True if this machine can make them: root, with iproute2 and nftables.
    ///
    /// # Panics
    /// As root, if a program is missing.
    pub fn possible() -> bool {
        let missing: Vec<&str> = ["ip", "nft", "nsenter"].into_iter().filter(|name| !works(name)).collect();
        all_there(&missing) && rustix::process::geteuid().is_root()
    }

    /// As many namespaces as machines.
    ///
    /// # Panics
    /// They cannot be made.
    pub fn new(count: usize) -> Self {
        let tag = format!("sublet-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
        let nets = Self { tag, count };
        let hub = hub(&nets.tag);
        sh("ip", &["netns", "add", &hub]);
        sh("ip", &["-n", &hub, "link", "add", "br0", "type", "bridge"]);
        sh("ip", &["-n", &hub, "link", "set", "br0", "up"]);
        for node in 0..count {
            let (name, port) = (nets.name(node), format!("port{node}"));
            sh("ip", &["netns", "add", &name]);
            sh("ip", &["link", "add", &port, "netns", &hub, "type", "veth", "peer", "name", "eth0", "netns", &name]);
            sh("ip", &["-n", &hub, "link", "set", &port, "master", "br0", "up"]);
            sh("ip", &["-n", &name, "address", "add", &format!("{}/24", Self::address(node)), "dev", "eth0"]);
            sh("ip", &["-n", &name, "link", "set", "lo", "up"]);
            sh("ip", &["-n", &name, "link", "set", "eth0", "up"]);
            let rules = "add table inet sublet; add set inet sublet cut { type ipv4_addr; }; \
                         add chain inet sublet in { type filter hook input priority 0; }; \
                         add rule inet sublet in ip saddr @cut drop";
            nets.nft(node, rules);
        }
        nets
    }

    fn name(&self, node: usize) -> String {
        format!("{}-n{node}", self.tag)
    }

    fn nft(&self, node: usize, rules: &str) {
        run(self.inside(node, tool("nft")).arg(rules)).ok();
    }

    /// The words that, put before a command line, make it run there.
    pub fn prefix(&self, node: usize) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net=/run/netns/{}", self.name(node))]
    }

    /// A network device for a virtual machine on the same bridge; the words that, put before a command line, make it run
    /// where the device is.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn tap(&self, device: &str) -> Vec<String> {
        let hub = hub(&self.tag);
        sh("ip", &["-n", &hub, "tuntap", "add", "dev", device, "mode", "tap"]);
        sh("ip", &["-n", &hub, "link", "set", device, "master", "br0", "up"]);
        vec!["nsenter".to_owned(), format!("--net=/run/netns/{hub}")]
    }

    /// That command, run there.
    pub fn inside(&self, node: usize, command: Command) -> Command {
        let mut words = self.prefix(node).into_iter();
        let mut inside = tool(&words.next().unwrap_or_default());
        inside.args(words).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    /// The address of a machine.
    pub fn address(node: usize) -> String {
        format!("10.77.0.{}", node + 1)
    }

    /// Nothing that `from` sends reaches `to` any more.
    pub fn cut(&self, from: usize, to: usize) {
        self.nft(to, &format!("add element inet sublet cut {{ {} }}", Self::address(from)));
    }

    /// It does again.
    pub fn join(&self, from: usize, to: usize) {
        self.nft(to, &format!("delete element inet sublet cut {{ {} }}", Self::address(from)));
    }
}

fn works(name: &str) -> bool {
    tool(name).arg("-V").output().is_ok_and(|output| output.status.success())
}

impl Drop for Nets {
    fn drop(&mut self) {
        for node in 0..self.count {
            run(tool("ip").args(["netns", "del", &self.name(node)]));
        }
        run(tool("ip").args(["netns", "del", &hub(&self.tag)]));
    }
}
