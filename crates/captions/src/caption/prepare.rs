//! Finds out what each caption is to be, and all that there is to report except how much was written.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde_json::json;
use vodka_prompt::{MAX_TOKENS, token_count};
use vodka_stage::{ContentHash, Hasher, Input, RunKey, hash_file};

use super::{
    CaptionPlan, CaptionReport, Destination, Missing, Skipped, TooLong, decimal,
    documents::{Document, Want},
    vocabulary::Vocabulary,
};
use crate::{
    CaptionFormat, Error, Facts, FoundCaption, Gathered, Joining, Picture, Position, Result, TagScore,
    TagTable, choose_by, displayed, gather, named, new_key,
    query::read_all_exclusions,
    sidecar::{all_pictures, check_shared},
    table::{About, below_floor, missing_tags, other_vocabulary},
    template::Template,
    written::Written,
};

/// The pictures and their original captions, as they were read.
pub(super) struct Read {
    pub pictures: Vec<Picture>,
    /// Pictures that no table can name.
    unnamed: Vec<Skipped>,
    /// Pictures that the user leaves out.
    excluded: BTreeSet<String>,
    /// What runs in place have written.
    pub written: Written,
    pub gathered: Gathered,
}

impl Read {
    pub(super) fn new(plan: &CaptionPlan) -> Result<Self> {
        let (pictures, unnamed): (Vec<_>, Vec<_>) =
            all_pictures(&plan.images)?.into_iter().partition(|picture| picture.caption.to_str().is_some());
        let excluded = read_all_exclusions(&plan.without)?;
        if plan.shares_stems() {
            let counted = pictures.iter().filter(|picture| !excluded.contains(&picture.image));
            let owners = counted.map(|picture| (picture.caption.as_path(), picture.image.as_str()));
            check_shared(&plan.images, owners)?;
        }
        let reason = "a name that is not UTF-8".to_owned();
        let unnamed = unnamed
            .into_iter()
            .map(|picture| Skipped { image: picture.image, reason: reason.clone() })
            .collect();
        // Captions are made from originals, also into a folder of their own.
        let written = Written::read(&plan.images)?;
        let gathered = gather(&plan.source, &plan.images, &pictures, Some(&written))?;
        Ok(Self { pictures, unnamed, excluded, written, gathered })
    }

    /// All that the captions depend on.
    pub(super) fn key(&self, plan: &CaptionPlan) -> Result<RunKey> {
        let settings = json!({
            "max_tags": plan.max_tags,
            "min_score": decimal(plan.min_score),
            "position": plan.position,
            "missing": plan.missing,
            "in_place": plan.in_place(),
            "format": plan.format,
            "source": plan.source.settings(),
            "style": plan.style,
        });
        let mut key = RunKey::new("caption", &settings, None).input("tags", &plan.tags, |_| true)?.input(
            "selection",
            &plan.selection,
            |_| true,
        )?;
        for (number, list) in plan.without.iter().enumerate() {
            key = key.input(&format!("without {}", number + 1), list, |_| true)?;
        }
        let mut hasher = Hasher::default();
        hasher.piece(self.gathered.hash.to_string());
        if let Some(CaptionFormat::Png | CaptionFormat::FileName) = plan.format {
            hasher.piece(self.pixels(&plan.images)?.to_string());
        }
        key.inputs
            .insert("captions".to_owned(), Input { path: plan.images.clone(), sha256: hasher.finish() });
        Ok(key)
    }

    fn pixels(&self, root: &Path) -> Result<ContentHash> {
        let hashes = self.pictures.par_iter().map(|picture| hash_file(root.join(&picture.image)));
        let mut hasher = Hasher::default();
        for hash in hashes.collect::<Result<Vec<_>, _>>()? {
            hasher.piece(hash.to_string());
        }
        Ok(hasher.finish())
    }

    fn found(&self, picture: &Picture) -> Option<&FoundCaption> {
        self.gathered.set.by_image.get(&picture.image)
    }
}

impl CaptionPlan {
    /// Whether pictures with one stem would have one caption.
    fn shares_stems(&self) -> bool {
        let stems =
            |format: CaptionFormat| !format.extensions().is_empty() || format == CaptionFormat::KohyaJson;
        let source = self.source.auto || !self.source.format.extensions().is_empty();
        source || self.format.is_some_and(stems)
    }
}

/// What to write where, and the report as far as it is known.
pub(super) fn prepare(plan: &CaptionPlan, read: &Read) -> Result<(Vec<Document>, CaptionReport)> {
    let vocabulary = Vocabulary::read(plan)?;
    let mut table = TagTable::open(&plan.tags)?;
    let in_table = table.images()?;
    let images: BTreeSet<_> = read.pictures.iter().map(|picture| picture.image.as_str()).collect();
    let mut untagged = check_images(plan, &in_table, &images)?;
    untagged.retain(|image| !read.excluded.contains(image));
    let warnings = warnings(plan, &vocabulary, &table)?;
    table.restrict(images.iter().copied())?;
    let names: Vec<_> = vocabulary.names.iter().map(String::as_str).collect();
    let scores = table.scores(&names)?;
    let mut report = CaptionReport {
        skipped: read.unnamed.clone(),
        excluded: read.pictures.iter().filter(|picture| read.excluded.contains(&picture.image)).count(),
        absent: in_table.iter().filter(|image| !images.contains(image.as_str())).count(),
        untagged,
        guessed: read.gathered.set.guessed.clone(),
        unknown: read.gathered.set.unknown.clone(),
        doubles: scores.doubles,
        warnings,
        ..CaptionReport::empty(plan.output())
    };
    let template = plan.style.template.as_deref().map(Template::new).transpose()?;
    let maker = Maker { plan, vocabulary: &vocabulary, template: template.as_ref(), joining: plan.joining() };
    let made: Vec<_> = read
        .pictures
        .par_iter()
        .map(|picture| {
            let scores = scores.by_image.get(&picture.image).map(Vec::as_slice).unwrap_or_default();
            maker.make(picture, read.found(picture), scores)
        })
        .collect::<Result<_>>()?;
    let here = read.pictures.iter().zip(&made).filter(|(picture, _)| !read.excluded.contains(&picture.image));
    let missing: Vec<_> =
        here.filter(|(_, made)| made.is_missing).map(|(picture, _)| picture.image.as_str()).collect();
    if plan.missing == Missing::Error && !missing.is_empty() {
        return Err(no_caption(plan, &missing));
    }
    let documents = documents(plan, read, made, &mut report)?;
    report.settle();
    Ok((documents, report))
}

/// A caption as it should be, or why there is none.
struct Made {
    text: Result<String, String>,
    tokens: usize,
    joined: bool,
    /// Whether there is no caption where one is needed.
    is_missing: bool,
    /// Whether it has tags that it did not have.
    has_tags: bool,
}

struct Maker<'a> {
    plan: &'a CaptionPlan,
    vocabulary: &'a Vocabulary,
    template: Option<&'a Template<'a>>,
    joining: Joining<'a>,
}

impl Maker<'_> {
    fn make(&self, picture: &Picture, found: Option<&FoundCaption>, scores: &[TagScore]) -> Result<Made> {
        let joined = found.is_some_and(|found| found.caption.joined);
        let (selected, besides): (Vec<_>, Vec<_>) =
            scores.iter().copied().partition(|tag| tag.tag < self.vocabulary.selected);
        let tags = self.best(&selected, self.plan.max_tags);
        let before = found.map_or("", |found| found.caption.text.as_str());
        let refusal = self.refusal(found, before, &tags);
        let is_missing = before.is_empty() && refusal.is_some();
        let text = match refusal {
            Some(reason) => Err(reason),
            None => self.text(picture, before, &tags, [&selected, &besides])?,
        };
        let has_tags = !self.joining.news(before, &tags).1.is_empty();
        let tokens = text.as_ref().map_or(0, |text| token_count(text));
        Ok(Made { joined: joined && text.is_ok(), text, tokens, is_missing, has_tags })
    }

    fn text(
        &self,
        picture: &Picture,
        before: &str,
        tags: &[&str],
        [selected, besides]: [&[TagScore]; 2],
    ) -> Result<Result<String, String>> {
        if let Some(template) = self.template {
            let all = self.best(selected, usize::MAX);
            let text =
                self.templated(template, picture, before, [tags, &all], &[selected, besides].concat())?;
            let nothing = || "the template says nothing".to_owned();
            return Ok(if text.is_empty() { Err(nothing()) } else { Ok(text) });
        }
        let text = self.joining.compose(before, tags);
        Ok(if text.is_empty() { Err("no tags".to_owned()) } else { Ok(text) })
    }

    fn best(&self, scores: &[TagScore], max_tags: usize) -> Vec<&str> {
        let best = choose_by(scores, max_tags, |tag| self.vocabulary.floors[tag]);
        best.into_iter().map(|tag| self.vocabulary.names[tag].as_str()).collect()
    }

    /// Why a picture gets no caption.
    fn refusal(&self, found: Option<&FoundCaption>, before: &str, tags: &[&str]) -> Option<String> {
        let marker = &self.plan.style.marker;
        let there = !before.is_empty();
        let reason = match self.joining.position {
            Position::Replace => return None,
            Position::Marker if there && !before.contains(marker.as_str()) => {
                format!("no `{marker}` in the caption")
            }
            Position::Marker if before.matches(marker.as_str()).nth(1).is_some() => {
                format!("`{marker}` is more than once in the caption")
            }
            _ if there => return None,
            _ if self.plan.missing == Missing::Empty && !tags.is_empty() => return None,
            _ if self.plan.missing == Missing::Empty => "no caption and no tags".to_owned(),
            _ if found.is_some() => "the caption is empty".to_owned(),
            _ => "no caption".to_owned(),
        };
        Some(reason)
    }

    fn templated(
        &self,
        template: &Template,
        picture: &Picture,
        caption: &str,
        [tags, all]: [&[&str]; 2],
        scores: &[TagScore],
    ) -> Result<String> {
        let shown = |name: &str| self.joining.shown(displayed(name).trim().to_owned());
        let (mut first, tags) = self.joining.news(caption, tags);
        first.extend(tags);
        let of = |category: &str| {
            let scores = scores.iter().filter(|tag| self.vocabulary.is(tag.tag, category));
            scores.copied().collect::<Vec<_>>()
        };
        let rating = choose_by(&of("rating"), 1, |_| 0.0);
        let rating = rating.first().map(|tag| shown(&self.vocabulary.names[*tag])).unwrap_or_default();
        let characters: Vec<_> = self.best(&of("character"), usize::MAX).into_iter().map(shown).collect();
        let all: Vec<_> = all.iter().map(|tag| shown(tag)).collect();
        let image = picture.image.as_str();
        let (folder, file_name) = image.rsplit_once('/').unwrap_or(("", image));
        let stem = Path::new(file_name).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let folder = folder.rsplit('/').next().unwrap_or_default();
        template.render(&Facts {
            caption,
            tags: &first,
            all_tags: &all,
            rating: &rating,
            characters: &characters,
            image,
            file_name,
            stem,
            folder,
        })
    }
}

/// The files to write, in the order of the pictures; a skipped picture is in the report, and at most has an original to be
/// put back.
fn documents(
    plan: &CaptionPlan,
    read: &Read,
    made: Vec<Made>,
    report: &mut CaptionReport,
) -> Result<Vec<Document>> {
    let targets = Targets::new(plan)?;
    let mut documents: Vec<Document> = Vec::new();
    let mut places = BTreeMap::new();
    for (picture, Made { text, tokens, joined, has_tags, .. }) in read.pictures.iter().zip(made) {
        if read.excluded.contains(&picture.image) {
            continue;
        }
        let image = || picture.image.clone();
        let found = read.found(picture);
        let target = text.and_then(|text| Ok((targets.of(picture, found, &text)?, text)));
        let (target, text) = match target {
            Ok(target) => target,
            Err(reason) => {
                report.skipped.push(Skipped { image: image(), reason });
                continue;
            }
        };
        if joined {
            report.joined.push(image());
        }
        if tokens > MAX_TOKENS {
            report.too_long.push(TooLong { image: image(), tokens });
        }
        let was = found.filter(|found| !found.caption.joined && target.is_of(found));
        let want = Want {
            image: image(),
            rows: was
                .or(found.filter(|found| target.is_of(found)))
                .map_or(Vec::new(), |found| found.rows.clone()),
            key: target.key,
            before: found.map_or(String::new(), |found| found.caption.text.clone()),
            was: was.map(|found| found.caption.text.clone()),
            has_tags,
            text,
        };
        let place = *places.entry(target.path.clone()).or_insert_with(|| {
            documents.push(Document {
                path: target.path,
                format: target.format,
                base: target.base,
                wants: Vec::new(),
            });
            documents.len() - 1
        });
        documents[place].wants.push(want);
    }
    let others = read.gathered.kept.iter().filter(|path| plan.in_place() && !places.contains_key(*path));
    documents.extend(others.map(|path| Document::put_back(path.clone())));
    Ok(documents)
}

/// Where captions are written.
struct Targets<'a> {
    plan: &'a CaptionPlan,
    /// The table that captions are read from.
    table: Option<(CaptionFormat, PathBuf)>,
}

/// Where a caption is written.
struct Target {
    path: PathBuf,
    format: CaptionFormat,
    /// What it is made from, where that is another file.
    base: Option<PathBuf>,
    key: String,
}

impl Target {
    /// Whether the caption that was found is what this file is made from.
    fn is_of(&self, found: &FoundCaption) -> bool {
        self.format == found.format && self.base.as_ref().unwrap_or(&self.path) == &found.file
    }
}

impl<'a> Targets<'a> {
    fn new(plan: &'a CaptionPlan) -> Result<Self> {
        let table = plan.source.table()?;
        let table = table.map(|(format, file)| match plan.source.file {
            Some(_) => (format, file),
            None => (format, plan.images.join(file)),
        });
        Ok(Self { plan, table })
    }

    /// Where the caption of a picture is written, or why it cannot be.
    fn of(&self, picture: &Picture, found: Option<&FoundCaption>, text: &str) -> Result<Target, String> {
        let target = match &self.plan.destination {
            Destination::Folder(folder) => self.in_folder(folder, picture, found, text)?,
            Destination::InPlace => self.in_place(picture, found),
        };
        let is_png = Path::new(&picture.image)
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
        match target.format == CaptionFormat::Png && !is_png {
            true => Err("only PNG pictures can hold a caption".to_owned()),
            false => Ok(target),
        }
    }

    fn in_place(&self, picture: &Picture, found: Option<&FoundCaption>) -> Target {
        let (source, root) = (&self.plan.source, &self.plan.images);
        let here =
            found.filter(|found| !matches!(found.format, CaptionFormat::Png | CaptionFormat::FileName));
        let format =
            here.map_or(if source.auto { CaptionFormat::Txt } else { source.format }, |found| found.format);
        let beside = |extension| root.join(picture.caption.with_extension(extension));
        let path = match (here, format.extensions().first(), &self.table) {
            (Some(found), ..) => found.file.clone(),
            (None, Some(extension), _) => beside(extension),
            (None, None, Some((_, table))) => table.clone(),
            (None, None, None) => root.join(&picture.image),
        };
        Target { path, format, base: None, key: new_key(format, &picture.image) }
    }

    fn in_folder(
        &self,
        folder: &Path,
        picture: &Picture,
        found: Option<&FoundCaption>,
        text: &str,
    ) -> Result<Target, String> {
        let format = self.plan.format.unwrap_or_default();
        let same = found.filter(|found| found.format == format).map(|found| found.file.clone());
        let image = Path::new(&picture.image);
        let original = || Some(self.plan.images.join(image));
        let (path, base) = match (format.extensions().first(), format.table()) {
            (Some(extension), _) => (picture.caption.with_extension(extension), same),
            (None, Some(usual)) => match self.table.as_ref().filter(|(of, _)| *of == format) {
                Some((_, table)) => (table.file_name().unwrap_or_default().into(), Some(table.clone())),
                None => (usual.into(), None),
            },
            (None, None) if format == CaptionFormat::Png => (image.to_path_buf(), original()),
            (None, None) => (image.with_file_name(named(image, text)?), original()),
        };
        Ok(Target { path: folder.join(path), format, base, key: new_key(format, &picture.image) })
    }
}

/// The pictures that the table does not name.
fn check_images(
    plan: &CaptionPlan,
    in_table: &BTreeSet<String>,
    images: &BTreeSet<&str>,
) -> Result<Vec<String>> {
    let untagged: Vec<_> =
        images.iter().filter(|image| !in_table.contains(**image)).map(|image| (*image).to_owned()).collect();
    if untagged.len() == images.len() {
        return Err(Error::OtherImages {
            table: plan.tags.clone(),
            images: plan.images.clone(),
            named: in_table.first().cloned().unwrap_or_else(|| "no picture".to_owned()),
            held: untagged.first().cloned().unwrap_or_default(),
        });
    }
    Ok(untagged)
}

/// What the user should know about the tag table.
fn warnings(plan: &CaptionPlan, vocabulary: &Vocabulary, table: &TagTable) -> Result<Vec<String>> {
    let there = table.tags();
    let selected = vocabulary.names[..vocabulary.selected].iter().map(String::as_str);
    let missing: Vec<_> = selected.filter(|tag| !there.contains(tag)).collect();
    if let Some(example) = there.first().filter(|_| missing.len() == vocabulary.selected) {
        return Err(Error::OtherVocabulary {
            table: plan.tags.clone(),
            selected: vocabulary.selected,
            example: (*example).to_owned(),
        });
    }
    let about = About::read(&plan.tags)?;
    let floors = vocabulary.floors.iter().copied();
    let warnings = [
        below_floor(&plan.tags, &about, "captions at the minimum", floors),
        other_vocabulary(&plan.tags, &about, &plan.selection),
        missing_tags(missing),
    ];
    Ok(warnings.into_iter().flatten().collect())
}

fn no_caption(plan: &CaptionPlan, images: &[&str]) -> Error {
    let mut examples: Vec<_> = images.iter().take(10).map(|image| format!("`{image}`")).collect();
    if images.len() > examples.len() {
        examples.push("...".to_owned());
    }
    Error::NoCaption { root: plan.images.clone(), count: images.len(), examples: examples.join(", ") }
}
