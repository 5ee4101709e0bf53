//! Where an endpoint or a listener is: an IP address and port, or a Unix domain socket.
//!
//! - An [`Address`] is plain data, no larger than a `SocketAddr`: it is copied into pools and log
//!   records, and for an IP address it is compared and hashed as that alone.
//! - The path of a socket is kept once and for ever, so that it can be named by a reference.
//!   Nothing but configuration makes one, at most [`PATHS_MAX`] are ever made, and each is at most
//!   as long as the kernel allows: what is never freed is bounded.
//!
//! Deliberately not here: sockets, and what a `unix://` in a resource may stand for.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::PoisonError;

/// How many different paths a process can know in its life. With the longest ones that is 7 MB.
pub const PATHS_MAX: usize = 1 << 16;

/// The longest path: `sun_path` has 108 bytes, of which one ends it, or begins an abstract name.
pub const PATH_BYTES_MAX: usize = 107;

/// All that were made.
#[expect(clippy::disallowed_types, reason = "only who reads configuration takes it, no worker")]
static PATHS: std::sync::Mutex<BTreeSet<&str>> = std::sync::Mutex::new(BTreeSet::new());

/// An IP address and port, or a Unix domain socket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// TCP.
    Ip(SocketAddr),
    /// A stream socket of this host.
    Pipe(PipePath),
}

const _: () = assert!(size_of::<Option<Address>>() == size_of::<SocketAddr>());

impl Address {
    /// The IP address and port.
    #[must_use]
    pub fn ip(self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(address),
            Self::Pipe(_) => None,
        }
    }

    /// The IP address alone, as [`canonical`] has it.
    #[must_use]
    pub fn canonical_ip(self) -> Option<IpAddr> {
        self.ip().map(|address| address.ip().to_canonical())
    }
}

/// `address` as one of IPv4 if it is that in the form of IPv6, as who listens on both gets it.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for Address {
    fn from(pair: (I, u16)) -> Self {
        Self::Ip(pair.into())
    }
}

#[cfg(test)]
impl std::str::FromStr for Address {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self::Ip)
    }
}

// As the address alone: pools look one up for each request.
impl Hash for Address {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Ip(address) => address.hash(state),
            Self::Pipe(path) => path.hash(state),
        }
    }
}

// As that of an address.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Pipe(path) => path.fmt(f),
        }
    }
}

/// The path of a Unix domain socket; or `@` and the name of an abstract one, which is no file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PipePath(&'static str);

/// Why a text is no path of a Unix domain socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PipePathError {
    /// It is neither an absolute path to a file nor `@` and a name.
    NotAbsolute,
    /// It has so many bytes.
    TooLong(usize),
    /// A control character is in it. A NUL would end it, the others would go into headers.
    Control,
    /// There were too many others.
    TooMany,
}

impl PipePath {
    /// That of a socket without a name, as clients have.
    pub const UNNAMED: Self = Self("");

    /// `text` as a path that stays.
    ///
    /// # Errors
    /// No socket can have it.
    pub fn new(text: &str) -> Result<Self, PipePathError> {
        let is_name = text.len() > 1 && text.starts_with('@');
        if !is_name && (!text.starts_with('/') || text.ends_with('/')) {
            return Err(PipePathError::NotAbsolute);
        }
        if text.len() > PATH_BYTES_MAX {
            return Err(PipePathError::TooLong(text.len()));
        }
        if text.contains(|character: char| character.is_control()) {
            return Err(PipePathError::Control);
        }
        let mut paths = PATHS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = paths.get(text) {
            return Ok(Self(known));
        }
        if paths.len() == PATHS_MAX {
            return Err(PipePathError::TooMany);
        }
        let path: &'static str = Box::leak(Box::from(text));
        paths.insert(path);
        Ok(Self(path))
    }

    /// As it is written, with `@` before an abstract name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.0
    }

    /// The abstract name, if it is one.
    #[must_use]
    pub fn abstract_name(self) -> Option<&'static str> {
        self.0.strip_prefix('@')
    }
}

impl fmt::Debug for PipePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for PipePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Display for PipePathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAbsolute => {
                f.write_str("must be an absolute path to a file, or `@` and an abstract name")
            }
            Self::TooLong(bytes) => {
                write!(f, "has {bytes} bytes, and a socket's path has at most {PATH_BYTES_MAX}")
            }
            Self::Control => f.write_str("has a control character in it"),
            Self::TooMany => {
                write!(
                    f,
                    "is one socket more than the {PATHS_MAX} that can be known until a restart"
                )
            }
        }
    }
}

impl std::error::Error for PipePathError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_of(value: impl Hash) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        value.hash(&mut hasher);
        hasher.finish()
    }

    #[test]
    fn a_path_is_kept_once() {
        let [one, two] = [(); 2].map(|()| PipePath::new("/run/kept.sock").unwrap());
        assert!(std::ptr::eq(one.as_str(), two.as_str()));
        assert_ne!(one, PipePath::new("@/run/kept.sock").unwrap());
    }

    #[test]
    fn a_name_is_abstract_and_a_path_is_not() {
        assert_eq!(PipePath::new("@a b").unwrap().abstract_name(), Some("a b"));
        assert_eq!(PipePath::new("/@a").unwrap().abstract_name(), None);
    }

    #[test]
    fn what_no_socket_can_have_is_refused() {
        for text in ["", "@", "/", "run/x", "/run/"] {
            assert_eq!(PipePath::new(text), Err(PipePathError::NotAbsolute), "{text}");
        }
        for text in ["/a\0b", "@a\nb"] {
            assert_eq!(PipePath::new(text), Err(PipePathError::Control), "{text:?}");
        }
        for first in ["/", "@"] {
            let longest = format!("{first}{}", "a".repeat(PATH_BYTES_MAX - 1));
            assert_eq!(PipePath::new(&longest).unwrap().as_str(), longest);
            let longer = PipePath::new(&format!("{longest}a"));
            assert_eq!(longer, Err(PipePathError::TooLong(PATH_BYTES_MAX + 1)));
        }
    }

    #[test]
    fn a_mapped_address_is_written_as_ipv4() {
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:80".parse().unwrap();
        assert_eq!(canonical(mapped), ([192, 0, 2, 1], 80).into());
        let other: SocketAddr = "[2001:db8::1]:80".parse().unwrap();
        assert_eq!(canonical(other), other);
        assert_eq!(Address::Ip(mapped).canonical_ip(), Some([192, 0, 2, 1].into()));
        assert_eq!(Address::Pipe(PipePath::UNNAMED).canonical_ip(), None);
    }

    #[test]
    fn an_ip_address_is_hashed_as_it_was() {
        let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
        assert_eq!(hash_of(Address::from(address)), hash_of(address));
        let path = Address::Pipe(PipePath::new("/run/hashed").unwrap());
        assert_ne!(path, Address::from(address));
        assert_eq!((path.to_string(), path.ip()), ("/run/hashed".to_owned(), None));
    }
}
