//! What a user should know about the tables that went into an analysis.

use super::{AnalysisInputs, labels::Labels, survey::Survey};
use crate::{
    Result,
    table::{About, Walked, below_floor, list, missing_tags, other_vocabulary},
};

/// Sentences about the inputs, in a fixed order.
pub(super) fn warnings(
    inputs: &AnalysisInputs,
    labels: &Labels,
    walked: &Walked<Survey<'_>>,
) -> Result<Vec<String>> {
    let about = About::read(&inputs.tags)?;
    let survey = &walked.visitor;
    let mut warnings = Vec::new();
    let scores = inputs.settings.thresholds.iter().chain([&inputs.settings.min_score]).copied();
    warnings.extend(below_floor(&inputs.tags, &about, "counts at", scores));
    warnings.extend(other_vocabulary(&inputs.tags, &about, &inputs.selection_path));
    warnings.extend(other_pictures(inputs, &about)?);
    if let Some(path) = inputs.pictures.as_ref().filter(|_| survey.sharpness.is_empty() && survey.tagged > 0)
    {
        warnings.push(format!("`{}` has none of the pictures of the tag table", path.display()));
    }
    warnings.extend(missing_tags(absent_tags(inputs, survey)));
    if inputs.captions.is_some() && survey.absent > 0 {
        warnings.push(format!("{} pictures of the tag table are not in the folder", survey.absent));
    }
    let count = inputs.captions.as_ref().map_or(0, |captions| captions.len() as u64);
    if count > survey.tagged {
        let untagged = count - survey.tagged;
        warnings.push(format!("{untagged} pictures of the folder are not in the tag table"));
    }
    if let Some(words) = list(empty_groups(inputs, survey)) {
        warnings.push(format!("no tag of the table has the word {words}"));
    }
    warnings.extend(unused_labels(inputs, labels, survey));
    let kept = inputs.settings.cooccurrence_max;
    if inputs.selection.len() > kept {
        warnings.push(format!("co-occurrence is of the first {kept} selected tags"));
    }
    Ok(warnings)
}

/// Whether the table of pictures was written in another run than the table of tags.
fn other_pictures(inputs: &AnalysisInputs, tags: &About) -> Result<Option<String>> {
    let Some(path) = &inputs.pictures else { return Ok(None) };
    let pictures = About::read(path)?;
    let differ = |a: &Option<String>, b: &Option<String>| a.is_some() && b.is_some() && a != b;
    let told = |what: &str| {
        let (tags, pictures) = (inputs.tags.display(), path.display());
        format!("`{tags}` and `{pictures}` are of different {what}")
    };
    Ok(match () {
        () if differ(&tags.images, &pictures.images) => Some(told("pictures")),
        () if differ(&tags.model, &pictures.model) => Some(told("models")),
        () => None,
    })
}

fn absent_tags<'a>(inputs: &'a AnalysisInputs, survey: &Survey<'_>) -> Vec<&'a str> {
    let absent = inputs.selection.iter().zip(&survey.is_there).filter(|(_, is_there)| !**is_there);
    absent.map(|(tag, _)| tag.as_str()).collect()
}

fn empty_groups<'a>(inputs: &'a AnalysisInputs, survey: &Survey<'_>) -> Vec<&'a str> {
    let groups = inputs.settings.groups.iter().zip(&survey.group_tags);
    groups.filter(|(_, tags)| tags.is_empty()).map(|(word, _)| word.as_str()).collect()
}

fn unused_labels(inputs: &AnalysisInputs, labels: &Labels, survey: &Survey<'_>) -> Vec<String> {
    let unselected =
        labels.tags().into_iter().filter(|tag| !inputs.selection.iter().any(|other| other == tag));
    let tags =
        list(unselected.collect()).map(|names| format!("labels of tags that are not selected: {names}"));
    let absent = labels.0.len() as u64 - survey.judged_images;
    let images =
        (absent > 0).then(|| format!("labels of {absent} pictures that the tag table does not name"));
    tags.into_iter().chain(images).collect()
}
