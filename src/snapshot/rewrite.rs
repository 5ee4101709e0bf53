//! How a path becomes another one.

/// A new path for the one that a route has matched; both without query.
#[derive(Debug, Clone)]
pub enum PathRewrite {
    /// The first bytes, which the route has matched, are replaced.
    Prefix {
        /// How many.
        bytes: usize,
        /// By this.
        with: String,
    },
    /// All of it is replaced.
    Whole(String),
    /// Every match of an expression is replaced.
    Regex(RegexRewrite),
}

impl PathRewrite {
    /// The new path for `path`.
    #[must_use]
    pub fn apply(&self, path: &str) -> String {
        match self {
            Self::Prefix { bytes, with } => {
                let rest = path.get(*bytes..).unwrap_or_default();
                [with.as_str(), rest].concat()
            }
            Self::Whole(with) => with.clone(),
            Self::Regex(rewrite) => rewrite.apply(path),
        }
    }
}

/// A regular expression and what its matches are replaced by.
#[derive(Debug, Clone)]
pub struct RegexRewrite {
    regex: regex::Regex,
    pieces: Vec<Piece>,
    text: String,
}

#[derive(Debug, Clone)]
enum Piece {
    Text(String),
    /// What a group has matched; 0 is the whole match.
    Group(usize),
}

impl RegexRewrite {
    /// Compiles `pattern` and its replacement, in which `\1` stands for the first group and `\\`
    /// for a backslash.
    ///
    /// # Errors
    /// Which of both is wrong, and why.
    pub fn parse(pattern: &str, replacement: &str) -> Result<Self, RewriteError> {
        let regex =
            regex::Regex::new(pattern).map_err(|error| RewriteError::Pattern(error.to_string()))?;
        let pieces = pieces(replacement).map_err(RewriteError::Replacement)?;
        let groups = regex.captures_len();
        let wrong = pieces.iter().find_map(|piece| match piece {
            Piece::Group(group) if *group >= groups => Some(*group),
            Piece::Group(_) | Piece::Text(_) => None,
        });
        match wrong {
            Some(group) => {
                let what = format!("`\\{group}`, but the expression has no such group");
                Err(RewriteError::Replacement(what))
            }
            None => Ok(Self { regex, pieces, text: replacement.to_owned() }),
        }
    }

    /// The expression.
    #[must_use]
    pub fn pattern(&self) -> &str {
        self.regex.as_str()
    }

    /// The replacement as it was written.
    #[must_use]
    pub fn replacement(&self) -> &str {
        &self.text
    }

    fn apply(&self, path: &str) -> String {
        let replaced = self.regex.replace_all(path, |found: &regex::Captures<'_>| {
            let piece = |piece: &Piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Group(group) => {
                    found.get(*group).map_or_else(String::new, |group| group.as_str().to_owned())
                }
            };
            self.pieces.iter().map(piece).collect::<String>()
        });
        replaced.into_owned()
    }
}

/// Why a rewrite cannot be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RewriteError {
    /// The expression is wrong.
    Pattern(String),
    /// The replacement is wrong.
    Replacement(String),
}

fn pieces(replacement: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut rest = replacement.chars();
    while let Some(char) = rest.next() {
        if char != '\\' {
            text.push(char);
            continue;
        }
        match rest.next() {
            Some('\\') => text.push('\\'),
            Some(digit) if digit.is_ascii_digit() => {
                if !text.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut text)));
                }
                pieces.push(Piece::Group(digit as usize - '0' as usize));
            }
            _ => return Err("a `\\` must be followed by a digit or another `\\`".to_owned()),
        }
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_string_that_is_replaced() {
        let rewrite = |bytes, with: &str| PathRewrite::Prefix { bytes, with: with.to_owned() };
        assert_eq!(rewrite(4, "/new").apply("/old/x"), "/new/x");
        assert_eq!(rewrite(4, "/").apply("/foo/bar"), "//bar", "as in Istio");
        assert_eq!(rewrite(5, "/").apply("/foo/bar"), "/bar");
        assert_eq!(rewrite(1, "/v1").apply("/x"), "/v1x");
    }

    #[test]
    fn matches_are_replaced_by_groups_and_text() {
        let rewrite = |pattern, with| {
            RegexRewrite::parse(pattern, with).map(|rewrite| rewrite.apply("/service/foo/v1/api"))
        };
        let one = rewrite("^/service/([^/]+)(/.*)$", r"\2/instance/\1");
        assert_eq!(one.unwrap(), "/v1/api/instance/foo");
        assert_eq!(rewrite("one", "two").unwrap(), "/service/foo/v1/api");
        assert_eq!(rewrite("/", r"\0\\$1").unwrap(), r"/\$1service/\$1foo/\$1v1/\$1api");
        assert_eq!(rewrite("(x)?/v1", r"<\1>").unwrap(), "/service/foo<>/api");
        assert!(matches!(rewrite("(", ""), Err(RewriteError::Pattern(_))));
        for replacement in [r"\2", r"\x", "\\"] {
            let wrong = rewrite("(a)", replacement);
            assert!(matches!(wrong, Err(RewriteError::Replacement(_))), "{replacement}");
        }
    }
}
