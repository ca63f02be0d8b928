//! The dataset that a query is asked of: a folder of pictures, its captions, and the tagger's tables.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use vodka_images::{find, relative_name, size};
use vodka_stage::{Hasher, RunKey};

use super::{
    Facts, Names, PictureFacts, PictureTable, Query, QueryFault, pictures,
    syntax::{Flag, NumberField, Test, TextField},
};
use crate::{
    Error, Picture, Result, TagTable, captioned::Captioned, sheet::Sheet, sidecar, table::pictures_beside,
};

/// A dataset as a user names it. All paths are optional; a query says which of them it needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// The folder of pictures. Without one, the pictures are those that the tables name.
    #[serde(default)]
    pub images: Option<PathBuf>,
    /// The tag table: Parquet or CSV.
    #[serde(default)]
    pub tags: Option<PathBuf>,
    /// The table of pictures; by default the tagger's `X.pictures.parquet` beside the tag table `X.parquet`, if it is there.
    #[serde(default)]
    pub pictures: Option<PathBuf>,
    /// The folder of captions, in which they lie as the pictures do in theirs; by default the folder of pictures.
    #[serde(default)]
    pub captions: Option<PathBuf>,
    /// The tagger's vocabulary (CSV with a column `name`): tags that may be asked for though no picture has them.
    #[serde(default)]
    pub labels: Option<PathBuf>,
    /// Lists of pictures to leave out ([`super::read_exclusions`]).
    #[serde(default)]
    pub without: Vec<PathBuf>,
    /// The score at which a tag counts as there where the query does not compare, 0 to 1.
    #[serde(default = "three_tenths")]
    pub min_score: f32,
    /// Names that no picture has are warnings, not errors.
    #[serde(default)]
    pub lenient: bool,
}

fn three_tenths() -> f32 {
    0.3
}

impl Default for Dataset {
    fn default() -> Self {
        Self {
            images: None,
            tags: None,
            pictures: None,
            captions: None,
            labels: None,
            without: Vec::new(),
            min_score: three_tenths(),
            lenient: false,
        }
    }
}

/// A dataset whose settings have been checked, with nothing left to be found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatasetPlan(Dataset);

/// What has been read of a dataset.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// The pictures, in order of name.
    pub pictures: Vec<Facts>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Pictures that cannot be read.
    pub unread: Vec<Unread>,
}

/// What the folders say.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OnDisk {
    pub(crate) pictures: Vec<Facts>,
    /// What the user should know about the captions.
    warnings: Vec<String>,
}

/// A picture that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// The picture.
    pub image: String,
    /// Why.
    pub reason: String,
}

/// What must be read to answer queries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) tags: bool,
    pub(crate) size: bool,
    pub(crate) bytes: bool,
    pub(crate) sharpness: bool,
    pub(crate) hash: bool,
    pub(crate) captions: bool,
    pub(crate) exists: bool,
}

impl Dataset {
    /// Checks what can be checked without reading, and looks for the table of pictures.
    ///
    /// # Errors
    /// A minimum score outside 0 to 1; neither a folder nor a table.
    pub fn plan(&self) -> Result<DatasetPlan> {
        if !(0.0..=1.0).contains(&self.min_score) {
            let found = f64::from(self.min_score);
            return Err(Error::Range { setting: "min_score", found, expected: "a score from 0 to 1" });
        }
        if self.images.is_none() && self.tags.is_none() && self.pictures.is_none() {
            return Err(Error::NoDataset);
        }
        let beside = || self.tags.as_deref().and_then(pictures_beside);
        Ok(DatasetPlan(Self { pictures: self.pictures.clone().or_else(beside), ..self.clone() }))
    }
}

impl Needs {
    pub(crate) fn of<'a>(queries: impl IntoIterator<Item = &'a Query>) -> Self {
        let mut needs = Self::default();
        queries.into_iter().flat_map(|query| query.expression().tests()).for_each(|test| needs.add(test));
        needs
    }

    fn add(&mut self, test: &Test) {
        use NumberField::{Aspect, Bytes, Height, Megabytes, Pixels, Tokens, Width, Words};
        match test {
            Test::Score { .. } | Test::Flag(Flag::Tagged) => self.tags = true,
            Test::Number { field: Width | Height | Pixels | Aspect, .. } => self.size = true,
            Test::Number { field: Bytes | Megabytes, .. } => self.bytes = true,
            Test::Number { field: Tokens | Words, .. }
            | Test::Text { field: TextField::Caption, .. }
            | Test::Flag(Flag::Captioned) => self.captions = true,
            Test::Number { .. } => self.sharpness = true,
            Test::Text { field: TextField::Hash, .. } | Test::Flag(Flag::Duplicate) => self.hash = true,
            Test::Flag(Flag::Exists) => self.exists = true,
            Test::Text { .. } => {}
        }
    }
}

impl DatasetPlan {
    /// The settings, with the table of pictures that was found.
    pub fn dataset(&self) -> &Dataset {
        &self.0
    }

    /// That the dataset has what the query needs.
    pub(crate) fn check(&self, query: &Query) -> Result<()> {
        let Dataset { images, tags, pictures, captions, .. } = &self.0;
        for (number, test) in query.expression().tests().into_iter().enumerate() {
            let mut needs = Needs::default();
            needs.add(test);
            let needed = [
                (needs.tags && tags.is_none(), "the tag table"),
                (needs.bytes && images.is_none(), "the folder of pictures"),
                (needs.exists && images.is_none(), "the folder of pictures"),
                (needs.captions && images.is_none() && captions.is_none(), "the folder of pictures"),
                ((needs.sharpness || needs.hash) && pictures.is_none(), "the table of pictures"),
                (needs.size && images.is_none() && pictures.is_none(), "the table or the folder of pictures"),
            ];
            if let Some((_, needed)) = needed.into_iter().find(|(lacking, _)| *lacking) {
                return Err(query.error(number, QueryFault::Needs { field: test.field(), needed }).into());
            }
        }
        Ok(())
    }

    /// What the folders say. Without a folder of pictures the tables are read only for which captions to read.
    pub(crate) fn on_disk(&self, needs: Needs) -> Result<OnDisk> {
        let mut pictures = Vec::new();
        if let Some(root) = &self.0.images {
            let found = find(root)?;
            if found.is_empty() {
                return Err(Error::NoImages { root: root.clone() });
            }
            let facts =
                |path: &PathBuf| Facts { image: relative_name(path), on_disk: true, ..Facts::default() };
            pictures = found.iter().map(facts).collect();
            let without = self.without()?;
            pictures.retain(|facts| !without.contains(&facts.image));
            if needs.bytes {
                let bytes = |image: &str| fs::metadata(root.join(image)).ok().map(|metadata| metadata.len());
                pictures.par_iter_mut().for_each(|facts| facts.bytes = bytes(&facts.image));
            }
        } else if needs.captions {
            pictures = self.named()?;
        }
        let warnings = if needs.captions { self.read_captions(&mut pictures)? } else { Vec::new() };
        Ok(OnDisk { pictures, warnings })
    }

    /// The pictures that the tables name, in order of name.
    fn named(&self) -> Result<Vec<Facts>> {
        let mut named = BTreeSet::new();
        if let Some(path) = &self.0.pictures {
            named.extend(PictureTable::read(path)?.rows.into_iter().map(|row| row.image));
        }
        if let Some(path) = &self.0.tags {
            named.extend(TagTable::open(path)?.images()?);
        }
        let without = self.without()?;
        let named = named.into_iter().filter(|image| !without.contains(image));
        Ok(named.map(|image| Facts { image, ..Facts::default() }).collect())
    }

    fn without(&self) -> Result<BTreeSet<String>> {
        super::read_all_exclusions(&self.0.without)
    }

    /// The folder with the captions.
    pub(crate) fn captions(&self) -> Option<&Path> {
        self.0.captions.as_deref().or(self.0.images.as_deref())
    }

    /// Gives the pictures their captions, and tells what there is to say about those.
    fn read_captions(&self, pictures: &mut [Facts]) -> Result<Vec<String>> {
        let Some(root) = self.captions() else { return Ok(Vec::new()) };
        let picture = |facts: &Facts| Picture {
            image: facts.image.clone(),
            caption: Path::new(&facts.image).with_extension("txt"),
        };
        let pictures_here = pictures.iter().map(picture).collect();
        let Captioned { mut captions, warnings, .. } = Captioned::of(root, pictures_here)?;
        for facts in pictures.iter_mut() {
            facts.caption = captions.remove(&facts.image).map(|caption| caption.text);
        }
        let captioned = pictures.iter().filter(|facts| facts.caption.is_some());
        check_shared(root, captioned.map(|facts| facts.image.as_str()))?;
        Ok(warnings)
    }

    /// All that the answers depend on besides the queries: the tables by content, the pictures by name (and size, where
    /// that counts), the captions by content where they count.
    pub(crate) fn inputs(&self, mut key: RunKey, pictures: &[Facts], needs: Needs) -> Result<RunKey> {
        let Dataset { images, tags, pictures: table, labels, without, .. } = &self.0;
        for (name, path) in [("tags", tags), ("pictures", table), ("labels", labels)] {
            if let Some(path) = path {
                key = key.input(name, path, |_| true)?;
            }
        }
        for (number, path) in without.iter().enumerate() {
            key = key.input(&format!("without {}", number + 1), path, |_| true)?;
        }
        let (name, root) = match (images, self.captions()) {
            (Some(images), _) => ("images", images.as_path()),
            (None, Some(captions)) if needs.captions => ("captions", captions),
            (None, _) => return Ok(key),
        };
        let mut hasher = Hasher::default();
        for facts in pictures {
            hasher.piece(&facts.image);
            if needs.bytes || needs.size {
                let bytes = facts.bytes.or_else(|| Some(fs::metadata(root.join(&facts.image)).ok()?.len()));
                hasher.piece(format!("{bytes:?}"));
            }
            hasher.piece(format!("{:?}", facts.caption));
        }
        Ok(key.input_hashed(name, root, hasher.finish()))
    }

    /// Adds what the tables say.
    pub(crate) fn complete(
        &self,
        queries: &[&Query],
        needs: Needs,
        OnDisk { mut pictures, mut warnings }: OnDisk,
    ) -> Result<Loaded> {
        queries.iter().try_for_each(|query| self.check(query))?;
        let table = match &self.0.pictures {
            Some(path) => Some(PictureTable::read(path)?),
            None => None,
        };
        let tags = match &self.0.tags {
            Some(path) if needs.tags || needs.exists || self.0.images.is_none() => {
                Some(TagTable::open(path)?)
            }
            _ => None,
        };
        let tagged = tags.as_ref().map(TagTable::images).transpose()?.unwrap_or_default();
        self.add_named(&mut pictures, needs, table.as_ref(), &tagged, &mut warnings)?;
        if let Some(table) = table {
            add_table(&mut pictures, table, needs);
        }
        if let Some(tags) = &tags {
            self.add_scores(&mut pictures, tags, queries, &mut warnings)?;
            let untagged = pictures.iter().filter(|facts| !tagged.contains(&facts.image)).count();
            pictures.iter_mut().for_each(|facts| facts.tagged = tagged.contains(&facts.image));
            if untagged > 0 && needs.tags {
                warnings.push(format!(
                    "{untagged} of {} pictures are not in the tag table: they count as without tags",
                    pictures.len()
                ));
            }
        }
        let unread = if needs.size { self.add_sizes(&mut pictures) } else { Vec::new() };
        mark_duplicates(&mut pictures);
        unknown(&pictures, needs, &mut warnings);
        Ok(Loaded { pictures, warnings, unread })
    }

    /// The pictures that the tables name and the folder does not have: they count where there is no folder, or where the
    /// query asks which of them exist.
    fn add_named(
        &self,
        pictures: &mut Vec<Facts>,
        needs: Needs,
        table: Option<&PictureTable>,
        tagged: &BTreeSet<String>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let rows = table.map(|table| table.rows.iter().map(|row| row.image.as_str()));
        let named: BTreeSet<&str> =
            rows.into_iter().flatten().chain(tagged.iter().map(String::as_str)).collect();
        let here: HashSet<&str> = pictures.iter().map(|facts| facts.image.as_str()).collect();
        let without = self.without()?;
        let absent: Vec<_> =
            named.iter().filter(|image| !here.contains(*image) && !without.contains(**image)).collect();
        if let Some(root) = &self.0.images {
            if absent.len() == named.len() && !named.is_empty() && !here.is_empty() {
                let table = self.0.tags.clone().filter(|_| !tagged.is_empty());
                return Err(Error::OtherImages {
                    table: table.or(self.0.pictures.clone()).unwrap_or_default(),
                    images: root.clone(),
                    named: (**absent[0]).to_owned(),
                    held: pictures[0].image.clone(),
                });
            }
            if !needs.exists {
                if !absent.is_empty() {
                    let (count, root) = (absent.len(), root.display());
                    warnings.push(format!("{count} pictures of the tables are not in `{root}`"));
                }
                return Ok(());
            }
        }
        let absent =
            absent.into_iter().map(|image| Facts { image: (**image).to_owned(), ..Facts::default() });
        let absent: Vec<_> = absent.collect();
        pictures.extend(absent);
        pictures.sort_unstable_by(|a, b| a.image.cmp(&b.image));
        Ok(())
    }

    /// The scores that the queries ask for, a slot for each test: the tags of all of them are read at once.
    fn add_scores(
        &self,
        pictures: &mut [Facts],
        table: &TagTable,
        queries: &[&Query],
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        if !queries.iter().any(|query| query.score_tests().next().is_some()) {
            return Ok(());
        }
        let (names, lowest) = self.names()?;
        // For each tag the slots of the tests that mean it.
        let mut slots: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        let mut tests = 0;
        for query in queries {
            let (meant, unknown) = names.resolve(query, self.0.lenient)?;
            warnings.extend(unknown);
            warnings.extend(below_floor(query, lowest));
            for tags in meant {
                tags.into_iter().for_each(|tag| slots.entry(tag).or_default().push(tests));
                tests += 1;
            }
        }
        let (tags, slots): (Vec<&str>, Vec<Vec<usize>>) = slots.into_iter().unzip();
        let mut found = table.scores(&tags)?.by_image;
        for facts in pictures {
            facts.scores = vec![0.0; tests];
            for score in found.remove(&facts.image).unwrap_or_default() {
                for slot in &slots[score.tag] {
                    facts.scores[*slot] = facts.scores[*slot].max(score.score);
                }
            }
        }
        Ok(())
    }

    /// The names that may be asked for, and the lowest score in the tag table.
    fn names(&self) -> Result<(Names, Option<f64>)> {
        let mut names = Names::default();
        if let Some(labels) = &self.0.labels {
            let sheet = Sheet::read(labels)?;
            let column = sheet.column("name")?;
            sheet.rows.iter().for_each(|row| names.add(&row.cells[column], None));
        }
        let Some(tags) = &self.0.tags else { return Ok((names, None)) };
        let found = pictures::vocabulary(tags)?;
        found.tags.iter().for_each(|(tag, category)| names.add(tag, category.as_deref()));
        Ok((names, found.lowest))
    }

    /// The sizes that no table tells, from the pictures' headers.
    fn add_sizes(&self, pictures: &mut [Facts]) -> Vec<Unread> {
        let Some(root) = &self.0.images else { return Vec::new() };
        let unread = pictures.par_iter_mut().filter(|facts| facts.on_disk && facts.size.is_none());
        let unread = unread.filter_map(|facts| match size(&root.join(&facts.image)) {
            Ok(size) => {
                facts.size = Some(size);
                None
            }
            Err(vodka_images::Error::Picture { source, .. }) => {
                Some(Unread { image: facts.image.clone(), reason: source.reason() })
            }
            Err(error) => Some(Unread { image: facts.image.clone(), reason: error.to_string() }),
        });
        unread.collect()
    }
}

fn add_table(pictures: &mut [Facts], table: PictureTable, needs: Needs) {
    let mut rows: HashMap<String, PictureFacts> =
        table.rows.into_iter().map(|row| (row.image.clone(), row)).collect();
    for facts in pictures {
        let Some(row) = rows.remove(&facts.image) else { continue };
        (facts.size, facts.sharpness) = (row.size, row.sharpness);
        facts.hash = row.hash.filter(|_| needs.hash);
    }
}

/// Every picture whose content one before it has.
fn mark_duplicates(pictures: &mut [Facts]) {
    let mut seen = HashSet::new();
    for facts in pictures {
        facts.duplicate = facts.hash.is_some_and(|hash| !seen.insert(hash));
    }
}

/// What is not known of pictures and was asked for.
fn unknown(pictures: &[Facts], needs: Needs, warnings: &mut Vec<String>) {
    type Known = fn(&Facts) -> bool;
    let asked: [(bool, &str, Known); 4] = [
        (needs.size, "the size", |facts| facts.size.is_some()),
        (needs.bytes, "the size of the file", |facts| facts.bytes.is_some()),
        (needs.sharpness, "the sharpness", |facts| facts.sharpness.is_some()),
        (needs.hash, "the hash", |facts| facts.hash.is_some()),
    ];
    for (_, what, known) in asked.into_iter().filter(|(asked, ..)| *asked) {
        let count = pictures.iter().filter(|facts| !known(facts)).count();
        if count > 0 {
            warnings.push(format!("{what} of {count} pictures is not known: they fit no comparison with it"));
        }
    }
}

/// Comparisons with scores that the table is too coarse for.
fn below_floor(query: &Query, lowest: Option<f64>) -> Vec<String> {
    let Some(lowest) = lowest else { return Vec::new() };
    let tests = query.expression().tests().into_iter().filter(|test| match test {
        Test::Score { bound: Some(bound), .. } => {
            let value = bound.value() as f32;
            0.0 < value && value < lowest as f32
        }
        _ => false,
    });
    tests
        .map(|test| {
            format!("`{test}`: the tag table has no score below {}, such tags count as 0", lowest as f32)
        })
        .collect()
}

/// That no two pictures have the same caption.
pub(crate) fn check_shared<'a>(root: &Path, images: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let owners: Vec<_> =
        images.into_iter().map(|image| (Path::new(image).with_extension("txt"), image)).collect();
    sidecar::check_shared(root, owners.iter().map(|(caption, image)| (caption.as_path(), *image)))
}
