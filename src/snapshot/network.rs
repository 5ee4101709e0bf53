//! Ranges of IP addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An address and how many of its first bits count: `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    address: IpAddr,
    /// Invariant: at most the bits of `address`.
    prefix: u8,
}

/// The text is neither an address nor a range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkError;

impl Network {
    /// The range; `None` if the address has fewer bits than `prefix`.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        if u32::from(prefix) > bits(address) {
            return None;
        }
        // IPv4 in its IPv6 form has 96 bits before its own.
        let own = prefix.checked_sub(96).filter(|_| address.is_ipv6());
        Some(match (address.to_canonical(), own) {
            (v4 @ IpAddr::V4(_), Some(prefix)) => Self { address: v4, prefix },
            (IpAddr::V4(_) | IpAddr::V6(_), _) => Self { address, prefix },
        })
    }

    /// Whether `address` lies in it. An IPv4 address in its IPv6 form is the same address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differing = u32::from(own) ^ u32::from(other);
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differing = u128::from(own) ^ u128::from(other);
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

fn bits(address: IpAddr) -> u32 {
    if address.is_ipv4() { u32::BITS } else { u128::BITS }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NetworkError)?;
        let prefix = match prefix {
            Some(prefix) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => prefix.parse(),
            Some(_) => return Err(NetworkError),
            None => Ok(u8::try_from(bits(address)).expect("128 at most")),
        };
        Self::new(address, prefix.map_err(|_| NetworkError)?).ok_or(NetworkError)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be an IP address or a range of them such as `10.0.0.0/8`")
    }
}

impl std::error::Error for NetworkError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_contains_what_begins_like_it() {
        let cases = [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.1/8", "10.9.9.9", true),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("0.0.0.0/0", "255.1.2.3", true),
            ("0.0.0.0/0", "::1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("::ffff:10.0.0.0/104", "10.1.2.3", true),
            ("::ffff:10.0.0.0/104", "11.0.0.0", false),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("::ffff:0:0/95", "::fffe:0:1", true),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "::1", true),
            ("::1", "::1", true),
        ];
        for (range, address, expected) in cases {
            let address = address.parse().unwrap();
            assert_eq!(network(range).contains(address), expected, "{range} {address}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "/", "10.0.0.0/", "10.0.0.0/33", "::/129", "10.0/8", "x/8", "::1/+1"] {
            assert_eq!(text.parse::<Network>(), Err(NetworkError), "{text}");
        }
        assert_eq!(network("10.0.0.0/8").to_string(), "10.0.0.0/8");
        assert_eq!(network("::1").to_string(), "::1/128");
    }

    proptest! {
        #[test]
        fn the_mask_of_textbooks_agrees(own: u32, other: u32, prefix in 0_u8..=32) {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            let range = Network::new(Ipv4Addr::from(own).into(), prefix).unwrap();
            let contains = range.contains(Ipv4Addr::from(other).into());
            prop_assert_eq!(contains, own & mask == other & mask);
        }
    }
}
