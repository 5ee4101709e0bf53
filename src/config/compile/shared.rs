//! Rules that several VirtualServices have word for word, kept once.
//!
//! - Ten thousand hosts are mostly one pattern: of their rules one copy is kept, and of the routes
//!   that are made of them too.
//! - Rules of different namespaces are never shared: short names mean something else in each.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::config::model::{HttpRoute, Resource, Spec};
use crate::crypto::Digest;

/// The table may have so many entries more than twice those that were in use at the last sweep.
const SPARE: usize = 64;

/// The rules in use, by the namespace and the text that they come from.
#[derive(Default)]
pub(super) struct SharedRules {
    known: HashMap<(Arc<str>, Digest), Weak<[HttpRoute]>>,
    /// Entries after the last sweep.
    swept: usize,
}

impl SharedRules {
    /// Gives `resource`, which nobody else has yet, the rules of an equal one instead of its own.
    pub(super) fn share(&mut self, resource: &mut Arc<Resource>) {
        let Some(Resource { key, spec: Spec::VirtualService(service), .. }) =
            Arc::get_mut(resource)
        else {
            return;
        };
        let Some(text) = service.http_text else { return };
        let key = (Arc::clone(&key.namespace), text);
        match self.known.get(&key).and_then(Weak::upgrade) {
            Some(same) => service.http = same,
            None => drop(self.known.insert(key, Arc::downgrade(&service.http))),
        }
        self.sweep();
    }

    /// Forgets rules that nobody has any more, now and then.
    fn sweep(&mut self) {
        if self.known.len() > 2 * self.swept + SPARE {
            self.known.retain(|_, rules| rules.strong_count() > 0);
            self.swept = self.known.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::TestIdentities;
    use super::*;
    use crate::config::model::parse;
    use crate::config::source::document;

    fn service(namespace: &str, path: &str) -> Arc<Resource> {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{ name: x, namespace: {namespace} }}\nspec:\n  hosts: [ a.test ]\n  \
             http: [ {{ match: [ {{ uri: {{ prefix: {path} }} }} ], \
             route: [ {{ destination: {{ host: b }} }} ] }} ]\n"
        );
        let node = document::parse(&text).unwrap().unwrap();
        parse(&node, &TestIdentities::default()).resources.remove(0)
    }

    fn rules(resource: &Resource) -> &Arc<[HttpRoute]> {
        let Spec::VirtualService(service) = &resource.spec else { panic!("no VirtualService") };
        &service.http
    }

    #[test]
    fn the_same_text_in_the_same_namespace_is_kept_once() {
        let mut shared = SharedRules::default();
        let mut all = [("n", "/a"), ("n", "/a"), ("n", "/b"), ("other", "/a")]
            .map(|(namespace, path)| service(namespace, path));
        all.iter_mut().for_each(|resource| shared.share(resource));
        let [first, same, path, namespace] = &all;
        assert!(Arc::ptr_eq(rules(first), rules(same)));
        assert!(!Arc::ptr_eq(rules(first), rules(path)));
        assert!(!Arc::ptr_eq(rules(first), rules(namespace)));
    }

    #[test]
    fn what_nobody_has_is_forgotten() {
        let mut shared = SharedRules::default();
        for n in 0..10 * SPARE {
            shared.share(&mut service("n", &format!("/{n}")));
        }
        assert!(shared.known.len() <= SPARE + 1, "{}", shared.known.len());
    }
}
