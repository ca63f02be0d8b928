//! Cleaning rules for tags: aliases, implications, a blacklist, replacements and regular expressions.
//!
//! They work on canonical names, on whole names, and always in this order, whatever the order in the file: alias,
//! implications, blacklist, replace, regular expressions; what has one name then becomes one tag with the highest score.

mod file;
mod graph;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
};

use regex::Regex;
use serde::{Deserialize, Serialize};

use self::graph::{Graph, Reach, RuleId};
use crate::{Result, canonical, glob::Glob};

/// A tag of a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoredTag {
    /// The canonical name.
    pub name: String,
    /// The score, 0 to 1.
    pub score: f32,
    /// The category, `general` say, where it is known.
    pub category: Option<String>,
}

/// What implications do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImplicationMode {
    /// A general tag is dropped where a tag is there that implies it, of a score that is high enough.
    #[default]
    DropGeneral,
    /// Every tag that is implied is added, with the score of the tag that implies it.
    Expand,
    /// Nothing.
    Off,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleKind {
    /// Another name of the same tag.
    Alias,
    /// A special tag and the general one that it implies.
    Implication,
    /// A tag that is dropped.
    Blacklist,
    /// A name for a name.
    Replace,
    /// A name for all names of a pattern.
    Regex,
}

/// A rule, and how often it did something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleUse {
    /// What it does.
    pub kind: RuleKind,
    /// What it says: `from -> to`, or the pattern.
    pub rule: String,
    /// The file it stands in.
    pub file: PathBuf,
    /// Its line there, counted from 1.
    pub line: u64,
    /// How many tags of pictures it renamed, dropped or added.
    pub hits: u64,
}

/// How many rules of a file of aliases or implications did something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleFileUse {
    /// The file.
    pub file: PathBuf,
    /// How many rules it has.
    pub rules: u64,
    /// How many of them did something.
    pub used: u64,
}

/// Cleaning rules, ready to use.
#[derive(Debug)]
pub struct Rules {
    /// The rules file, then the files it names.
    files: Vec<PathBuf>,
    rules: Vec<Rule>,
    mode: ImplicationMode,
    /// The lowest score of a tag in whose place a general one is dropped.
    implication_min_score: f32,
    aliases: HashMap<String, (String, RuleId)>,
    graph: Graph,
    blacklist: HashMap<String, RuleId>,
    blacklist_globs: Vec<(Glob, RuleId)>,
    replace: HashMap<String, (String, RuleId)>,
    regexes: Vec<(Regex, String, RuleId)>,
}

/// Where a rule stands and what it says.
#[derive(Debug)]
struct Rule {
    kind: RuleKind,
    text: Box<str>,
    file: u32,
    line: u32,
}

/// How often each rule of one [`Rules`] did something, and what is remembered from picture to picture.
#[derive(Debug, Default)]
pub struct RuleHits {
    /// How many tags became one with another that had come to have the same name.
    pub merged: u64,
    counts: Vec<u64>,
    /// How often what a regular expression made was no name, so that the tag kept the one it had.
    unusable: BTreeMap<RuleId, u64>,
    reach: Reach,
    /// What becomes of a name after the implications.
    fates: HashMap<String, Fate>,
}

/// What becomes of a name: none where it is dropped.
#[derive(Debug)]
struct Fate {
    name: Option<String>,
    rules: Vec<RuleId>,
    /// Those whose replacement made no name.
    unusable: Vec<RuleId>,
}

impl fmt::Display for RuleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alias => "alias",
            Self::Implication => "implication",
            Self::Blacklist => "blacklist",
            Self::Replace => "replace",
            Self::Regex => "regex",
        })
    }
}

impl fmt::Display for RuleUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, rule, file, line, .. } = self;
        write!(f, "`{}` line {line}, {kind} `{rule}`", file.display())
    }
}

impl RuleHits {
    fn hit(&mut self, rules: &[RuleId]) {
        rules.iter().for_each(|rule| self.counts[*rule as usize] += 1);
    }
}

impl Rules {
    /// Reads a rules file, and the files of aliases and implications that it names.
    ///
    /// # Errors
    /// A file that cannot be read; a key that is not known; a name that is empty or holds a comma; aliases that lead in
    /// a circle, or from one name to two; a pattern that is none; a replacement that names a group which its pattern lacks. Each with file and line.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&crate::sheet::read_text(path)?, path)
    }

    /// Reads the text of a rules file that came from `path`, to which the files that it names are relative.
    ///
    /// # Errors
    /// As [`Rules::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        file::parse(text, path)
    }

    /// The rules file, then the files that it names.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Cleans the tags of one picture. The order of those that stay stays; those that are added come last.
    ///
    /// `hits` must have been used with these rules only.
    pub fn apply(&self, tags: &mut Vec<ScoredTag>, hits: &mut RuleHits) {
        hits.counts.resize(self.rules.len(), 0);
        tags.iter_mut().for_each(|tag| self.follow_aliases(&mut tag.name, hits));
        match self.mode {
            _ if self.graph.is_empty() => {}
            ImplicationMode::DropGeneral => self.drop_general(tags, hits),
            ImplicationMode::Expand => self.expand(tags, hits),
            ImplicationMode::Off => {}
        }
        tags.retain_mut(|tag| self.settle(&mut tag.name, hits));
        hits.merged += merge_doubles(tags);
    }

    fn follow_aliases(&self, name: &mut String, hits: &mut RuleHits) {
        while let Some((to, rule)) = self.aliases.get(name) {
            hits.hit(&[*rule]);
            name.clone_from(to);
        }
    }

    fn drop_general(&self, tags: &mut Vec<ScoredTag>, hits: &mut RuleHits) {
        // Of a tag that the tagger hardly believes in, the general one may be all that is true.
        let good = tags.iter().filter(|tag| tag.score >= self.implication_min_score);
        self.graph.walk(good.map(|tag| tag.name.as_str()), &mut hits.reach);
        tags.retain(|tag| {
            let implied = self.graph.is_implied(&tag.name, &hits.reach);
            if implied {
                hits.hit(&self.graph.rules_to(&tag.name, &hits.reach));
            }
            !implied
        });
    }

    fn expand(&self, tags: &mut Vec<ScoredTag>, hits: &mut RuleHits) {
        let mut sources: Vec<_> = (0..tags.len()).collect();
        sources.sort_by(|a, b| tags[*b].score.total_cmp(&tags[*a].score));
        self.graph.walk(sources.iter().map(|tag| tags[*tag].name.as_str()), &mut hits.reach);
        let mut wanted = Vec::new();
        for (name, source) in self.graph.implied(&hits.reach) {
            wanted.push((name, sources[source], self.graph.rules_to(name, &hits.reach)));
        }
        for source in sources {
            if let Some((names, rules)) = self.graph.circle_of(&tags[source].name) {
                wanted.extend(names.into_iter().map(|name| (name, source, rules.to_vec())));
            }
        }
        let mut scores: HashMap<String, f32> = HashMap::new();
        for tag in tags.iter() {
            let score = scores.entry(tag.name.clone()).or_insert(tag.score);
            *score = score.max(tag.score);
        }
        for (name, source, rules) in wanted {
            let ScoredTag { score, category, .. } = tags[source].clone();
            if scores.get(name).is_none_or(|held| *held < score) {
                scores.insert(name.to_owned(), score);
                tags.push(ScoredTag { name: name.to_owned(), score, category });
                hits.hit(&rules);
            }
        }
    }

    /// Blacklist, replacements and regular expressions. False where the tag is dropped.
    fn settle(&self, name: &mut String, hits: &mut RuleHits) -> bool {
        let RuleHits { fates, counts, unusable, .. } = hits;
        let mut apply = |fate: &Fate, name: &mut String| {
            fate.rules.iter().for_each(|rule| counts[*rule as usize] += 1);
            fate.unusable.iter().for_each(|rule| *unusable.entry(*rule).or_default() += 1);
            match &fate.name {
                Some(new) if new != name => name.clone_from(new),
                Some(_) => {}
                None => return false,
            }
            true
        };
        if let Some(fate) = fates.get(name) {
            return apply(fate, name);
        }
        let (fate, key) = (self.fate(name), name.clone());
        let stays = apply(&fate, name);
        fates.insert(key, fate);
        stays
    }

    fn fate(&self, name: &str) -> Fate {
        let glob = || self.blacklist_globs.iter().find(|(glob, _)| glob.fits(name)).map(|(_, rule)| rule);
        if let Some(rule) = self.blacklist.get(name).or_else(glob) {
            return Fate { name: None, rules: vec![*rule], unusable: Vec::new() };
        }
        let (mut rules, mut unusable) = (Vec::new(), Vec::new());
        let mut name = name.to_owned();
        if let Some((to, rule)) = self.replace.get(&name) {
            rules.push(*rule);
            name.clone_from(to);
        }
        for (pattern, replacement, rule) in &self.regexes {
            let Some(found) = pattern.captures(&name) else { continue };
            if replacement.is_empty() {
                rules.push(*rule);
                return Fate { name: None, rules, unusable };
            }
            let mut new = String::new();
            found.expand(replacement, &mut new);
            let new = canonical(&new);
            // Nothing is no name, and captions could not tell one with a comma from two.
            if new.is_empty() || new.contains(',') {
                unusable.push(*rule);
            } else {
                rules.push(*rule);
                name = new;
            }
        }
        Fate { name: Some(name), rules, unusable }
    }

    /// How often each rule did something: those of the rules file all, those of the files it names where they did.
    pub fn report(&self, hits: &RuleHits) -> Vec<RuleUse> {
        let count = |id: usize| hits.counts.get(id).copied().unwrap_or_default();
        let told = self.rules.iter().enumerate().filter(|(id, rule)| rule.file == 0 || count(*id) > 0);
        told.map(|(id, _)| self.rule_use(id, count(id))).collect()
    }

    fn rule_use(&self, id: usize, hits: u64) -> RuleUse {
        let Rule { kind, text, file, line } = &self.rules[id];
        let file = self.files[*file as usize].clone();
        RuleUse { kind: *kind, rule: text.to_string(), file, line: (*line).into(), hits }
    }

    /// How many rules of each file that the rules file names did something.
    pub fn files_used(&self, hits: &RuleHits) -> Vec<RuleFileUse> {
        let unused = |file: &PathBuf| RuleFileUse { file: file.clone(), rules: 0, used: 0 };
        let mut uses: Vec<_> = self.files.iter().map(unused).collect();
        for (id, rule) in self.rules.iter().enumerate() {
            let file = &mut uses[rule.file as usize];
            file.rules += 1;
            file.used += u64::from(hits.counts.get(id).is_some_and(|count| *count > 0));
        }
        uses.split_off(1)
    }

    /// What is suspicious: replacements that made no name, rules that did nothing, and implications in a circle.
    pub fn warnings(&self, hits: &RuleHits) -> Vec<String> {
        let unusable = hits.unusable.iter().map(|(id, times)| {
            let rule = self.rule_use(*id as usize, 0);
            format!(
                "{rule} made an empty name or one with a comma {times} times: those tags kept their names"
            )
        });
        let mut warnings: Vec<_> = unusable.collect();
        let unused = |(id, rule): (usize, &Rule)| {
            let id_hits = hits.counts.get(id).copied().unwrap_or_default();
            let silent = rule.file == 0 && id_hits == 0 && !hits.unusable.contains_key(&(id as RuleId));
            silent.then(|| format!("{} hit nothing", self.rule_use(id, 0)))
        };
        warnings.extend(self.rules.iter().enumerate().filter_map(unused));
        let files = self.files_used(hits).into_iter().filter(|file| file.used == 0);
        warnings.extend(
            files.map(|file| {
                format!("`{}`: none of its {} rules hit anything", file.file.display(), file.rules)
            }),
        );
        let circles = self.graph.circles().map(|names| {
            let mut names = names;
            names.sort_unstable();
            format!("these tags imply each other: {}; they count as one", names.join(", "))
        });
        warnings.extend(circles);
        warnings
    }
}

/// Makes one tag of those that have the same name, with the highest score, in the place of the first; tells how many
/// went.
pub fn merge_doubles(tags: &mut Vec<ScoredTag>) -> u64 {
    let mut places: HashMap<&str, usize> = HashMap::with_capacity(tags.len());
    let mut doubles = Vec::new();
    for (place, tag) in tags.iter().enumerate() {
        match places.get(tag.name.as_str()) {
            Some(first) => doubles.push((*first, place)),
            None => drop(places.insert(&tag.name, place)),
        }
    }
    for (first, double) in &doubles {
        tags[*first].score = tags[*first].score.max(tags[*double].score);
    }
    // They are in order of place.
    let mut gone = doubles.iter().map(|(_, double)| *double).peekable();
    let mut place = 0;
    if gone.peek().is_some() {
        tags.retain(|_| {
            place += 1;
            gone.next_if(|double| *double == place - 1).is_none()
        });
    }
    doubles.len() as u64
}

#[cfg(test)]
mod tests;
