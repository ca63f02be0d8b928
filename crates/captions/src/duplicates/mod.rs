//! Finds pictures that are there more than once: the same file, or one that looks the same.

mod near;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, fs,
    path::PathBuf,
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_images::{find, relative_name};
use vodka_stage::{ContentHash, Hasher, Interrupt, Outcome, Report, RunKey, record_path};

use self::near::{Sets, join_near};
use crate::{
    Error, Result,
    caption::resolved,
    filter::lines,
    heard,
    query::{PictureFacts, PictureTable, exclusions, read_exclusions},
    sheet,
};

/// A perceptual hash with fewer bits than this says nothing: the picture has almost no frequencies, as one of a single
/// colour or a plain gradient. Pictures with any content have 32 or nearly so.
const BITS_MIN: u32 = 16;

/// What is looked for, as a user wants it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DuplicatesConfig {
    /// The table of pictures, with `sha256` and `phash`.
    pub pictures: PathBuf,
    /// The folder of pictures: only those that are in it count, and their files' sizes are known.
    #[serde(default)]
    pub images: Option<PathBuf>,
    /// Lists of pictures to leave out ([`read_exclusions`]).
    #[serde(default)]
    pub without: Vec<PathBuf>,
    /// In how many of 64 bits the perceptual hashes of two pictures that look the same may differ; `None` for copies of
    /// the same file only.
    #[serde(default = "four")]
    pub distance: Option<u32>,
    /// The CSV to write.
    pub output: PathBuf,
    /// A list of the pictures to spare of each group to write, which [`crate::query::Dataset::without`] takes.
    #[serde(default)]
    pub exclude: Option<PathBuf>,
}

fn four() -> Option<u32> {
    Some(4)
}

/// What is looked for, checked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DuplicatesPlan(DuplicatesConfig);

impl DuplicatesConfig {
    /// Checks what can be checked without reading.
    ///
    /// # Errors
    /// A distance above 64; an output that is an input, or the other output.
    pub fn plan(&self) -> Result<DuplicatesPlan> {
        if let Some(distance) = self.distance.filter(|distance| *distance > 64) {
            let found = f64::from(distance);
            return Err(Error::Range {
                setting: "distance",
                found,
                expected: "a number of bits from 0 to 64",
            });
        }
        // Each output against the inputs and the outputs before it.
        let mut taken: Vec<_> =
            self.without.iter().chain([&self.pictures]).map(|path| resolved(path)).collect();
        for path in [&self.output].into_iter().chain(&self.exclude) {
            if taken.contains(&resolved(path)) {
                return Err(Error::OutputIsInput { path: path.clone() });
            }
            taken.push(resolved(path));
        }
        Ok(DuplicatesPlan(self.clone()))
    }
}

/// What the search tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DuplicatesEvent {
    /// The table has been read.
    Read {
        /// How many pictures are compared.
        images: u64,
    },
}

/// What the search has found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DuplicatesReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The CSV.
    pub output: PathBuf,
    /// The list of pictures to leave out.
    pub exclude: Option<PathBuf>,
    /// How many pictures were compared.
    pub images: u64,
    /// In how many bits near ones may differ.
    pub distance: Option<u32>,
    /// The groups, in order of the name of what is kept.
    pub groups: Vec<Group>,
    /// How many pictures are flat: of one colour or nearly. They are compared by content only.
    pub flat: u64,
    /// How many pictures of the table are not in the folder.
    pub absent: u64,
    /// How many pictures of the folder are not in the table, and so not compared.
    pub unknown: u64,
}

/// Pictures that are the same, or look the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Whether they are the same file.
    pub kind: Kind,
    /// The most bits in which one to spare differs from the kept one that it is like.
    pub largest_distance_from_kept: u32,
    /// The pictures, the best first: that of the most pixels; among those the sharpest; then the largest file; then the
    /// first by name. In this order each is kept that is like none kept before it: where a is near b, and b near c, but
    /// not c near a, that may be more than one.
    pub members: Vec<Member>,
}

/// How pictures are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The same bytes.
    Exact,
    /// Not all the same bytes, but they look the same.
    Near,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Near => "near",
        }
    }
}

/// A picture in a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// The picture.
    pub image: String,
    /// The picture to keep that it is like; none if it is to be kept itself.
    pub like: Option<String>,
    /// In how many bits it differs from that.
    pub distance: u32,
    /// Width and height in pixels, where known.
    pub size: Option<(u32, u32)>,
    /// Its sharpness, where known.
    pub sharpness: Option<f32>,
    /// The size of the file, where the folder is given.
    pub bytes: Option<u64>,
    /// The content.
    pub sha256: Option<ContentHash>,
    /// The perceptual hash: 16 hexadecimal digits.
    pub phash: Option<String>,
}

impl DuplicatesReport {
    /// How many groups of a kind there are, and how many pictures to spare in them.
    fn spare(&self, kind: Kind) -> (usize, usize) {
        let groups: Vec<_> = self.groups.iter().filter(|group| group.kind == kind).collect();
        (groups.len(), groups.iter().map(|group| group.spare().count()).sum())
    }
}

impl Report for DuplicatesReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for DuplicatesReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.outcome {
            Outcome::Interrupted => return write!(f, "stopped before all pictures were compared"),
            Outcome::Unchanged => write!(f, "`{}` is up to date: ", self.output.display())?,
            Outcome::Done | Outcome::Skipped => {}
        }
        let (exact, copies) = self.spare(Kind::Exact);
        let (near, alike) = self.spare(Kind::Near);
        write!(f, "{} pictures; groups of the same file: {exact} ({copies} to spare)", self.images)?;
        if let Some(distance) = self.distance {
            write!(f, "; groups that look the same within {distance} bits: {near} ({alike} to spare)")?;
        }
        lines(f, self.groups.iter().map(Group::line))?;
        for (count, what) in [
            (self.flat, "pictures are flat (of one colour or nearly): compared by content only"),
            (self.absent, "pictures of the table are not in the folder"),
            (self.unknown, "pictures of the folder are not in the table: not compared"),
        ] {
            if count > 0 {
                write!(f, "\nnote: {count} {what}")?;
            }
        }
        Ok(())
    }
}

impl Group {
    fn line(&self) -> String {
        let joined = |texts: Vec<String>| texts.join(", ");
        let kept = self.members.iter().filter(|member| member.like.is_none());
        let kept = joined(kept.map(|member| format!("`{}`", member.image)).collect());
        let spare = self.members.iter().filter(|member| member.like.is_some());
        let spare = joined(spare.map(|member| format!("`{}` ({})", member.image, member.distance)).collect());
        match self.kind {
            Kind::Exact => format!("keep {kept}, the same file as {spare}"),
            Kind::Near => {
                let apart = self.largest_distance_from_kept;
                format!("keep {kept}, like {spare}: at most {apart} bits from what is kept")
            }
        }
    }
}

/// A picture that is compared.
struct Candidate {
    row: PictureFacts,
    bytes: Option<u64>,
}

impl Candidate {
    fn is_flat(&self) -> bool {
        self.row.phash.is_some_and(|hash| hash.count_ones() < BITS_MIN)
    }

    /// The perceptual hash, where it says anything.
    fn phash(&self) -> Option<u64> {
        self.row.phash.filter(|_| !self.is_flat())
    }

    /// The one to keep has the smallest.
    fn rank(&self, a: &Self) -> std::cmp::Ordering {
        let pixels =
            |of: &Self| of.row.size.map_or(0, |(width, height)| u64::from(width) * u64::from(height));
        let sharpness = |of: &Self| of.row.sharpness.map_or(-1.0, |sharpness| sharpness.whole);
        pixels(a)
            .cmp(&pixels(self))
            .then(sharpness(a).total_cmp(&sharpness(self)))
            .then(a.bytes.cmp(&self.bytes))
            .then(self.row.image.cmp(&a.row.image))
    }

    /// In how many bits they differ, if they are the same file or differ in no more bits than allowed.
    fn distance(&self, other: &Self, allowed: Option<u32>) -> Option<u32> {
        if self.row.hash.is_some() && self.row.hash == other.row.hash {
            return Some(0);
        }
        let distance = (self.phash()? ^ other.phash()?).count_ones();
        Some(distance).filter(|distance| Some(*distance) <= allowed)
    }

    /// The picture in a group; `like` is the kept one that it is like, and how far that is.
    fn member(&self, like: Option<(&Self, u32)>) -> Member {
        Member {
            image: self.row.image.clone(),
            like: like.map(|(kept, _)| kept.row.image.clone()),
            distance: like.map_or(0, |(_, distance)| distance),
            size: self.row.size,
            sharpness: self.row.sharpness.map(|sharpness| sharpness.whole),
            bytes: self.bytes,
            sha256: self.row.hash,
            phash: self.row.phash.map(|hash| format!("{hash:016x}")),
        }
    }
}

/// Looks for copies and writes them down.
///
/// # Errors
/// The table cannot be read, or has no hashes; the folder cannot be listed; an output cannot be written.
pub fn run(
    plan: &DuplicatesPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(DuplicatesEvent),
) -> Result<DuplicatesReport> {
    let config = &plan.0;
    let record = record_path(&config.output);
    let asked = plan.clone();
    let (key, candidates, mut report) = match heard(interrupt, move || asked.asked()) {
        Err(Error::Stopped) => {
            return Ok(DuplicatesReport { outcome: Outcome::Interrupted, ..plan.empty() });
        }
        Ok(Asked::There(report)) => return Ok(*report),
        Ok(Asked::Loaded(key, candidates, report)) => (key, candidates, *report),
        Err(error) => return Err(error),
    };
    on_event(DuplicatesEvent::Read { images: candidates.len() as u64 });
    let sets = Sets::new(candidates.len());
    join_copies(&candidates, &sets);
    if let Some(distance) = config.distance
        && !join_alike(&candidates, distance, &sets, interrupt)
    {
        return Ok(DuplicatesReport { outcome: Outcome::Interrupted, ..report });
    }
    let Some(groups) = groups(&candidates, &sets, config.distance, interrupt) else {
        return Ok(DuplicatesReport { outcome: Outcome::Interrupted, ..report });
    };
    report.groups = groups;
    let mut files = vec![(config.output.as_path(), groups_table(&report))];
    if let Some(path) = &config.exclude {
        files.push((path, exclusions(report.groups.iter().flat_map(Group::spare))));
    }
    let files: Vec<_> = files.iter().map(|(path, content)| (*path, content.as_bytes())).collect();
    key.write_files(&record, &files, &report)?;
    Ok(report)
}

/// What is known before pictures are compared.
enum Asked {
    /// The groups are there already.
    There(Box<DuplicatesReport>),
    Loaded(RunKey, Vec<Candidate>, Box<DuplicatesReport>),
}

impl DuplicatesPlan {
    /// Before anything has been read.
    fn empty(&self) -> DuplicatesReport {
        let DuplicatesConfig { distance, output, exclude, .. } = self.0.clone();
        DuplicatesReport {
            outcome: Outcome::Done,
            output,
            exclude,
            images: 0,
            distance,
            groups: Vec::new(),
            flat: 0,
            absent: 0,
            unknown: 0,
        }
    }

    /// Reads the tables and lists the folder, unless nothing is to be done.
    fn asked(&self) -> Result<Asked> {
        let on_disk = self.on_disk()?;
        let key = self.key(on_disk.as_ref())?;
        if let Some(report) = key.made::<DuplicatesReport>(&record_path(&self.0.output))? {
            let (output, exclude) = (self.0.output.clone(), self.0.exclude.clone());
            let report = DuplicatesReport { outcome: Outcome::Unchanged, output, exclude, ..report };
            return Ok(Asked::There(Box::new(report)));
        }
        let (candidates, report) = self.candidates(on_disk.as_ref())?;
        Ok(Asked::Loaded(key, candidates, Box::new(report)))
    }

    /// The pictures of the folder with the sizes of their files.
    fn on_disk(&self) -> Result<Option<BTreeMap<String, Option<u64>>>> {
        let Some(root) = &self.0.images else { return Ok(None) };
        let sized = |path: &PathBuf| {
            let bytes = fs::metadata(root.join(path)).ok().map(|metadata| metadata.len());
            (relative_name(path), bytes)
        };
        Ok(Some(find(root)?.par_iter().map(sized).collect()))
    }

    fn key(&self, on_disk: Option<&BTreeMap<String, Option<u64>>>) -> Result<RunKey> {
        let settings = json!({ "distance": self.0.distance, "exclude": self.0.exclude.is_some() });
        let mut key =
            RunKey::new("duplicates", &settings, None).input("pictures", &self.0.pictures, |_| true)?;
        for (number, path) in self.0.without.iter().enumerate() {
            key = key.input(&format!("without {}", number + 1), path, |_| true)?;
        }
        if let (Some(root), Some(on_disk)) = (&self.0.images, on_disk) {
            let mut hasher = Hasher::default();
            for (image, bytes) in on_disk {
                hasher.piece(image).piece(format!("{bytes:?}"));
            }
            key = key.input_hashed("images", root, hasher.finish());
        }
        Ok(key)
    }

    /// The pictures to compare, in order of name, and all of the report but the groups.
    fn candidates(
        &self,
        on_disk: Option<&BTreeMap<String, Option<u64>>>,
    ) -> Result<(Vec<Candidate>, DuplicatesReport)> {
        let DuplicatesConfig { pictures, without, distance, .. } = self.0.clone();
        let table = PictureTable::read(&pictures)?;
        let lists = without.iter().map(|path| read_exclusions(path)).collect::<Result<Vec<_>>>()?;
        let without: BTreeSet<_> = lists.into_iter().flatten().collect();
        let lacks = |what| Err(Error::NoFacts { path: pictures.clone(), what });
        if !table.rows.is_empty() && table.rows.iter().all(|row| row.hash.is_none()) {
            return lacks("sha256");
        }
        if distance.is_some() && !table.rows.is_empty() && table.rows.iter().all(|row| row.phash.is_none()) {
            return lacks("phash");
        }
        let all = table.rows.len();
        let named = |image: &String| on_disk.is_none_or(|on_disk| on_disk.contains_key(image));
        let mut rows: Vec<_> = table.rows.into_iter().filter(|row| named(&row.image)).collect();
        let here = rows.len();
        rows.retain(|row| !without.contains(&row.image));
        rows.sort_unstable_by(|a, b| a.image.cmp(&b.image));
        let bytes = |image: &String| on_disk.and_then(|on_disk| on_disk.get(image).copied().flatten());
        let candidates: Vec<_> =
            rows.into_iter().map(|row| Candidate { bytes: bytes(&row.image), row }).collect();
        let report = DuplicatesReport {
            images: candidates.len() as u64,
            flat: candidates.iter().filter(|candidate| candidate.is_flat()).count() as u64,
            absent: (all - here) as u64,
            unknown: on_disk.map_or(0, |on_disk| on_disk.len() - here) as u64,
            ..self.empty()
        };
        Ok((candidates, report))
    }
}

/// Joins the pictures with the same content.
fn join_copies(candidates: &[Candidate], sets: &Sets) {
    let mut first = HashMap::new();
    for (candidate, number) in candidates.iter().zip(0..) {
        if let Some(hash) = candidate.row.hash {
            sets.join(*first.entry(hash).or_insert(number), number);
        }
    }
}

/// Joins the pictures whose perceptual hashes are near. Whether it came to the end.
fn join_alike(candidates: &[Candidate], distance: u32, sets: &Sets, interrupt: &Interrupt) -> bool {
    // Each hash is looked up once, however many pictures have it.
    let mut by_hash: BTreeMap<u64, u32> = BTreeMap::new();
    for (candidate, number) in candidates.iter().zip(0..) {
        if let Some(hash) = candidate.phash() {
            sets.join(*by_hash.entry(hash).or_insert(number), number);
        }
    }
    let (hashes, numbers): (Vec<u64>, Vec<u32>) = by_hash.into_iter().unzip();
    let alike = Sets::new(hashes.len());
    let complete = join_near(&hashes, distance, &alike, interrupt);
    for (number, place) in numbers.iter().zip(0..) {
        sets.join(*number, numbers[alike.of(place) as usize]);
    }
    complete
}

/// The sets of two pictures or more, in order of the name of the best. `None` when interrupted.
fn groups(
    candidates: &[Candidate],
    sets: &Sets,
    allowed: Option<u32>,
    interrupt: &Interrupt,
) -> Option<Vec<Group>> {
    let mut by_set: HashMap<u32, Vec<&Candidate>> = HashMap::new();
    for (candidate, number) in candidates.iter().zip(0..) {
        by_set.entry(sets.of(number)).or_default().push(candidate);
    }
    let several: Vec<_> = by_set.into_values().filter(|members| members.len() > 1).collect();
    let groups = several.into_par_iter().map(|members| group(members, allowed, interrupt));
    let mut groups = groups.collect::<Option<Vec<_>>>()?;
    groups.sort_unstable_by(|a, b| a.members[0].image.cmp(&b.members[0].image));
    Some(groups)
}

fn group(mut candidates: Vec<&Candidate>, allowed: Option<u32>, interrupt: &Interrupt) -> Option<Group> {
    candidates.sort_by(|a, b| a.rank(b));
    let best = candidates[0];
    let same = best.row.hash.is_some() && candidates.iter().all(|other| other.row.hash == best.row.hash);
    let mut kept: Vec<&Candidate> = Vec::new();
    let mut members = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        if interrupt.is_raised() {
            return None;
        }
        let alike = kept.iter().filter_map(|kept| Some((*kept, candidate.distance(kept, allowed)?)));
        let like = alike.min_by_key(|(_, distance)| *distance);
        members.push(candidate.member(like));
        if like.is_none() {
            kept.push(candidate);
        }
    }
    let largest_distance_from_kept = members.iter().map(|member| member.distance).max().unwrap_or(0);
    Some(Group { kind: if same { Kind::Exact } else { Kind::Near }, largest_distance_from_kept, members })
}

impl Group {
    /// Those not to keep, each with the reason to leave it out.
    fn spare(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let kept = self.members.iter().filter(|member| member.like.is_none());
        let kept: HashMap<_, _> = kept.map(|member| (&member.image, member.sha256)).collect();
        self.members.iter().filter_map(move |member| {
            let like = member.like.as_ref()?;
            let reason = match member.sha256.is_some() && member.sha256 == kept[like] {
                true => format!("the same file as {like}"),
                false => format!("looks like {like} ({} bits apart)", member.distance),
            };
            Some((member.image.clone(), reason))
        })
    }
}

fn groups_table(report: &DuplicatesReport) -> String {
    const HEADER: [&str; 13] = [
        "group",
        "kind",
        "largest_distance_from_kept",
        "keep",
        "image",
        "like",
        "distance",
        "width",
        "height",
        "sharpness",
        "bytes",
        "sha256",
        "phash",
    ];
    let rows = report.groups.iter().enumerate().flat_map(|(number, group)| {
        group.members.iter().map(move |member| {
            let Member { image, like, distance, size, sharpness, bytes, sha256, phash } = member;
            let (width, height) = (text(size.map(|size| size.0)), text(size.map(|size| size.1)));
            vec![
                (number + 1).to_string(),
                group.kind.name().to_owned(),
                group.largest_distance_from_kept.to_string(),
                u8::from(like.is_none()).to_string(),
                image.clone(),
                text(like.as_ref()),
                distance.to_string(),
                width,
                height,
                text(*sharpness),
                text(*bytes),
                text(*sha256),
                text(phash.as_ref()),
            ]
        })
    });
    sheet::text(HEADER, rows)
}

fn text(value: Option<impl fmt::Display>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}
