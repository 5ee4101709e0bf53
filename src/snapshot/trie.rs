//! A radix tree from paths to rules: walking a path once meets every rule that takes it.
//!
//! - A rule is its index in the order of precedence. A look-up yields the smallest one, in time
//!   that grows with the length of the path, not with the number of rules on other paths.
//! - Built once, then only read. Looking up allocates nothing.
//! - Flat: ten thousand hosts have ten thousand trees, so that a node is 16 bytes in one array, not
//!   four allocations.
//!
//! Deliberately not here: what a rule means, and regular expressions.

use std::collections::VecDeque;
use std::ops::Range;

/// How a rule's path has to lie on the request's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// Both end at the same byte.
    Exact,
    /// The rule's path is a prefix, in bytes.
    Prefix,
}

/// The tree.
#[derive(Debug, Clone)]
pub(super) struct Trie {
    /// Breadth first, so that the children of a node are neighbours. The first is the root, whose
    /// path is empty; the last is no node and only ends the ranges of the one before it.
    nodes: Box<[Node]>,
    /// The bytes between each node and its parent. Empty only for the root.
    labels: Box<[u8]>,
    /// Of each node, the rules for exactly its path, then those for all that it begins; each
    /// ascending.
    rules: Box<[u32]>,
}

/// Where a node's parts begin. They end where the next part or node begins.
#[derive(Debug, Clone, Copy)]
struct Node {
    label: u32,
    exact: u32,
    prefix: u32,
    /// In `nodes`, sorted by the first byte of their labels, which are distinct.
    children: u32,
}

impl Trie {
    /// The tree of `rules`: path, where it ends, and index. Indices must ascend.
    pub(super) fn new(rules: impl Iterator<Item = (impl AsRef<[u8]>, Ends, usize)>) -> Self {
        let mut root = Branch::default();
        for (path, ends, rule) in rules {
            let branch = root.make(path.as_ref());
            match ends {
                Ends::Exact => branch.exact.push(offset(rule)),
                Ends::Prefix => branch.prefix.push(offset(rule)),
            }
        }
        root.flatten()
    }

    /// The smallest rule that takes `path`, is accepted and smaller than `best`; `best` if there is
    /// none.
    pub(super) fn find(
        &self,
        path: &[u8],
        best: Option<usize>,
        accepts: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let (mut node, mut rest) = (0, path);
        let mut best = first(self.prefix(node), best, &accepts);
        while let Some(byte) = rest.first() {
            let Some(child) = self.child(node, *byte) else {
                return best;
            };
            let Some(after) = rest.strip_prefix(self.label(child)) else {
                return best;
            };
            (node, rest) = (child, after);
            best = first(self.prefix(node), best, &accepts);
        }
        first(self.exact(node), best, &accepts)
    }

    fn child(&self, node: usize, byte: u8) -> Option<usize> {
        let children = range(self.nodes[node].children, self.nodes[node + 1].children);
        let first = |child: &Node| self.labels[child.label as usize];
        let place = self.nodes[children.clone()].binary_search_by_key(&byte, first).ok()?;
        Some(children.start + place)
    }

    fn label(&self, node: usize) -> &[u8] {
        &self.labels[range(self.nodes[node].label, self.nodes[node + 1].label)]
    }

    fn exact(&self, node: usize) -> &[u32] {
        &self.rules[range(self.nodes[node].exact, self.nodes[node].prefix)]
    }

    fn prefix(&self, node: usize) -> &[u32] {
        &self.rules[range(self.nodes[node].prefix, self.nodes[node + 1].exact)]
    }
}

/// A node of a tree that is being built.
#[derive(Default)]
struct Branch {
    /// The bytes between the parent and this node. Empty only at the root.
    label: Vec<u8>,
    exact: Vec<u32>,
    prefix: Vec<u32>,
    /// Sorted by the first byte of their labels, which are distinct.
    children: Vec<Self>,
}

impl Branch {
    /// The branch for `path` below this one, made if need be.
    fn make(&mut self, path: &[u8]) -> &mut Self {
        let Some(byte) = path.first() else {
            return self;
        };
        let index = match self.children.binary_search_by_key(byte, |child| child.label[0]) {
            Ok(index) => index,
            Err(index) => {
                self.children.insert(index, Self { label: path.into(), ..Self::default() });
                index
            }
        };
        let child = &mut self.children[index];
        let shared = child.shared(path);
        if shared < child.label.len() {
            child.split(shared);
        }
        child.make(&path[shared..])
    }

    /// How many bytes `path` has in common with the label.
    fn shared(&self, path: &[u8]) -> usize {
        self.label.iter().zip(path).take_while(|(mine, theirs)| mine == theirs).count()
    }

    /// Cuts the label after `at` bytes; what was here moves into an only child.
    fn split(&mut self, at: usize) {
        let tail = self.label.split_off(at);
        let head = Self { label: std::mem::take(&mut self.label), ..Self::default() };
        let mut lower = std::mem::replace(self, head);
        lower.label = tail;
        self.children.push(lower);
    }

    fn flatten(&self) -> Trie {
        let (mut nodes, mut labels, mut rules) = (Vec::new(), Vec::new(), Vec::new());
        let mut queue = VecDeque::from([self]);
        while let Some(branch) = queue.pop_front() {
            // Those that are queued come first, and this node.
            let children = offset(nodes.len() + queue.len() + 1);
            let (label, exact) = (offset(labels.len()), offset(rules.len()));
            rules.extend_from_slice(&branch.exact);
            nodes.push(Node { label, exact, prefix: offset(rules.len()), children });
            rules.extend_from_slice(&branch.prefix);
            labels.extend_from_slice(&branch.label);
            queue.extend(&branch.children);
        }
        let (label, exact) = (offset(labels.len()), offset(rules.len()));
        nodes.push(Node { label, exact, prefix: exact, children: offset(nodes.len()) });
        Trie { nodes: nodes.into(), labels: labels.into(), rules: rules.into() }
    }
}

fn offset(place: usize) -> u32 {
    u32::try_from(place).expect("the paths of a virtual host come from files of some megabytes")
}

fn range(start: u32, end: u32) -> Range<usize> {
    start as usize..end as usize
}

/// The first of `rules` that is accepted and smaller than `best`; `best` if there is none.
fn first(rules: &[u32], best: Option<usize>, accepts: &impl Fn(usize) -> bool) -> Option<usize> {
    let rules = rules.iter().map(|rule| *rule as usize);
    let mut better = rules.take_while(|rule| best.is_none_or(|best| *rule < best));
    better.find(|rule| accepts(*rule)).or(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trie(rules: &[(&str, Ends, usize)]) -> Trie {
        Trie::new(rules.iter().map(|(path, ends, rule)| (path.as_bytes(), *ends, *rule)))
    }

    fn find(trie: &Trie, path: &[u8]) -> Option<usize> {
        trie.find(path, None, |_| true)
    }

    #[test]
    fn labels_split_where_paths_part() {
        let paths = ["/abc", "/abd", "/ab", "/x", ""];
        let rules =
            paths.iter().enumerate().map(|(rule, path)| (path.as_bytes(), Ends::Exact, rule));
        let trie = Trie::new(rules);
        for (rule, path) in paths.into_iter().enumerate() {
            assert_eq!(find(&trie, path.as_bytes()), Some(rule), "{path}");
        }
        for path in ["/", "/a", "/abcd", "/xy", "y"] {
            assert_eq!(find(&trie, path.as_bytes()), None, "{path}");
        }
    }

    #[test]
    fn every_prefix_on_the_way_counts() {
        let trie = trie(&[
            ("/a/b", Ends::Prefix, 0),
            ("/a", Ends::Prefix, 1),
            ("/a/b/c", Ends::Exact, 2),
            ("", Ends::Prefix, 3),
        ]);
        assert_eq!(find(&trie, b"/a/b/c"), Some(0));
        assert_eq!(find(&trie, b"/a/c"), Some(1));
        assert_eq!(find(&trie, b"/c"), Some(3));
    }

    #[test]
    fn what_is_not_accepted_leaves_the_path_to_the_next() {
        let trie = trie(&[
            ("/a", Ends::Prefix, 0),
            ("/a", Ends::Prefix, 1),
            ("/a", Ends::Prefix, 2),
            ("/a/b", Ends::Exact, 3),
        ]);
        assert_eq!(trie.find(b"/a/b", None, |rule| rule != 0), Some(1));
        assert_eq!(trie.find(b"/a/b", None, |rule| rule == 3), Some(3));
        assert_eq!(trie.find(b"/a/b", Some(1), |rule| rule > 0), Some(1));
        assert_eq!(trie.find(b"/a/b", None, |_| false), None);
    }

    #[test]
    fn the_same_path_keeps_the_first_rule() {
        let trie = trie(&[("/a", Ends::Exact, 4), ("/a", Ends::Exact, 7)]);
        assert_eq!(find(&trie, b"/a"), Some(4));
    }

    #[test]
    fn a_tree_without_rules_finds_none() {
        assert_eq!(find(&trie(&[]), b""), None);
        assert_eq!(find(&trie(&[]), b"/a"), None);
    }
}
