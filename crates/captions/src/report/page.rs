//! The pages of a report: `index.html`, one for each tag, and `report.md`.

use std::{collections::BTreeMap, fmt::Write};

use minijinja::Value;
use serde::Serialize;
use vodka_prompt::MAX_TOKENS;

use super::{
    CaptionStatistics, Group,
    charts::{self, Chart, HEAT_MAX, Place, bucket_name, suggested, thousands, trimmed},
    data::{BucketData, ReportData, TagData},
    gallery::BUCKETS,
    tables::{TABLES, mean, tenths},
    templates::render,
};

/// The buckets that the authors of V3 compared: 95 % and above, 35 to 40 %.
const COMPARED: [u32; 2] = [95, 35];

/// How many pairs of tags, and how many lines of other lists, a page names; the tables have all.
const LISTED: usize = 25;

/// A number with a word for it.
#[derive(Serialize)]
struct Figure {
    name: &'static str,
    value: String,
    note: String,
}

/// A tag with the link to its page, where it has one.
#[derive(Serialize)]
struct TagLink {
    tag: String,
    link: Option<String>,
}

/// Links to the pages of tags, from the report's folder or from `tags/`.
struct Links<'a> {
    slugs: BTreeMap<&'a str, &'a str>,
    folder: &'static str,
}

impl<'a> Links<'a> {
    fn new(data: &'a ReportData, folder: &'static str) -> Self {
        let slugs = data.tags.iter().map(|tag| (tag.tag.as_str(), tag.slug.as_str())).collect();
        Self { slugs, folder }
    }

    fn of(&self, tag: &str) -> TagLink {
        let link = self.slugs.get(tag).map(|slug| format!("{}{slug}.html", self.folder));
        TagLink { tag: tag.to_owned(), link }
    }
}

fn figure(name: &'static str, value: impl ToString, note: impl ToString) -> Figure {
    Figure { name, value: value.to_string(), note: note.to_string() }
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

/// SVG that goes into a page as it is.
fn inline(chart: &Chart) -> Value {
    Value::from_safe_string(chart.svg(Place::Page))
}

/// What `index.html` is filled with.
#[derive(Serialize)]
struct Index {
    title: &'static str,
    root: &'static str,
    figures: Vec<Figure>,
    groups: Vec<GroupRow>,
    thresholds: Vec<String>,
    min_score: String,
    tags_chart: Value,
    tags: Vec<TagRow>,
    pairs: Vec<PairRow>,
    pairs_min_score: String,
    heat_chart: Option<Value>,
    heat_max: usize,
    heat_cut: bool,
    sharpness: Option<Sharpness>,
    captions_chart: Value,
    captions: Vec<(&'static str, String)>,
    max_tokens: usize,
    lengths: Vec<[String; 6]>,
    problems: Vec<List>,
    listed: usize,
    files: Vec<(&'static str, &'static str)>,
}

#[derive(Serialize)]
struct GroupRow {
    word: String,
    share: String,
    images: String,
    at_threshold: Vec<String>,
    tags: Vec<TagLink>,
    note: &'static str,
}

#[derive(Serialize)]
struct TagRow {
    tag: TagLink,
    images: String,
    share: String,
    enough: String,
    mean: String,
    suggested: String,
    spark: String,
}

#[derive(Serialize)]
struct PairRow {
    a: TagLink,
    b: TagLink,
    images: String,
    share: String,
}

#[derive(Serialize)]
struct Sharpness {
    tag: String,
    images: String,
    spearman: String,
    auc: String,
    chart: Option<Value>,
    rows: Vec<[String; 3]>,
}

/// Some lines of something that is wrong, or worth a look.
#[derive(Serialize)]
struct List {
    title: String,
    count: String,
    lines: Vec<String>,
    file: &'static str,
}

/// The overview.
pub(super) fn index(data: &ReportData) -> String {
    let links = Links::new(data, "tags/");
    let thresholds = &data.analysis.thresholds;
    let pairs = &data.analysis.cooccurrence;
    render(
        "index.html",
        Index {
            title: "Tag report",
            root: "",
            figures: figures(data),
            groups: data.groups.iter().map(|group| group_row(data, group, &links)).collect(),
            thresholds: thresholds.iter().map(|score| trimmed(*score)).collect(),
            min_score: trimmed(data.min_score),
            tags_chart: inline(&charts::tags(data)),
            tags: data.tags.iter().map(|tag| tag_row(data, tag, &links)).collect(),
            pairs: pair_rows(data, &links),
            pairs_min_score: trimmed(pairs.min_score),
            heat_chart: charts::cooccurrence(data).as_ref().map(inline),
            heat_max: HEAT_MAX,
            heat_cut: pairs.tags.len() > HEAT_MAX,
            sharpness: sharpness(data),
            captions_chart: inline(&charts::captions(data)),
            captions: caption_facts(&data.captions),
            max_tokens: MAX_TOKENS,
            lengths: length_rows(data),
            problems: problems(data),
            listed: LISTED,
            files: files(),
        },
    )
}

fn figures(data: &ReportData) -> Vec<Figure> {
    let captions = &data.captions;
    let problems = data.problems.len();
    vec![
        figure("Pictures", thousands(data.images), ""),
        figure("In the tag table", thousands(data.tagged), percent(data.tagged, data.images)),
        figure(
            "Selected tags",
            data.tags.len(),
            if data.unused.is_empty() {
                String::new()
            } else {
                format!("{} on no picture", data.unused.len())
            },
        ),
        figure(
            "Tokens of a caption",
            format!("{:.1}", captions.mean_tokens),
            format!("{} at most", captions.max_tokens),
        ),
        figure("Problems", thousands(problems as u64), if problems == 0 { "none" } else { "see below" }),
    ]
}

fn group_row(data: &ReportData, group: &Group, links: &Links<'_>) -> GroupRow {
    let analysed = data.analysis.groups.iter().find(|analysed| analysed.word == group.word);
    let at_threshold = analysed.map(|group| group.at_threshold.as_slice()).unwrap_or_default();
    GroupRow {
        word: group.word.clone(),
        share: format!("{:.1} %", 100.0 * group.share),
        images: thousands(group.images),
        at_threshold: at_threshold.iter().map(|images| percent(*images, data.images)).collect(),
        tags: group.tags.iter().map(|tag| links.of(tag)).collect(),
        note: if group.selected.is_empty() { "no selected tag has it" } else { "" },
    }
}

fn tag_row(data: &ReportData, tag: &TagData, links: &Links<'_>) -> TagRow {
    let numbers = data.analysis_of(tag);
    TagRow {
        tag: links.of(&tag.tag),
        images: thousands(numbers.images),
        share: percent(numbers.images, data.images),
        enough: thousands(tag.images_at_min_score),
        mean: numbers.mean_score.map(|mean| format!("{mean:.2}")).unwrap_or_default(),
        suggested: suggested(data, tag).map(|score| format!("{score:.2}")).unwrap_or_default(),
        spark: charts::spark(&numbers.histogram),
    }
}

/// The pairs that stand together most, measured by the rarer tag.
fn pair_rows(data: &ReportData, links: &Links<'_>) -> Vec<PairRow> {
    let pairs = &data.analysis.cooccurrence;
    let mut found = Vec::new();
    for (a, counts) in pairs.counts.iter().enumerate() {
        for (b, both) in counts.iter().enumerate().take(a).filter(|(_, both)| **both > 0) {
            let rarer = counts[a].min(pairs.counts[b][b]).max(1);
            found.push((*both, *both as f64 / rarer as f64, a, b));
        }
    }
    // By how many pictures it is about and by how close the two are: a pair on one picture is always close.
    let weight = |both: u64, share: f64| (both as f64).sqrt() * share;
    found.sort_by(|a, b| weight(b.0, b.1).total_cmp(&weight(a.0, a.1)));
    let row = |(both, share, a, b): (u64, f64, usize, usize)| {
        // The rarer one first: "of the pictures with the first, so many have the second".
        let (a, b) = if pairs.counts[a][a] <= pairs.counts[b][b] { (a, b) } else { (b, a) };
        PairRow {
            a: links.of(&pairs.tags[a]),
            b: links.of(&pairs.tags[b]),
            images: thousands(both),
            share: format!("{:.0} %", 100.0 * share),
        }
    };
    found.into_iter().take(LISTED).map(row).collect()
}

fn sharpness(data: &ReportData) -> Option<Sharpness> {
    let agreement = data.analysis.sharpness.as_ref()?;
    let row = |bucket: &crate::analysis::SharpnessBucket| {
        [
            format!("{} to {}", trimmed(bucket.from), trimmed(bucket.to)),
            thousands(bucket.images),
            bucket.median.map(|median| format!("{median:.0}")).unwrap_or_default(),
        ]
    };
    Some(Sharpness {
        tag: agreement.tag.clone(),
        images: thousands(agreement.images),
        spearman: format!("{:.2}", agreement.spearman),
        auc: format!("{:.2}", agreement.auc),
        chart: charts::sharpness(data).as_ref().map(inline),
        rows: agreement.buckets.iter().map(row).collect(),
    })
}

fn caption_facts(captions: &CaptionStatistics) -> Vec<(&'static str, String)> {
    let CaptionStatistics { present, missing, empty, several_lines, mean_tokens, max_tokens, too_long } =
        captions;
    let count = |count: &usize| thousands(*count as u64);
    vec![
        ("with a caption", count(present)),
        ("without one", count(missing)),
        ("with an empty one", count(empty)),
        ("with several lines", count(several_lines)),
        ("tokens on average", format!("{mean_tokens:.1}")),
        ("tokens at most", count(max_tokens)),
        ("of more than 75 tokens", count(too_long)),
    ]
}

fn length_rows(data: &ReportData) -> Vec<[String; 6]> {
    let row = |effect: &crate::analysis::LengthEffect| {
        [
            effect.max_tags.to_string(),
            trimmed(effect.min_score),
            percent(effect.images_with_tags, data.images),
            format!("{:.1}", effect.mean_tokens),
            effect.max_tokens.to_string(),
            thousands(effect.over_75),
        ]
    };
    data.analysis.lengths.iter().map(row).collect()
}

fn problems(data: &ReportData) -> Vec<List> {
    let spellings = data.analysis.spellings.iter().map(|(tag, spellings)| {
        let spellings: Vec<_> = spellings.iter().map(|name| format!("{name:?}")).collect();
        format!("{tag}: {}", spellings.join(", "))
    });
    let pictures = data.problems.iter().map(|problem| format!("{}: {}", problem.image, problem.problem));
    let lists = [
        ("Warnings", data.warnings.clone(), "data.json"),
        ("Pictures that are missing or cannot be shown", pictures.collect(), "problems.csv"),
        ("Pictures that the tag table does not name", data.untagged.clone(), "problems.csv"),
        ("Tags that the table spells in several ways (counted as one)", spellings.collect(), "spellings.csv"),
        ("Selected tags that no picture has", data.unused.clone(), "tags.csv"),
    ];
    let list = |(title, mut lines, file): (&str, Vec<String>, _)| {
        let (title, count) = (title.to_owned(), thousands(lines.len() as u64));
        lines.truncate(LISTED);
        List { title, count, lines, file }
    };
    lists.into_iter().filter(|(_, lines, _)| !lines.is_empty()).map(list).collect()
}

fn files() -> Vec<(&'static str, &'static str)> {
    let tables = TABLES.map(|(name, about, _)| (name, about));
    let others = [
        ("captions.csv", "the caption of each picture, measured"),
        ("data.json", "all that these pages show"),
        ("report.md", "the report in short"),
    ];
    tables.into_iter().chain(others).collect()
}

/// What `tag.html` is filled with.
#[derive(Serialize)]
struct TagPage {
    title: String,
    root: &'static str,
    tag: String,
    before: Option<TagLink>,
    after: Option<TagLink>,
    figures: Vec<Figure>,
    chart: Value,
    chart_file: String,
    thresholds: Vec<[String; 3]>,
    quantiles: Vec<[String; 2]>,
    buckets: Vec<[String; 3]>,
    together: Vec<PairRow>,
    min_score: String,
    labels: Option<[String; 5]>,
    compared: Vec<BucketView>,
    others: Vec<BucketView>,
}

#[derive(Serialize)]
struct BucketView {
    id: String,
    name: String,
    images: String,
    pictures: Vec<PictureView>,
    more: bool,
}

#[derive(Serialize)]
struct PictureView {
    name: String,
    alt: String,
    score: String,
    link: String,
    file: Option<String>,
    width: u32,
    height: u32,
    problem: String,
}

/// The page of a tag, given its place in the data.
pub(super) fn tag(data: &ReportData, place: usize) -> String {
    let tag = &data.tags[place];
    let numbers = data.analysis_of(tag);
    let links = Links::new(data, "");
    let neighbour = |place: Option<usize>| Some(links.of(&data.tags.get(place?)?.tag));
    let thresholds = data.analysis.thresholds.iter().zip(&numbers.at_threshold);
    let quantiles = numbers.quantiles.iter().enumerate();
    let compared = |percent: u32| {
        let found = tag.buckets.iter().find(|bucket| bucket.from_percent == percent);
        found.map_or_else(|| empty_bucket(percent), |bucket| bucket_view(tag, bucket))
    };
    let others = tag.buckets.iter().filter(|bucket| !COMPARED.contains(&bucket.from_percent));
    render(
        "tag.html",
        TagPage {
            title: format!("{} - tag report", tag.tag),
            root: "../",
            tag: tag.tag.clone(),
            before: neighbour(place.checked_sub(1)),
            after: neighbour(place.checked_add(1)),
            figures: tag_figures(data, tag),
            chart: inline(&charts::histogram(data, tag)),
            chart_file: format!("charts/tag-{}.svg", tag.slug),
            thresholds: thresholds
                .map(|(score, images)| [trimmed(*score), thousands(*images), percent(*images, data.images)])
                .collect(),
            quantiles: quantiles.map(|(k, score)| [format!("{} %", 10 * k), format!("{score:.3}")]).collect(),
            buckets: bucket_rows(&numbers.histogram),
            together: together(data, &tag.tag, &links),
            min_score: trimmed(data.analysis.cooccurrence.min_score),
            labels: labels(data, tag),
            compared: COMPARED.map(compared).into(),
            others: others.map(|bucket| bucket_view(tag, bucket)).collect(),
        },
    )
}

fn tag_figures(data: &ReportData, tag: &TagData) -> Vec<Figure> {
    let numbers = data.analysis_of(tag);
    let share = |images| percent(images, data.images);
    let score = |score: Option<f64>| score.map_or_else(|| "none".to_owned(), |score| format!("{score:.2}"));
    let middle = numbers.quantiles.get(numbers.quantiles.len() / 2).map(|score| f64::from(*score));
    let mut figures = vec![
        figure("Pictures, any score", thousands(numbers.images), share(numbers.images)),
        figure(
            "At the minimum or more",
            thousands(tag.images_at_min_score),
            format!("{}, score {}", share(tag.images_at_min_score), trimmed(data.min_score)),
        ),
        figure("Mean score", score(numbers.mean_score), format!("median {}", score(middle))),
    ];
    if let Some(score) = suggested(data, tag) {
        let judged = numbers.suggestion.as_ref().is_some_and(|found| found.from_labels.is_some());
        let note = if judged { "from judged pictures" } else { "where the count bends" };
        figures.push(figure("Suggested threshold", format!("{score:.2}"), note));
    }
    if let Some(count) = tag.count {
        figures.push(figure("In the tagger's data", thousands(count), "pictures"));
    }
    figures
}

fn bucket_rows(histogram: &[u64]) -> Vec<[String; 3]> {
    let row = |(place, images): (usize, &u64)| {
        let link = if *images > 0 { format!("#b{}", 100 * place / BUCKETS) } else { String::new() };
        [bucket_name(place), thousands(*images), link]
    };
    histogram.iter().enumerate().rev().map(row).collect()
}

/// The tags that stand with a tag most often.
fn together(data: &ReportData, tag: &str, links: &Links<'_>) -> Vec<PairRow> {
    let pairs = &data.analysis.cooccurrence;
    let Some(own) = pairs.tags.iter().position(|other| other == tag) else { return Vec::new() };
    let counts = &pairs.counts[own];
    let mut others: Vec<_> =
        (0..pairs.tags.len()).filter(|other| *other != own && counts[*other] > 0).collect();
    others.sort_by_key(|other| std::cmp::Reverse(counts[*other]));
    let row = |other: usize| PairRow {
        a: links.of(tag),
        b: links.of(&pairs.tags[other]),
        images: thousands(counts[other]),
        share: percent(counts[other], counts[own]),
    };
    others.into_iter().take(10).map(row).collect()
}

fn labels(data: &ReportData, tag: &TagData) -> Option<[String; 5]> {
    let labels = data.analysis_of(tag).suggestion.as_ref()?.from_labels.as_ref()?;
    let [f1, precision, recall] =
        [labels.f1, labels.precision, labels.recall].map(|value| format!("{value:.2}"));
    Some([format!("{:.2}", labels.threshold), f1, precision, recall, thousands(labels.labels)])
}

fn empty_bucket(percent: u32) -> BucketView {
    let name = bucket_name(percent as usize * BUCKETS / 100);
    BucketView { id: format!("b{percent}"), name, images: "0".to_owned(), pictures: Vec::new(), more: false }
}

fn bucket_view(tag: &TagData, bucket: &BucketData) -> BucketView {
    let picture = |picture: &super::data::PictureData| {
        let thumbnail = picture.thumbnail.as_ref();
        let score = format!("{:.3}", picture.score);
        PictureView {
            name: picture.image.clone(),
            alt: format!("{}, {} {score}", picture.image, tag.tag),
            score,
            link: from_tags(&picture.link),
            file: thumbnail.map(|thumbnail| from_tags(&thumbnail.file)),
            width: thumbnail.map_or(0, |thumbnail| thumbnail.width),
            height: thumbnail.map_or(0, |thumbnail| thumbnail.height),
            problem: picture.problem.clone().unwrap_or_default(),
        }
    };
    BucketView {
        id: format!("b{}", bucket.from_percent),
        name: bucket_name(bucket.from_percent as usize * BUCKETS / 100),
        images: thousands(bucket.images),
        pictures: bucket.pictures.iter().map(picture).collect(),
        more: bucket.images > bucket.pictures.len() as u64,
    }
}

/// A link from the report's folder as one from `tags/`.
fn from_tags(link: &str) -> String {
    if link.starts_with("file:") { link.to_owned() } else { format!("../{link}") }
}

/// The report in short, for terminals. Writing to a string cannot fail.
pub(super) fn markdown(data: &ReportData) -> String {
    let ReportData { images, tagged, captions, .. } = data;
    let tags = data.tags.len();
    let mut text =
        format!("# Tags\n\n{images} pictures, {tagged} of them in the tag table; {tags} selected tags.\n\n");
    for group in &data.groups {
        let Group { word, tags, images, share, .. } = group;
        let share = 100.0 * share;
        let tags: Vec<_> = tags.iter().map(|tag| code(tag)).collect();
        let _ = writeln!(
            text,
            "- **{share:.1} %** ({images}) have a tag with {} at any score{}{}{}",
            code(word),
            if tags.is_empty() { "" } else { ": " },
            tags.join(", "),
            group.note()
        );
    }
    for (tag, spellings) in &data.analysis.spellings {
        let spellings: Vec<_> = spellings.iter().map(|name| code(&format!("{name:?}"))).collect();
        let (tag, ways, spellings) = (code(tag), spellings.len(), spellings.join(", "));
        let _ = writeln!(text, "- {tag} is spelled in {ways} ways: {spellings}");
    }
    let min_score = data.min_score;
    let _ = write!(
        text,
        "\n| tag | pictures, any score | at {min_score} or more | mean score | scores by tenths |\n"
    );
    text.push_str("|---|---:|---:|---:|---|\n");
    for tag in &data.tags {
        let numbers = data.analysis_of(tag);
        let (name, images, enough, mean, bars) = (
            code(&tag.tag),
            numbers.images,
            tag.images_at_min_score,
            mean(numbers),
            bars(&tenths(&numbers.histogram)),
        );
        let _ = writeln!(text, "| {name} | {images} | {enough} | {mean} | {bars} |");
    }
    let CaptionStatistics { present, missing, empty, several_lines, mean_tokens, max_tokens, too_long } =
        captions;
    let _ = write!(
        text,
        "\n# Captions\n\n{present} pictures have a caption, {missing} have none, {empty} have an empty one; \
         {several_lines} captions have several lines.\nTokens: {mean_tokens:.1} on average, {max_tokens} at most; \
         {too_long} captions have more than {MAX_TOKENS}.\n"
    );
    text
}

/// Code in a table cell of Markdown.
fn code(text: &str) -> String {
    let fence = if text.contains('`') { "``" } else { "`" };
    format!("{fence}{}{fence}", text.replace('|', "\\|"))
}

/// A histogram as a line of blocks; a space is an empty bucket.
fn bars(histogram: &[u64]) -> String {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = histogram.iter().copied().max().unwrap_or(0).max(1);
    histogram.iter().map(|n| BLOCKS[(n * 8).div_ceil(most) as usize]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_drawn_to_its_highest_bucket() {
        assert_eq!(bars(&[0, 1, 4, 8]), " ▁▄█");
        assert_eq!(bars(&[0, 0]), "  ");
    }
}
