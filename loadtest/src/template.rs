//! What the files in `peers/` have beyond plain text, each on a line of its own:
//!
//! - `{{when WORD OTHER}}` to `{{end}}`: kept if one of the words holds.
//! - `{{each NAME}}` to `{{end}}`: kept once for each item of that list, which `{{NAME}}` is replaced
//!   by.
//!
//! They may lie inside each other. Everything else, `{{PORT}}` for example, is left as it is.

/// What a template is expanded with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice<'a> {
    /// Those that hold.
    pub words: &'a [&'a str],
    /// Names and items; a list that is not there is empty.
    pub lists: &'a [(&'a str, Vec<String>)],
}

/// `template` without what does not hold.
pub(crate) fn expanded(template: &str, choice: Choice<'_>) -> String {
    let mut text = String::new();
    let mut lines = template.lines();
    while let Some(line) = lines.next() {
        match directive(line) {
            Some(("when", words)) => {
                let body = body(&mut lines);
                if words.split(' ').any(|word| choice.words.contains(&word)) {
                    text.push_str(&expanded(&body, choice));
                }
            }
            Some(("each", name)) => text.push_str(&repeated(name, &body(&mut lines), choice)),
            Some(_) | None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

fn repeated(name: &str, body: &str, choice: Choice<'_>) -> String {
    let body = expanded(body, choice);
    let list = choice.lists.iter().find(|(other, _)| *other == name);
    let items = list.into_iter().flat_map(|(_, items)| items);
    items.map(|item| body.replace(&format!("{{{{{name}}}}}"), item)).collect()
}

/// All lines up to the `{{end}}` that belongs here.
fn body<'a>(lines: &mut impl Iterator<Item = &'a str>) -> String {
    let (mut text, mut depth) = (String::new(), 1);
    for line in lines {
        match directive(line) {
            Some(("end", _)) => depth -= 1,
            Some(_) => depth += 1,
            None => {}
        }
        if depth == 0 {
            break;
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// `("when", "a b")` of `{{when a b}}`.
fn directive(line: &str) -> Option<(&str, &str)> {
    let inside = line.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    let (word, rest) = inside.split_once(' ').unwrap_or((inside, ""));
    matches!(word, "when" | "each" | "end").then_some((word, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_is_kept_and_lists_are_repeated() {
        let template = "\
a {{PORT}}
{{when x y}}
b
  {{each N}}
  c {{N}}
  {{when z}}
d {{N}}
  {{end}}
  {{end}}
{{end}}
{{each NONE}}
e
{{end}}
{{PORT}}
";
        let lists = [("N", vec!["1".to_owned(), "2".to_owned()])];
        let text = |words: &[&str]| expanded(template, Choice { words, lists: &lists });
        assert_eq!(text(&[]), "a {{PORT}}\n{{PORT}}\n");
        assert_eq!(text(&["y"]), "a {{PORT}}\nb\n  c 1\n  c 2\n{{PORT}}\n");
        assert_eq!(text(&["x", "z"]), "a {{PORT}}\nb\n  c 1\nd 1\n  c 2\nd 2\n{{PORT}}\n");
    }
}
