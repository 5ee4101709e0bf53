//! What is built, unit by unit, and kept from one generation to the next.
//!
//! - A unit is rebuilt when what it is made of is another; what comes out equal is the same `Arc`.
//! - Listeners hold the maps of hosts: the only thing that is built anew in full when one server of
//!   many changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use super::identity::{IdentityUnit, Vault};
use super::listener::{ListenerPlan, ListenerPlans, ServerSource, ServesPlan, TlsPlan};
use super::route::{Router, TableUnit};
use crate::config::model::Tls;
use crate::snapshot::{
    Certificate, HostMap, HostPattern, Identity, Listener, ListenerKey, Rejection, Serves,
    TlsServer,
};

/// The listeners of a generation.
#[derive(Default)]
pub(super) struct Units(BTreeMap<ListenerKey, ListenerUnit>);

struct ListenerUnit {
    bind_port: u16,
    serves: ServesUnit,
    /// `None` before it was built first.
    built: Option<Arc<Listener>>,
    /// Whether some part is another than in `built`.
    is_stale: bool,
}

enum ServesUnit {
    Http(TableUnit),
    Tls(Vec<ServerUnit>),
}

/// A TLS server.
pub(super) struct ServerUnit {
    source: ServerSource,
    /// Those that no server before it has. Sorted.
    patterns: Box<[HostPattern]>,
    table: TableUnit,
    identity: IdentityUnit,
    built: Option<Arc<TlsServer>>,
    is_stale: bool,
}

impl Units {
    /// Makes the units what `plans` ask for; says whether a server is new, moved or gone.
    pub(super) fn replan(&mut self, plans: ListenerPlans) -> bool {
        let mut before = std::mem::take(&mut self.0);
        let mut differs = false;
        for (key, plan) in plans {
            let old = before.remove(&key);
            let (unit, servers_differ) = ListenerUnit::replanned(plan, old);
            differs |= servers_differ;
            self.0.insert(key, unit);
        }
        differs || !before.is_empty()
    }

    /// Finds the way of every route.
    pub(super) fn route(&mut self, router: &mut Router<'_>) {
        for (key, unit) in &mut self.0 {
            let port = key.gateway_port;
            match &mut unit.serves {
                ServesUnit::Http(table) => unit.is_stale |= table.refresh(port, router),
                ServesUnit::Tls(servers) => {
                    for server in servers {
                        server.is_stale |= server.table.refresh(port, router);
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
        let mut due: Vec<_> =
            servers.filter(|unit| unit.identity.is_stale() || is_due(unit.source.tls())).collect();
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

    /// The TLS servers.
    pub(super) fn servers(&self) -> impl Iterator<Item = &ServerUnit> {
        self.0.values().flat_map(|unit| match &unit.serves {
            ServesUnit::Http(_) => &[][..],
            ServesUnit::Tls(servers) => servers,
        })
    }

    /// How many virtual hosts there are.
    pub(super) fn hosts(&self) -> usize {
        let hosts = |unit: &ListenerUnit| match &unit.serves {
            ServesUnit::Http(table) => table.hosts(),
            ServesUnit::Tls(servers) => servers.iter().map(|server| server.table.hosts()).sum(),
        };
        self.0.values().map(hosts).sum()
    }
}

impl ListenerUnit {
    /// The unit for `plan`, which takes over what it can of `old`; and whether a server is new,
    /// moved or gone.
    fn replanned(plan: ListenerPlan, old: Option<Self>) -> (Self, bool) {
        let ListenerPlan { bind_port, serves } = plan;
        let (old, built) = old.map(|old| (old.serves, old.built)).unzip();
        let (serves, differs) = match serves {
            ServesPlan::Http(plan) => {
                let mut table = match old {
                    Some(ServesUnit::Http(table)) => table,
                    Some(ServesUnit::Tls(_)) | None => TableUnit::default(),
                };
                table.replan(plan.into_iter().collect());
                (ServesUnit::Http(table), false)
            }
            ServesPlan::Tls(plans) => {
                let old = match old {
                    Some(ServesUnit::Tls(servers)) => servers,
                    Some(ServesUnit::Http(_)) | None => Vec::new(),
                };
                let (servers, differs) = replan_servers(plans, old);
                (ServesUnit::Tls(servers), differs)
            }
        };
        (Self { bind_port, serves, built: built.flatten(), is_stale: true }, differs)
    }

    fn servers_mut(&mut self) -> &mut [ServerUnit] {
        match &mut self.serves {
            ServesUnit::Http(_) => &mut [],
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
        };
        let new = Listener { key, bind_port: self.bind_port, serves };
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
    for TlsPlan { source, patterns, table } in plans {
        let mut unit = old.remove(&source.id()).unwrap_or_else(|| ServerUnit::new(source.clone()));
        if unit.built.is_none() || !unit.source.is_same(&source) {
            unit.identity.distrust();
            differs = true;
        }
        unit.source = source;
        unit.patterns = patterns;
        unit.table.replan(table);
        servers.push(unit);
    }
    (servers, differs)
}

impl ServerUnit {
    fn new(source: ServerSource) -> Self {
        let (table, identity) = (TableUnit::default(), IdentityUnit::default());
        Self { source, patterns: Box::default(), table, identity, built: None, is_stale: true }
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
        let (identity, routes) = (self.identity.identity(), Arc::clone(self.table.table()));
        let new = TlsServer { name: self.source.name(), identity, routes };
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
    let same_identity = match (&old.identity, &new.identity) {
        (Identity::Ready(old), Identity::Ready(new)) => Arc::ptr_eq(old, new),
        (Identity::Missing, Identity::Missing) => true,
        (Identity::Ready(_), Identity::Missing) | (Identity::Missing, Identity::Ready(_)) => false,
    };
    same_identity && Arc::ptr_eq(&old.routes, &new.routes)
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
        (Serves::Http(_), Serves::Tls(_)) | (Serves::Tls(_), Serves::Http(_)) => false,
    };
    same && old.bind_port == new.bind_port
}
