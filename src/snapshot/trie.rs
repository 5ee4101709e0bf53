//! A radix tree from paths to rules: walking a path once meets every rule that takes it.
//!
//! - A rule is its index in the order of precedence. A look-up yields the smallest one, in time
//!   that grows with the length of the path, not with the number of rules on other paths.
//! - Built once by inserting, then only read. Looking up allocates nothing.
//!
//! Deliberately not here: what a rule means, and regular expressions.

/// How a rule's path has to lie on the request's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// Both end at the same byte.
    Exact,
    /// The rule's path is a prefix, in bytes.
    Prefix,
}

/// The tree. Its root is the empty path.
#[derive(Debug, Default)]
pub(super) struct Trie {
    root: Node,
}

#[derive(Debug, Default)]
struct Node {
    /// The bytes between the parent and this node. Empty only at the root.
    label: Box<[u8]>,
    /// Rules for exactly this path. Ascending.
    exact: Vec<usize>,
    /// Rules for this path and all that it begins. Ascending.
    prefix: Vec<usize>,
    /// Sorted by the first byte of their labels, which are distinct.
    children: Vec<Self>,
}

impl Trie {
    /// Adds a rule. Rules must come in ascending order.
    pub(super) fn insert(&mut self, path: &[u8], ends: Ends, rule: usize) {
        let node = self.root.make(path);
        match ends {
            Ends::Exact => node.exact.push(rule),
            Ends::Prefix => node.prefix.push(rule),
        }
    }

    /// The smallest rule that takes `path`, is accepted and smaller than `best`; `best` if there is
    /// none.
    pub(super) fn find(
        &self,
        path: &[u8],
        best: Option<usize>,
        accepts: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let (mut node, mut rest) = (&self.root, path);
        let mut best = first(&node.prefix, best, &accepts);
        while !rest.is_empty() {
            let Some(child) = node.child(rest[0]) else {
                return best;
            };
            let Some(after) = rest.strip_prefix(&*child.label) else {
                return best;
            };
            (node, rest) = (child, after);
            best = first(&node.prefix, best, &accepts);
        }
        first(&node.exact, best, &accepts)
    }
}

impl Node {
    fn child(&self, byte: u8) -> Option<&Self> {
        self.position(byte).ok().map(|index| &self.children[index])
    }

    /// Where the child that starts with `byte` is, or would be.
    fn position(&self, byte: u8) -> Result<usize, usize> {
        self.children.binary_search_by_key(&byte, |child| child.label[0])
    }

    /// The node for `path` below this one, made if need be.
    fn make(&mut self, path: &[u8]) -> &mut Self {
        let Some(byte) = path.first() else {
            return self;
        };
        let index = match self.position(*byte) {
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
        let (head, tail) = self.label.split_at(at);
        let head = Self { label: head.into(), ..Self::default() };
        let tail = tail.into();
        let mut lower = std::mem::replace(self, head);
        lower.label = tail;
        self.children.push(lower);
    }
}

/// The first of `rules` that is accepted and smaller than `best`; `best` if there is none.
fn first(rules: &[usize], best: Option<usize>, accepts: &impl Fn(usize) -> bool) -> Option<usize> {
    let better = rules.iter().copied().take_while(|rule| best.is_none_or(|best| *rule < best));
    better.into_iter().find(|rule| accepts(*rule)).or(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(trie: &Trie, path: &[u8]) -> Option<usize> {
        trie.find(path, None, |_| true)
    }

    #[test]
    fn labels_split_where_paths_part() {
        let mut trie = Trie::default();
        for (rule, path) in ["/abc", "/abd", "/ab", "/x", ""].into_iter().enumerate() {
            trie.insert(path.as_bytes(), Ends::Exact, rule);
        }
        for (rule, path) in ["/abc", "/abd", "/ab", "/x", ""].into_iter().enumerate() {
            assert_eq!(find(&trie, path.as_bytes()), Some(rule), "{path}");
        }
        for path in ["/", "/a", "/abcd", "/xy", "y"] {
            assert_eq!(find(&trie, path.as_bytes()), None, "{path}");
        }
    }

    #[test]
    fn every_prefix_on_the_way_counts() {
        let mut trie = Trie::default();
        trie.insert(b"/a/b", Ends::Prefix, 0);
        trie.insert(b"/a", Ends::Prefix, 1);
        trie.insert(b"/a/b/c", Ends::Exact, 2);
        trie.insert(b"", Ends::Prefix, 3);
        assert_eq!(find(&trie, b"/a/b/c"), Some(0));
        assert_eq!(find(&trie, b"/a/c"), Some(1));
        assert_eq!(find(&trie, b"/c"), Some(3));
    }

    #[test]
    fn what_is_not_accepted_leaves_the_path_to_the_next() {
        let mut trie = Trie::default();
        for rule in 0..3 {
            trie.insert(b"/a", Ends::Prefix, rule);
        }
        trie.insert(b"/a/b", Ends::Exact, 3);
        assert_eq!(trie.find(b"/a/b", None, |rule| rule != 0), Some(1));
        assert_eq!(trie.find(b"/a/b", None, |rule| rule == 3), Some(3));
        assert_eq!(trie.find(b"/a/b", Some(1), |rule| rule > 0), Some(1));
        assert_eq!(trie.find(b"/a/b", None, |_| false), None);
    }

    #[test]
    fn the_same_path_keeps_the_first_rule() {
        let mut trie = Trie::default();
        trie.insert(b"/a", Ends::Exact, 4);
        trie.insert(b"/a", Ends::Exact, 7);
        assert_eq!(find(&trie, b"/a"), Some(4));
    }
}
