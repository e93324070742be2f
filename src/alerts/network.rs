//! Which addresses may be connected to. Alerts go out of the operator's network; without this a URL, or what its name resolves to at the
//! moment, would reach into it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A stretch of addresses, as in `10.1.2.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    /// So many leading bits are the same.
    bits: u32,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u32) -> Network {
    Network { base: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), bits }
}

const fn v6(first: u16, second: u16, bits: u32) -> Network {
    Network { base: IpAddr::V6(Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, 0)), bits }
}

/// IANA's registries of special-purpose addresses: what is not for everybody, or leads elsewhere.
const NOT_PUBLIC: [Network; 21] = [
    // This network, and the machine itself by another name.
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    // Behind a carrier's NAT.
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    // Link-local; clouds answer for credentials at 169.254.169.254.
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    // 6to4 relays.
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    // Benchmarks.
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    // Multicast.
    v4(224, 0, 0, 0, 4),
    // Reserved, and broadcast.
    v4(240, 0, 0, 0, 4),
    // Teredo, ORCHID, benchmarks and the other protocol assignments.
    v6(0x2001, 0, 23),
    v6(0x2001, 0xdb8, 32),
    // 6to4, which holds any IPv4 address.
    v6(0x2002, 0, 16),
    v6(0x3fff, 0, 20),
    v6(0x5f00, 0, 16),
    v6(0xfc00, 0, 7),
];

/// Global unicast. Whatever lies outside (loopback, unspecified, IPv4 within IPv6, NAT64, link-local, multicast) is nobody's on the
/// Internet, or reaches an IPv4 address that is not looked at.
const GLOBAL_V6: Network = v6(0x2000, 0, 3);

impl Network {
    /// `None` where it is not an address, or one with a prefix after which all bits are 0.
    pub fn parse(text: &str) -> Option<Self> {
        let (base, bits) = match text.split_once('/') {
            Some((base, bits)) => (base.parse::<IpAddr>().ok()?, Some(bits.parse::<u32>().ok()?)),
            None => (text.parse().ok()?, None),
        };
        let most = if base.is_ipv4() { u32::BITS } else { u128::BITS };
        let network = Self { base, bits: bits.unwrap_or(most) };
        (network.bits <= most && network.first() == base).then_some(network)
    }

    fn first(self) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => {
                let mask = u32::MAX.checked_shl(u32::BITS.saturating_sub(self.bits)).unwrap_or(0);
                Ipv4Addr::from_bits(base.to_bits() & mask).into()
            }
            IpAddr::V6(base) => {
                let mask = u128::MAX.checked_shl(u128::BITS.saturating_sub(self.bits)).unwrap_or(0);
                Ipv6Addr::from_bits(base.to_bits() & mask).into()
            }
        }
    }

    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.base.is_ipv4() && Self { base: address, ..self }.first() == self.base
    }
}

/// Whether anybody on the Internet may be reached at it, and nobody else.
pub fn is_public(address: IpAddr) -> bool {
    let is_global = match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(_) => GLOBAL_V6.contains(address),
    };
    is_global && !NOT_PUBLIC.iter().any(|network| network.contains(address))
}

/// The address that a URL's host is, if it is one and no name.
pub fn literal(host: &str) -> Option<IpAddr> {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.unwrap_or(host).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        let public = [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "203.0.112.255",
            "203.0.114.0",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2001:4860:4860::8888",
            "2001:200::",
            "2003::",
            "2a00::1",
            "2620:4f:8000::1",
        ];
        for text in public {
            assert!(is_public(ip(text)), "{text}");
        }
        let private = [
            "0.0.0.0",
            "0.255.255.255",
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.0.0",
            "169.254.169.254",
            "169.254.170.2",
            "172.16.0.0",
            "172.31.255.255",
            "192.0.0.0",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.0",
            "192.168.255.255",
            "198.18.0.0",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.0",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:0:8.8.8.8",
            "64:ff9b::7f00:1",
            "64:ff9b::8.8.8.8",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "3fff::1",
            "3fff:fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ];
        for text in private {
            assert!(!is_public(ip(text)), "{text}");
        }
    }

    #[test]
    fn a_network_is_read_and_holds_its_own_addresses_only() {
        for (text, inside, outside) in [
            ("127.0.0.0/8", "127.255.255.255", "128.0.0.0"),
            ("10.1.2.0/24", "10.1.2.255", "10.1.3.0"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "ffff::", "1.2.3.4"),
            ("::1", "::1", "127.0.0.1"),
            ("fd00::/8", "fdff::1", "fc00::1"),
            // What is allowed is what is written: an IPv4 address in another dress is another address.
            ("127.0.0.0/8", "127.0.0.1", "::ffff:127.0.0.1"),
        ] {
            let network = Network::parse(text).unwrap();
            assert!(network.contains(ip(inside)) && !network.contains(ip(outside)), "{text}");
        }
        for text in ["", "localhost", "127.0.0.1/8", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/8/8", "::1/64", "[::1]"]
        {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }

    #[test]
    fn odd_spellings_of_an_address_are_the_address_once_they_stand_in_a_url() {
        for (url, address) in [
            ("https://127.0.0.1/", "127.0.0.1"),
            ("https://0x7f.1/", "127.0.0.1"),
            ("https://2130706433/", "127.0.0.1"),
            ("https://017700000001/", "127.0.0.1"),
            ("https://127.1:8443/x", "127.0.0.1"),
            ("https://%31%32%37.0.0.1/", "127.0.0.1"),
            ("https://１２７.0.0.1/", "127.0.0.1"),
            ("https://0/", "0.0.0.0"),
            ("https://[::ffff:169.254.169.254]/", "::ffff:a9fe:a9fe"),
            ("https://[::1]:443/", "::1"),
        ] {
            let url: reqwest::Url = url.parse().unwrap();
            assert_eq!(url.host_str().and_then(literal), Some(ip(address)), "{url}");
        }
        let named: reqwest::Url = "https://127.0.0.1.example.com/".parse().unwrap();
        assert_eq!(named.host_str().and_then(literal), None);
    }
}
