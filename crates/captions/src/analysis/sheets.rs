//! An analysis as CSV files, one a table.

use super::{Analysis, HISTOGRAM_BUCKETS};
use crate::sheet::text;

/// A file's name, and what is in it.
pub(super) type SheetFile = (&'static str, fn(&Analysis) -> String);

/// The files, in the order in which they are written.
pub(super) const SHEETS: [SheetFile; 7] = [
    ("tags.csv", tags),
    ("histogram.csv", histogram),
    ("quantiles.csv", quantiles),
    ("groups.csv", groups),
    ("cooccurrence.csv", cooccurrence),
    ("sharpness.csv", sharpness),
    ("lengths.csv", lengths),
];

/// One row a tag: counts, and where its threshold could be.
fn tags(analysis: &Analysis) -> String {
    let suggested = ["knee", "best_threshold", "best_f1", "precision", "recall", "labels"];
    let header: Vec<_> = ["tag", "category", "images", "mean_score"]
        .map(ToOwned::to_owned)
        .into_iter()
        .chain(at(analysis))
        .chain(suggested.map(ToOwned::to_owned))
        .collect();
    let rows = analysis.tags.iter().map(|tag| {
        let mut row = vec![
            tag.tag.clone(),
            tag.category.clone(),
            tag.images.to_string(),
            tag.mean_score.map(decimals).unwrap_or_default(),
        ];
        row.extend(tag.at_threshold.iter().map(u64::to_string));
        let suggestion = tag.suggestion.as_ref();
        let knee = suggestion.and_then(|suggestion| suggestion.knee);
        row.push(knee.map(|knee| knee.to_string()).unwrap_or_default());
        match suggestion.and_then(|suggestion| suggestion.from_labels.as_ref()) {
            None => row.extend(vec![String::new(); 5]),
            Some(best) => {
                row.push(best.threshold.to_string());
                row.extend([best.f1, best.precision, best.recall].map(decimals));
                row.push(best.labels.to_string());
            }
        }
        row
    });
    text(&header, rows)
}

fn histogram(analysis: &Analysis) -> String {
    let bound = |k: usize| k as f64 / HISTOGRAM_BUCKETS as f64;
    let buckets = (0..HISTOGRAM_BUCKETS).map(|k| format!("{:.2} to {:.2}", bound(k), bound(k + 1)));
    let header: Vec<_> = ["tag".to_owned()].into_iter().chain(buckets).collect();
    let rows = analysis
        .tags
        .iter()
        .map(|tag| [tag.tag.clone()].into_iter().chain(tag.histogram.iter().map(u64::to_string)));
    text(&header, rows)
}

fn quantiles(analysis: &Analysis) -> String {
    let percent = (0..=10).map(|tenth| format!("{} %", 10 * tenth));
    let header: Vec<_> = ["tag".to_owned()].into_iter().chain(percent).collect();
    let rows = analysis.tags.iter().map(|tag| {
        let mut quantiles: Vec<_> = tag.quantiles.iter().map(f32::to_string).collect();
        quantiles.resize(11, String::new());
        [tag.tag.clone()].into_iter().chain(quantiles)
    });
    text(&header, rows)
}

fn groups(analysis: &Analysis) -> String {
    let first = ["word", "tags", "images", "share"].map(ToOwned::to_owned);
    let header: Vec<_> = first.into_iter().chain(at(analysis)).collect();
    let rows = analysis.groups.iter().map(|group| {
        let share = group.images as f64 / analysis.images.max(1) as f64;
        let mut row =
            vec![group.word.clone(), group.tags.join(" "), group.images.to_string(), decimals(share)];
        row.extend(group.at_threshold.iter().map(u64::to_string));
        row
    });
    text(&header, rows)
}

fn cooccurrence(analysis: &Analysis) -> String {
    let together = &analysis.cooccurrence;
    let header: Vec<_> = ["tag".to_owned()].iter().chain(&together.tags).cloned().collect();
    let rows = together.tags.iter().zip(&together.counts);
    let rows = rows.map(|(tag, counts)| [tag.clone()].into_iter().chain(counts.iter().map(u64::to_string)));
    text(&header, rows)
}

/// The buckets; the figures for all pictures stand in the first row.
fn sharpness(analysis: &Analysis) -> String {
    let header = ["tag", "from", "to", "images", "median_sharpness", "spearman", "auc"];
    let rows = analysis.sharpness.iter().flat_map(|found| {
        let whole = vec![
            found.tag.clone(),
            "0".to_owned(),
            "1".to_owned(),
            found.images.to_string(),
            String::new(),
            decimals(found.spearman),
            decimals(found.auc),
        ];
        let bucket = |bucket: &super::SharpnessBucket| {
            let median = bucket.median.map(|median| median.to_string()).unwrap_or_default();
            let [from, to] = [bucket.from, bucket.to].map(|bound| bound.to_string());
            let images = bucket.images.to_string();
            vec![found.tag.clone(), from, to, images, median, String::new(), String::new()]
        };
        [whole].into_iter().chain(found.buckets.iter().map(bucket)).collect::<Vec<_>>()
    });
    text(header, rows)
}

fn lengths(analysis: &Analysis) -> String {
    let header = ["max_tags", "min_score", "images_with_tags", "mean_tokens", "max_tokens", "over_75"];
    let rows = analysis.lengths.iter().map(|effect| {
        vec![
            effect.max_tags.to_string(),
            effect.min_score.to_string(),
            effect.images_with_tags.to_string(),
            decimals(effect.mean_tokens),
            effect.max_tokens.to_string(),
            effect.over_75.to_string(),
        ]
    });
    text(header, rows)
}

/// A column for each threshold.
fn at(analysis: &Analysis) -> impl Iterator<Item = String> {
    analysis.thresholds.iter().map(|threshold| format!("at_{threshold}"))
}

fn decimals(value: f64) -> String {
    format!("{value:.4}")
}
