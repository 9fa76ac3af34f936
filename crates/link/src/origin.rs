//! Which machine a connection comes from, as far as its address tells.

use std::net::{IpAddr, Ipv6Addr};

/// The leading bits of an IPv6 address that all addresses of one machine have in common.
const MACHINE_BITS: u128 = u128::MAX << 64;

/// The same for all addresses that one machine can take by itself: the network of an IPv6 address, an IPv4 address as it is.
pub fn machine_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & MACHINE_BITS).into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_machine_are_the_same() {
        let machine = |text: &str| machine_of(text.parse().unwrap());
        assert_eq!(machine("2001:db8:1:2:a::b"), machine("2001:db8:1:2:c::d"));
        assert_ne!(machine("2001:db8:1:2::1"), machine("2001:db8:1:3::1"));
        assert_eq!(machine("::ffff:192.0.2.7"), machine("192.0.2.7"));
        assert_ne!(machine("192.0.2.7"), machine("192.0.2.8"));
    }
}
