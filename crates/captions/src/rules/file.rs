//! Reads a rules file and what it names, and checks it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    path::{Path, PathBuf},
};

use regex::Regex;
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use vodka_stage::{Spanned, parse_toml};

use super::{Graph, ImplicationMode, Rule, RuleId, RuleKind, Rules};
use crate::{Error, Result, canonical, caption::decimal, glob::Glob, sheet::Sheet};

/// From which score on a tag stands for the general ones that it implies: the one from which on captions have tags.
const IMPLICATION_MIN_SCORE: f32 = 0.3;

/// A rules file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    implication_mode: ImplicationMode,
    implication_min_score: Option<f32>,
    alias_files: Vec<PathBuf>,
    implication_files: Vec<PathBuf>,
    blacklist: Vec<Spanned<String>>,
    aliases: BTreeMap<Spanned<String>, String>,
    implication: Vec<WrittenImplication>,
    replace: BTreeMap<Spanned<String>, String>,
    regex: Vec<WrittenRegex>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenImplication {
    tag: Spanned<String>,
    implies: Names,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRegex {
    pattern: Spanned<String>,
    replacement: String,
}

/// One name, or several.
#[derive(Debug)]
struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;

        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a tag or a list of tags")
            }

            fn visit_str<E>(self, name: &str) -> Result<Names, E> {
                Ok(Names(vec![name.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Names, A::Error> {
                let mut all = Vec::new();
                while let Some(name) = names.next_element()? {
                    all.push(name);
                }
                Ok(Names(all))
            }
        }

        deserializer.deserialize_any(OneOrMore)
    }
}

/// Where something stands.
#[derive(Clone, Copy)]
struct Place {
    file: u32,
    line: u64,
}

/// From one name to another.
struct Pair {
    from: String,
    to: String,
    place: Place,
}

/// The rules as far as they have been read.
struct Reader {
    files: Vec<PathBuf>,
    rules: Vec<Rule>,
}

pub(super) fn parse(text: &str, path: &Path) -> Result<Rules> {
    let written: Written = parse_toml(text, path)?;
    let breaks: Vec<_> = text.match_indices('\n').map(|(offset, _)| offset).collect();
    let line = |offset: usize| breaks.partition_point(|end| *end < offset) as u64 + 1;
    let at = |offset: usize| Place { file: 0, line: line(offset) };
    let mut reader = Reader { files: vec![path.to_path_buf()], rules: Vec::new() };

    let own = reader.pairs(RuleKind::Alias, &written.aliases, &at)?;
    let from_files = reader.csv_files(RuleKind::Alias, &written.alias_files)?;
    let aliases = reader.aliases(own, from_files)?;

    let mut implications = Vec::new();
    for WrittenImplication { tag, implies: Names(names) } in &written.implication {
        let place = at(tag.span().start);
        for name in names {
            implications.push(reader.pair(RuleKind::Implication, tag.get_ref(), name, place)?);
        }
    }
    implications.extend(reader.csv_files(RuleKind::Implication, &written.implication_files)?);
    let graph = reader.graph(implications, &aliases);

    let (blacklist, blacklist_globs) = reader.blacklist(&written.blacklist, &at)?;
    let replace = reader.pairs(RuleKind::Replace, &written.replace, &at)?;
    let replace = reader.map(RuleKind::Replace, replace)?;
    let regexes = reader.regexes(&written.regex, &at)?;
    let Reader { files, rules } = reader;
    let mode = written.implication_mode;
    let implication_min_score = written.implication_min_score.unwrap_or(IMPLICATION_MIN_SCORE);
    if !(0.0..=1.0).contains(&implication_min_score) {
        let found = decimal(implication_min_score);
        return Err(Error::Range {
            setting: "implication_min_score",
            found,
            expected: "a score from 0 to 1",
        });
    }
    Ok(Rules {
        files,
        rules,
        mode,
        implication_min_score,
        aliases,
        graph,
        blacklist,
        blacklist_globs,
        replace,
        regexes,
    })
}

impl Reader {
    fn rule(&mut self, kind: RuleKind, text: String, place: Place) -> RuleId {
        // Lines beyond four thousand millions would be of no use to anybody.
        let line = u32::try_from(place.line).unwrap_or(u32::MAX);
        self.rules.push(Rule { kind, text: text.into(), file: place.file, line });
        (self.rules.len() - 1) as RuleId
    }

    /// A name that a tag can have.
    fn name(&self, kind: RuleKind, text: &str, place: Place) -> Result<String> {
        let name = canonical(text);
        match name.is_empty() || name.contains(',') {
            false => Ok(name),
            true => Err(Error::RuleName {
                path: self.files[place.file as usize].clone(),
                line: place.line,
                kind,
                found: text.to_owned(),
            }),
        }
    }

    fn pair(&self, kind: RuleKind, from: &str, to: &str, place: Place) -> Result<Pair> {
        Ok(Pair { from: self.name(kind, from, place)?, to: self.name(kind, to, place)?, place })
    }

    fn pairs(
        &self,
        kind: RuleKind,
        written: &BTreeMap<Spanned<String>, String>,
        at: &dyn Fn(usize) -> Place,
    ) -> Result<Vec<Pair>> {
        let mut written: Vec<_> = written.iter().collect();
        written.sort_by_key(|(from, _)| from.span().start);
        written
            .into_iter()
            .map(|(from, to)| self.pair(kind, from.get_ref(), to, at(from.span().start)))
            .collect()
    }

    /// Danbooru's tables of aliases and implications: the rows that are active, where there is a column `status`.
    fn csv_files(&mut self, kind: RuleKind, files: &[PathBuf]) -> Result<Vec<Pair>> {
        let folder = self.files[0].parent().unwrap_or(Path::new("")).to_path_buf();
        let mut pairs = Vec::new();
        for file in files {
            let sheet = Sheet::read_with(&folder.join(file), "antecedent_name")?;
            let file = self.files.len() as u32;
            self.files.push(sheet.path.clone());
            let (from, to) = (sheet.column("antecedent_name")?, sheet.column("consequent_name")?);
            let status = sheet.find("status")?;
            let active =
                |row: &crate::sheet::Row| status.is_none_or(|place| row.cells[place].trim() == "active");
            for row in sheet.rows.iter().filter(|row| active(row)) {
                let place = Place { file, line: row.line };
                pairs.push(self.pair(kind, &row.cells[from], &row.cells[to], place)?);
            }
        }
        Ok(pairs)
    }

    /// From each name to one other.
    fn map(&mut self, kind: RuleKind, pairs: Vec<Pair>) -> Result<HashMap<String, (String, RuleId)>> {
        let mut map: HashMap<String, (String, RuleId)> = HashMap::with_capacity(pairs.len());
        for Pair { from, to, place } in pairs {
            match map.get(&from) {
                Some((before, _)) if *before == to => {}
                Some((_, before)) => return Err(self.twice(kind, from, place, *before)),
                None => {
                    let rule = self.rule(kind, format!("{from} -> {to}"), place);
                    map.insert(from, (to, rule));
                }
            }
        }
        Ok(map)
    }

    fn twice(&self, kind: RuleKind, name: String, place: Place, before: RuleId) -> Error {
        let before = &self.rules[before as usize];
        Error::RuleTwice {
            path: self.files[place.file as usize].clone(),
            line: place.line,
            kind,
            name,
            first: self.files[before.file as usize].clone(),
            first_line: before.line.into(),
        }
    }

    /// The aliases of the rules file go before those of other files.
    fn aliases(
        &mut self,
        own: Vec<Pair>,
        from_files: Vec<Pair>,
    ) -> Result<HashMap<String, (String, RuleId)>> {
        let named: HashSet<_> = own.iter().map(|pair| pair.from.clone()).collect();
        let others = from_files.into_iter().filter(|pair| !named.contains(&pair.from));
        let pairs = own.into_iter().chain(others).collect();
        let aliases = self.map(RuleKind::Alias, pairs)?;
        self.check_circles(&aliases)?;
        Ok(aliases)
    }

    fn check_circles(&self, aliases: &HashMap<String, (String, RuleId)>) -> Result<()> {
        let mut through: HashSet<&str> = HashSet::new();
        for rule in 0..self.rules.len() {
            // In order of the rules, so that the same file always gives the same error.
            let Some((start, _)) = self.rules[rule].text.split_once(" -> ") else { continue };
            let mut path = Vec::new();
            let mut name = start;
            while !through.contains(name) {
                let Some((from, (to, _))) = aliases.get_key_value(name) else { break };
                through.insert(from);
                path.push(from.as_str());
                name = to;
            }
            if let Some(place) = path.iter().position(|before| *before == name) {
                let names: Vec<_> = path[place..].iter().copied().chain([name]).collect();
                let at = &self.rules[aliases[name].1 as usize];
                return Err(Error::AliasCircle {
                    path: self.files[at.file as usize].clone(),
                    line: at.line.into(),
                    names: names.join(" -> "),
                });
            }
        }
        Ok(())
    }

    /// Implications between the names that tags have after the aliases.
    fn graph(&mut self, pairs: Vec<Pair>, aliases: &HashMap<String, (String, RuleId)>) -> Graph {
        let real = |name: String| {
            let mut name = name;
            while let Some((to, _)) = aliases.get(&name) {
                name.clone_from(to);
            }
            name
        };
        let mut seen = HashSet::new();
        let mut edges = Vec::with_capacity(pairs.len());
        for Pair { from, to, place } in pairs {
            let text = format!("{from} -> {to}");
            let edge = (real(from), real(to));
            // A tag that implies itself says nothing, and what is said twice is said once.
            if edge.0 != edge.1 && seen.insert(edge.clone()) {
                edges.push((edge, self.rule(RuleKind::Implication, text, place)));
            }
        }
        Graph::new(edges.iter().map(|((from, to), rule)| (from.as_str(), to.as_str(), *rule)))
    }

    #[expect(clippy::type_complexity, reason = "names and patterns, each with its rule")]
    fn blacklist(
        &mut self,
        written: &[Spanned<String>],
        at: &dyn Fn(usize) -> Place,
    ) -> Result<(HashMap<String, RuleId>, Vec<(Glob, RuleId)>)> {
        let (mut names, mut globs) = (HashMap::new(), Vec::new());
        for pattern in written {
            let place = at(pattern.span().start);
            let text = self.name(RuleKind::Blacklist, pattern.get_ref(), place)?;
            let glob = Glob::of_names(&text);
            match glob.name() {
                Some(name) => {
                    let rule = self.rule(RuleKind::Blacklist, text, place);
                    names.insert(name, rule);
                }
                None => globs.push((glob, self.rule(RuleKind::Blacklist, text, place))),
            }
        }
        Ok((names, globs))
    }

    fn regexes(
        &mut self,
        written: &[WrittenRegex],
        at: &dyn Fn(usize) -> Place,
    ) -> Result<Vec<(Regex, String, RuleId)>> {
        let mut regexes = Vec::new();
        for WrittenRegex { pattern, replacement } in written {
            let place = at(pattern.span().start);
            let anchored = Regex::new(&format!("^(?:{})$", pattern.get_ref()));
            // A pattern that closes the brackets around it would get loose.
            let alone = Regex::new(pattern.get_ref());
            let regex = alone.and(anchored).map_err(|source| Error::RulePattern {
                path: self.files[0].clone(),
                line: place.line,
                source: Box::new(source),
            })?;
            if let Some(group) = unknown_group(&regex, replacement) {
                let text =
                    format!("the replacement names the group `{group}`, which the pattern does not have");
                let hint = "where a letter, a digit or `_` follows a group, write it as in `${1}_x`";
                return Err(Error::RulePattern {
                    path: self.files[0].clone(),
                    line: place.line,
                    source: Box::new(regex::Error::Syntax(format!("{text}; {hint}"))),
                });
            }
            let text = format!("{} -> {replacement}", pattern.get_ref());
            regexes.push((regex, replacement.clone(), self.rule(RuleKind::Regex, text, place)));
        }
        Ok(regexes)
    }
}

/// The first group that a replacement names and the pattern lacks, read as `Captures::expand` does.
fn unknown_group<'a>(regex: &Regex, replacement: &'a str) -> Option<&'a str> {
    let mut rest = replacement;
    while let Some((_, after)) = rest.split_once('$') {
        let bare = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
        let (group, next) = match after.strip_prefix('{').and_then(|braced| braced.split_once('}')) {
            _ if after.starts_with('$') => (None, &after[1..]),
            Some((group, next)) => (Some(group), next),
            None => (Some(&after[..bare]).filter(|group| !group.is_empty()), &after[bare..]),
        };
        let known = |group: &str| match group.parse::<usize>() {
            Ok(number) => number < regex.captures_len(),
            Err(_) => regex.capture_names().flatten().any(|name| name == group),
        };
        if let Some(group) = group.filter(|group| !known(group)) {
            return Some(group);
        }
        rest = next;
    }
    None
}
