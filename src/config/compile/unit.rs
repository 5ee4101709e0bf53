//! What is built, unit by unit, and kept from one generation to the next.
//!
//! - A unit is rebuilt when what it is made of is another; what comes out equal is the same `Arc`.
//! - Listeners hold the maps of hosts: the only thing that is built anew in full when one server of
//!   many changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use super::identity::{IdentityUnit, Vault};
use super::listener::{
    ListenerPlan, ListenerPlans, ServerSource, ServesPlan, TlsPlan, TlsRoutesPlan,
};
use super::route::{Router, TableUnit};
use super::tcp::TcpUnit;
use crate::config::model::Tls;
use crate::snapshot::{
    Certificate, HostMap, HostPattern, Identity, Listener, ListenerKey, Rejection, Serves,
    TlsServer, TlsServes,
};

/// The listeners of a generation.
#[derive(Default)]
pub(super) struct Units(BTreeMap<ListenerKey, ListenerUnit>);

struct ListenerUnit {
    gateway_port: u16,
    serves: ServesUnit,
    /// `None` before it was built first.
    built: Option<Arc<Listener>>,
    /// Whether some part is another than in `built`.
    is_stale: bool,
}

enum ServesUnit {
    Http(TableUnit),
    Tls(Vec<ServerUnit>),
    Tcp(TcpUnit),
}

/// A TLS server.
pub(super) struct ServerUnit {
    source: ServerSource,
    /// Those that no server before it has. Sorted.
    patterns: Box<[HostPattern]>,
    routes: RoutesUnit,
    /// Of no use where TLS is passed on.
    identity: IdentityUnit,
    built: Option<Arc<TlsServer>>,
    is_stale: bool,
}

/// What a TLS server does with connections.
enum RoutesUnit {
    Http(TableUnit),
    Tcp(TcpUnit),
    Passthrough(TcpUnit),
}

impl RoutesUnit {
    /// The unit for `plan`, which takes over what it can of `old`.
    fn replanned(plan: TlsRoutesPlan, old: Option<Self>) -> Self {
        let tcp = |plan, old: Option<Self>| {
            let mut unit = match old {
                Some(Self::Tcp(unit) | Self::Passthrough(unit)) => unit,
                Some(Self::Http(_)) | None => TcpUnit::default(),
            };
            unit.replan(plan);
            unit
        };
        match plan {
            TlsRoutesPlan::Http(plan) => {
                let mut unit = match old {
                    Some(Self::Http(unit)) => unit,
                    Some(Self::Tcp(_) | Self::Passthrough(_)) | None => TableUnit::default(),
                };
                unit.replan(plan);
                Self::Http(unit)
            }
            TlsRoutesPlan::Tcp(plan) => Self::Tcp(tcp(plan, old)),
            TlsRoutesPlan::Passthrough(plan) => Self::Passthrough(tcp(plan, old)),
        }
    }

    fn refresh(&mut self, port: u16, router: &mut Router<'_>) -> bool {
        match self {
            Self::Http(table) => table.refresh(port, router),
            Self::Tcp(table) | Self::Passthrough(table) => table.refresh(port, router),
        }
    }

    fn hosts(&self) -> usize {
        match self {
            Self::Http(table) => table.hosts(),
            Self::Tcp(table) | Self::Passthrough(table) => table.hosts(),
        }
    }
}

impl Units {
    /// Makes the units what `plans` ask for; says whether a server is new, moved or gone.
    pub(super) fn replan(&mut self, plans: ListenerPlans) -> bool {
        let mut before = std::mem::take(&mut self.0);
        let mut differs = false;
        for (key, plan) in plans {
            let old = before.remove(&key).or_else(|| {
                let moved = take_moved(&mut before, key);
                differs |= moved.is_some();
                moved
            });
            let (unit, servers_differ) = ListenerUnit::replanned(plan, old);
            differs |= servers_differ;
            self.0.insert(key, unit);
        }
        differs || !before.is_empty()
    }

    /// Finds the way of every route.
    pub(super) fn route(&mut self, router: &mut Router<'_>) {
        for unit in self.0.values_mut() {
            let port = unit.gateway_port;
            match &mut unit.serves {
                ServesUnit::Http(table) => unit.is_stale |= table.refresh(port, router),
                ServesUnit::Tcp(table) => unit.is_stale |= table.refresh(port, router),
                ServesUnit::Tls(servers) => {
                    for server in servers {
                        server.is_stale |= server.routes.refresh(port, router);
                    }
                }
            }
        }
    }

    /// Looks at the identities of the servers that `is_due` says; returns what is known about their
    /// certificates now.
    pub(super) fn prove(
        &mut self,
        vault: &mut Vault<'_>,
        is_due: impl Fn(&Tls) -> bool,
    ) -> Vec<Arc<Certificate>> {
        let servers = self.0.values_mut().flat_map(ListenerUnit::servers_mut);
        let terminating = servers.filter(|unit| unit.terminates());
        let mut due: Vec<_> = terminating
            .filter(|unit| unit.identity.is_stale() || is_due(unit.source.tls()))
            .collect();
        let mut parts: Vec<_> =
            due.iter_mut().map(|unit| (&unit.source, &mut unit.identity)).collect();
        let differ = vault.refresh(&mut parts);
        for (unit, differs) in due.iter_mut().zip(differ) {
            unit.is_stale |= differs;
        }
        due.iter().flat_map(|unit| unit.identity.certificates()).cloned().collect()
    }

    /// The listeners, sorted by key.
    pub(super) fn build(&mut self) -> Vec<Arc<Listener>> {
        self.0.iter_mut().map(|(key, unit)| unit.build(*key)).collect()
    }

    /// What is wrong with the servers `now`.
    pub(super) fn report(&self, now: SystemTime, out: &mut Vec<Rejection>) {
        for server in self.servers() {
            server.identity.report(&server.source, now, out);
        }
    }

    /// The servers that terminate TLS.
    pub(super) fn servers(&self) -> impl Iterator<Item = &ServerUnit> {
        let servers = self.0.values().flat_map(|unit| match &unit.serves {
            ServesUnit::Http(_) | ServesUnit::Tcp(_) => &[][..],
            ServesUnit::Tls(servers) => servers,
        });
        servers.filter(|server| server.terminates())
    }

    /// How many virtual hosts there are.
    pub(super) fn hosts(&self) -> usize {
        let hosts = |unit: &ListenerUnit| match &unit.serves {
            ServesUnit::Http(table) => table.hosts(),
            ServesUnit::Tcp(table) => table.hosts(),
            ServesUnit::Tls(servers) => servers.iter().map(|server| server.routes.hosts()).sum(),
        };
        self.0.values().map(hosts).sum()
    }
}

/// The unit whose port is `key`'s now. Its servers must stay the ones that their clients have made
/// handshakes with: connections live on.
fn take_moved(
    before: &mut BTreeMap<ListenerKey, ListenerUnit>,
    key: ListenerKey,
) -> Option<ListenerUnit> {
    // Of one generation no two overlap, so it is none that another plan has a claim to.
    let from = before.keys().copied().find(|from| from.overlaps(key))?;
    before.remove(&from).map(|unit| ListenerUnit { built: None, ..unit })
}

impl ListenerUnit {
    /// The unit for `plan`, which takes over what it can of `old`; and whether a server is new,
    /// moved or gone.
    fn replanned(plan: ListenerPlan, old: Option<Self>) -> (Self, bool) {
        let ListenerPlan { gateway_port, serves } = plan;
        let (old, built) = old.map(|old| (old.serves, old.built)).unzip();
        let (serves, differs) = match serves {
            ServesPlan::Http(plan) => {
                let mut table = match old {
                    Some(ServesUnit::Http(table)) => table,
                    Some(ServesUnit::Tls(_) | ServesUnit::Tcp(_)) | None => TableUnit::default(),
                };
                table.replan(plan.into_iter().collect());
                (ServesUnit::Http(table), false)
            }
            ServesPlan::Tcp(plan) => {
                let mut table = match old {
                    Some(ServesUnit::Tcp(table)) => table,
                    Some(ServesUnit::Tls(_) | ServesUnit::Http(_)) | None => TcpUnit::default(),
                };
                table.replan(plan);
                (ServesUnit::Tcp(table), false)
            }
            ServesPlan::Tls(plans) => {
                let old = match old {
                    Some(ServesUnit::Tls(servers)) => servers,
                    Some(ServesUnit::Http(_) | ServesUnit::Tcp(_)) | None => Vec::new(),
                };
                let (servers, differs) = replan_servers(plans, old);
                (ServesUnit::Tls(servers), differs)
            }
        };
        (Self { gateway_port, serves, built: built.flatten(), is_stale: true }, differs)
    }

    fn servers_mut(&mut self) -> &mut [ServerUnit] {
        match &mut self.serves {
            ServesUnit::Http(_) | ServesUnit::Tcp(_) => &mut [],
            ServesUnit::Tls(servers) => servers,
        }
    }

    fn build(&mut self, key: ListenerKey) -> Arc<Listener> {
        let stale = self.servers_mut().iter_mut().filter(|server| server.is_stale);
        // Each of them, not only up to the first that is another.
        let others = stale.map(ServerUnit::build).filter(|differs| *differs).count();
        self.is_stale |= others > 0;
        if let Some(built) = self.built.as_ref().filter(|_| !self.is_stale) {
            return Arc::clone(built);
        }
        let serves = match &self.serves {
            ServesUnit::Http(table) => Serves::Http(Arc::clone(table.table())),
            ServesUnit::Tls(servers) => Serves::Tls(host_map(servers)),
            ServesUnit::Tcp(table) => Serves::Tcp(Arc::clone(table.table())),
        };
        let new = Listener { key, gateway_port: self.gateway_port, serves };
        let same = self.built.take().filter(|built| is_same(built, &new));
        let built = same.unwrap_or_else(|| Arc::new(new));
        self.is_stale = false;
        self.built = Some(Arc::clone(&built));
        built
    }
}

/// The units for `plans`, which take over what they can of `old`; and whether any is new, moved or
/// gone.
fn replan_servers(plans: Vec<TlsPlan>, old: Vec<ServerUnit>) -> (Vec<ServerUnit>, bool) {
    let mut differs = plans.len() != old.len();
    let mut old: HashMap<_, _> = old.into_iter().map(|unit| (unit.source.id(), unit)).collect();
    let mut servers = Vec::with_capacity(plans.len());
    for TlsPlan { source, patterns, routes } in plans {
        let old = old.remove(&source.id());
        let (unit, is_new) = ServerUnit::replanned(source, routes, old);
        differs |= is_new;
        servers.push(ServerUnit { patterns, ..unit });
    }
    (servers, differs)
}

impl ServerUnit {
    /// The server as it is written now, which takes over what it can of `old`; and whether it is
    /// new or moved.
    fn replanned(source: ServerSource, routes: TlsRoutesPlan, old: Option<Self>) -> (Self, bool) {
        let Some(old) = old else {
            let (routes, identity) = (RoutesUnit::replanned(routes, None), IdentityUnit::default());
            let patterns = Box::default();
            let new = Self { source, patterns, routes, identity, built: None, is_stale: true };
            return (new, true);
        };
        let Self { mut identity, built, .. } = old;
        let is_new = built.is_none() || !old.source.is_same(&source);
        if is_new {
            identity.distrust();
        }
        let routes = RoutesUnit::replanned(routes, Some(old.routes));
        let (patterns, is_stale) = (old.patterns, old.is_stale | is_new);
        (Self { source, patterns, routes, identity, built, is_stale }, is_new)
    }

    /// Whether it is this server that proves who it is.
    fn terminates(&self) -> bool {
        !matches!(self.routes, RoutesUnit::Passthrough(_))
    }

    /// Where it is written.
    pub(super) fn source(&self) -> &ServerSource {
        &self.source
    }

    /// What is known about its certificates.
    pub(super) fn certificates(&self) -> &[Arc<Certificate>] {
        self.identity.certificates()
    }

    /// Says whether it is another than before.
    fn build(&mut self) -> bool {
        self.is_stale = false;
        let serves = match &self.routes {
            RoutesUnit::Http(unit) => {
                TlsServes::Http(self.identity.identity(), Arc::clone(unit.table()))
            }
            RoutesUnit::Tcp(unit) => {
                TlsServes::Tcp(self.identity.identity(), Arc::clone(unit.table()))
            }
            RoutesUnit::Passthrough(unit) => TlsServes::Passthrough(Arc::clone(unit.table())),
        };
        let new = TlsServer { name: self.source.name(), serves };
        let differs = self.built.as_ref().is_none_or(|old| !is_same_server(old, &new));
        if differs {
            self.built = Some(Arc::new(new));
        }
        differs
    }
}

fn host_map(servers: &[ServerUnit]) -> HostMap<Arc<TlsServer>> {
    let mut map = HostMap::default();
    for server in servers {
        let built = server.built.as_ref().expect("servers are built before their listener");
        for pattern in &server.patterns {
            map.insert(pattern.clone(), Arc::clone(built));
        }
    }
    map
}

fn is_same_server(old: &TlsServer, new: &TlsServer) -> bool {
    match (&old.serves, &new.serves) {
        (TlsServes::Http(old_identity, old), TlsServes::Http(identity, new)) => {
            is_same_identity(old_identity, identity) && Arc::ptr_eq(old, new)
        }
        (TlsServes::Tcp(old_identity, old), TlsServes::Tcp(identity, new)) => {
            is_same_identity(old_identity, identity) && Arc::ptr_eq(old, new)
        }
        (TlsServes::Passthrough(old), TlsServes::Passthrough(new)) => Arc::ptr_eq(old, new),
        (TlsServes::Http(..) | TlsServes::Tcp(..) | TlsServes::Passthrough(_), _) => false,
    }
}

fn is_same_identity(old: &Identity, new: &Identity) -> bool {
    match (old, new) {
        (Identity::Ready(old), Identity::Ready(new)) => Arc::ptr_eq(old, new),
        (Identity::Missing, Identity::Missing) => true,
        (Identity::Ready(_), Identity::Missing) | (Identity::Missing, Identity::Ready(_)) => false,
    }
}

fn is_same(old: &Listener, new: &Listener) -> bool {
    let same = match (&old.serves, &new.serves) {
        (Serves::Http(old), Serves::Http(new)) => Arc::ptr_eq(old, new),
        (Serves::Tls(old), Serves::Tls(new)) => {
            old.iter().count() == new.iter().count()
                && old.iter().all(|(pattern, server)| {
                    new.get(&pattern).is_some_and(|other| Arc::ptr_eq(server, other))
                })
        }
        (Serves::Tcp(old), Serves::Tcp(new)) => Arc::ptr_eq(old, new),
        (Serves::Http(_) | Serves::Tls(_) | Serves::Tcp(_), _) => false,
    };
    same && old.gateway_port == new.gateway_port
}
