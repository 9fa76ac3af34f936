//! Which boot of the kernel this is: after another one unflushed writes may be lost.

use std::io;

/// Names the variable that makes this boot look like another one. For tests of what a reboot would do, and for nothing else.
const BOOT_ID_VARIABLE: &str = "SUBLET_BOOT_ID";

/// The kernel's boot id (`/proc/sys/kernel/random/boot_id`), mixed with what `SUBLET_BOOT_ID` says in tests. Never a number that
/// stands for "not known": two boots that are not known would look like the same one, and hide a loss (W5).
///
/// # Errors
/// If it cannot be read, or one of the two is not 128 bits in hexadecimal digits (with or without hyphens).
pub fn boot_id() -> io::Result<u128> {
    let kernels = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(|e| io::Error::new(e.kind(), format!("the kernel's boot id cannot be read: {e}")))?;
    let kernels = parse(kernels.trim())?;
    let Some(text) = std::env::var_os(BOOT_ID_VARIABLE) else { return Ok(kernels) };
    tracing::warn!(value = %text.to_string_lossy(), "{BOOT_ID_VARIABLE} is set: that is for tests of what a reboot does");
    Ok(combine(kernels, parse(text.to_string_lossy().trim())?))
}

/// The variable can make one boot look like several, never several like one (W5): it is added to what the kernel says.
const fn combine(kernels: u128, variable: u128) -> u128 {
    kernels ^ variable
}

fn parse(text: &str) -> io::Result<u128> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let whole = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    u128::from_str_radix(&digits, 16)
        .ok()
        .filter(|_| whole)
        .ok_or_else(|| io::Error::other(format!("'{text}' is no boot id: it has to have 32 hexadecimal digits")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w5_the_variable_never_hides_a_reboot() {
        let (kernel, rebooted) = (0x1234, 0x5678);
        for variable in [0, 1, 0x1234, u128::MAX] {
            assert_ne!(combine(kernel, variable), combine(rebooted, variable), "a real reboot is seen");
            assert_eq!(combine(kernel, variable), combine(kernel, variable), "a restart is none");
            assert_ne!(combine(kernel, variable), combine(kernel, variable ^ 1), "another value is one");
        }
    }

    #[test]
    fn the_kernels_boot_id_is_read_and_what_is_none_is_refused() {
        assert_ne!(boot_id().unwrap(), 0);
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        assert_eq!(parse("0123abcd-0000-0000-0000-0000000000ff").unwrap(), 0x0123_abcd_0000_0000_0000_0000_0000_00ff);
        for bad in ["", "0", "unknown", "+123abcd-0000-0000-0000-0000000000ff", "0123abcd-0000-0000-0000-0000000000ffff"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
