//! Groups of endpoints, of which one is chosen for a request before an endpoint is: by how near
//! they are to the gateway, or by shares.
//!
//! Having a [`Grouping`] tells you that no group is empty and none has an endpoint of another.

use super::traffic::Traffic;

/// How the endpoints of a cluster are grouped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grouping {
    /// How a group is chosen.
    pub order: GroupOrder,
    /// The groups.
    pub groups: Box<[Group]>,
}

/// How a group is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupOrder {
    /// The first one; the later ones as far as those before lack endpoints that are in.
    Nearest,
    /// Each as often as its weight says, less what it lacks of endpoints that are in.
    Shares,
}

/// Endpoints that are chosen among.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its share beside the other groups.
    pub weight: u32,
    /// Their places among the endpoints of the cluster, sorted.
    pub places: Box<[usize]>,
    /// How one of them is chosen.
    pub traffic: Traffic,
}
