//! The tables of a report as CSV.

use super::{Measured, data::ReportData, gallery::BUCKETS};
use crate::{
    analysis::{CoOccurrence, TagAnalysis},
    sheet::text,
};

/// Makes a table.
pub(super) type Table = fn(&ReportData) -> String;

/// The tables that are made of the data alone, by file name, with what is in each.
pub(super) const TABLES: [(&str, &str, Table); 14] = [
    ("tags.csv", "how often each tag occurs", tags),
    ("histogram.csv", "scores of each tag by tenths", histogram),
    ("buckets.csv", "scores of each tag by twentieths", buckets),
    ("quantiles.csv", "quantiles of the scores of each tag", quantiles),
    ("thresholds.csv", "pictures of each tag at each threshold", thresholds),
    ("suggestions.csv", "suggested thresholds", suggestions),
    ("groups.csv", "pictures with any tag of a group", groups),
    ("cooccurrence.csv", "pictures that have two tags", cooccurrence),
    ("pairs.csv", "each pair of tags that stand together", pairs),
    ("sharpness.csv", "scores against measured sharpness", sharpness),
    ("lengths.csv", "caption length by settings", lengths),
    ("gallery.csv", "the pictures shown", gallery),
    ("spellings.csv", "tags spelled in several ways", spellings),
    ("problems.csv", "pictures that are missing or cannot be shown", problems),
];

fn optional(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// A header of `tag` and other columns.
fn tag_and(columns: impl IntoIterator<Item = String>) -> impl Iterator<Item = String> {
    [String::from("tag")].into_iter().chain(columns)
}

/// A row for each tag, the most frequent first.
fn by_tag<'a, C: IntoIterator<Item = String> + 'a>(
    data: &'a ReportData,
    cells: impl Fn(&'a TagAnalysis) -> C + 'a,
) -> impl Iterator<Item = impl Iterator<Item = String> + 'a> + 'a {
    data.tags.iter().map(move |tag| [tag.tag.clone()].into_iter().chain(cells(data.analysis_of(tag))))
}

fn numbers(numbers: &[u64]) -> impl Iterator<Item = String> {
    numbers.iter().map(u64::to_string)
}

/// A mean score with four digits, or nothing.
pub(super) fn mean(tag: &TagAnalysis) -> String {
    optional(tag.mean_score.map(|mean| format!("{mean:.4}")))
}

fn tags(data: &ReportData) -> String {
    let rows = data.tags.iter().map(|tag| {
        let numbers = data.analysis_of(tag);
        let (images, enough) = (numbers.images.to_string(), tag.images_at_min_score.to_string());
        [tag.tag.clone(), images, enough, mean(numbers), optional(tag.count)]
    });
    text(["tag", "images", "images_at_min_score", "mean_score", "count"], rows)
}

/// The 20 buckets by two.
pub(super) fn tenths(histogram: &[u64]) -> Vec<u64> {
    histogram.chunks(BUCKETS / 10).map(|pair| pair.iter().sum()).collect()
}

fn histogram(data: &ReportData) -> String {
    let tenth = |k: usize| k as f64 / 10.0;
    let header = (0..10).map(|k| format!("{:.1} to {:.1}", tenth(k), tenth(k + 1)));
    text(tag_and(header), by_tag(data, |tag| tenths(&tag.histogram).into_iter().map(|n| n.to_string())))
}

fn buckets(data: &ReportData) -> String {
    let bound = |k: usize| k as f64 / BUCKETS as f64;
    let header = (0..BUCKETS).map(|k| format!("{:.2} to {:.2}", bound(k), bound(k + 1)));
    text(tag_and(header), by_tag(data, |tag| numbers(&tag.histogram)))
}

fn quantiles(data: &ReportData) -> String {
    let header = (0..=10).map(|k| format!("{} %", 10 * k));
    let cell = |tag: &TagAnalysis, k| tag.quantiles.get(k).map(f32::to_string).unwrap_or_default();
    text(tag_and(header), by_tag(data, |tag| (0..=10).map(move |k| cell(tag, k))))
}

fn thresholds(data: &ReportData) -> String {
    let header = data.analysis.thresholds.iter().map(f32::to_string);
    text(tag_and(header), by_tag(data, |tag| numbers(&tag.at_threshold)))
}

fn suggestions(data: &ReportData) -> String {
    let rows = data.tags.iter().filter_map(|tag| {
        let suggestion = data.analysis_of(tag).suggestion.as_ref()?;
        let labels = suggestion.from_labels.as_ref();
        Some([
            tag.tag.clone(),
            optional(suggestion.knee),
            optional(labels.map(|labels| labels.threshold)),
            optional(labels.map(|labels| format!("{:.4}", labels.f1))),
            optional(labels.map(|labels| format!("{:.4}", labels.precision))),
            optional(labels.map(|labels| format!("{:.4}", labels.recall))),
            optional(labels.map(|labels| labels.labels)),
        ])
    });
    text(["tag", "knee", "from_labels", "f1", "precision", "recall", "labels"], rows)
}

fn groups(data: &ReportData) -> String {
    let rows = data.groups.iter().map(|group| {
        let share = format!("{:.4}", group.share);
        [group.word.clone(), group.tags.join(" "), group.images.to_string(), share]
    });
    text(["word", "tags", "images", "share"], rows)
}

fn cooccurrence(data: &ReportData) -> String {
    let pairs = &data.analysis.cooccurrence;
    let rows = pairs.tags.iter().zip(&pairs.counts);
    let rows = rows.map(|(tag, counts)| [tag.clone()].into_iter().chain(numbers(counts)));
    text(tag_and(pairs.tags.iter().cloned()), rows)
}

fn pairs(data: &ReportData) -> String {
    let CoOccurrence { tags, counts, .. } = &data.analysis.cooccurrence;
    let pairs = (0..tags.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
    let pairs = pairs.filter(|(a, b)| counts[*a][*b] > 0);
    let number = |a: usize, b: usize| counts[a][b].to_string();
    let rows =
        pairs.map(|(a, b)| [tags[a].clone(), tags[b].clone(), number(a, b), number(a, a), number(b, b)]);
    text(["tag", "with", "images", "images_of_tag", "images_of_with"], rows)
}

fn sharpness(data: &ReportData) -> String {
    let rows = data.analysis.sharpness.iter().flat_map(|agreement| {
        agreement.buckets.iter().map(|bucket| {
            let [from, to] = [bucket.from, bucket.to].map(|bound| bound.to_string());
            [
                agreement.tag.clone(),
                from,
                to,
                bucket.images.to_string(),
                optional(bucket.median.map(|median| format!("{median:.2}"))),
            ]
        })
    });
    text(["tag", "from", "to", "images", "median_sharpness"], rows)
}

fn lengths(data: &ReportData) -> String {
    let rows = data.analysis.lengths.iter().map(|effect| {
        [
            effect.max_tags.to_string(),
            effect.min_score.to_string(),
            effect.images_with_tags.to_string(),
            format!("{:.2}", effect.mean_tokens),
            effect.max_tokens.to_string(),
            effect.over_75.to_string(),
        ]
    });
    text(["max_tags", "min_score", "images_with_tags", "mean_tokens", "max_tokens", "over_75"], rows)
}

fn gallery(data: &ReportData) -> String {
    let rows = data.tags.iter().flat_map(|tag| {
        tag.buckets.iter().flat_map(|bucket| {
            bucket.pictures.iter().map(|picture| {
                [
                    tag.tag.clone(),
                    bucket.from_percent.to_string(),
                    bucket.to_percent.to_string(),
                    picture.image.clone(),
                    picture.score.to_string(),
                    optional(picture.thumbnail.as_ref().map(|thumbnail| &thumbnail.file)),
                ]
            })
        })
    });
    text(["tag", "from_percent", "to_percent", "image", "score", "thumbnail"], rows)
}

fn spellings(data: &ReportData) -> String {
    let rows = data.analysis.spellings.iter();
    let rows = rows.flat_map(|(tag, spellings)| spellings.iter().map(|text| [tag.clone(), text.clone()]));
    text(["tag", "spelling"], rows)
}

fn problems(data: &ReportData) -> String {
    let found = data.problems.iter().map(|problem| [problem.image.clone(), problem.problem.clone()]);
    let untagged = data.untagged.iter().map(|image| [image.clone(), "not in the tag table".to_owned()]);
    text(["image", "problem"], found.chain(untagged))
}

/// `captions.csv`: the captions as they are.
pub(super) fn captions(measured: &[Measured]) -> String {
    let rows = measured.iter().map(|Measured { image, status, tokens, parts }| {
        [image.clone(), (*status).to_owned(), tokens.to_string(), parts.to_string()]
    });
    text(["image", "status", "tokens", "parts"], rows)
}
