//! `cells.csv`: a line for each cell, with its values, its settings, its file and its look.

use std::path::{Path, PathBuf};

use vodka_stage::AtomicFile;

use super::{
    AxisType, Cell, GridPlan, Interval, Judgement, Judging, Range,
    look::{Look, MEASURES},
    run::{Run, prompt_of},
};
use crate::{Error, Result, numbers::number_text, parameters::model_name};

/// The columns behind those of the axes.
const SETTINGS: [&str; 13] = [
    "category",
    "model",
    "model_hash",
    "prompt",
    "negative_prompt",
    "seed",
    "steps",
    "cfg_scale",
    "sampler",
    "schedule",
    "size",
    "clip_skip",
    "vae",
];

/// Writes the table.
pub(super) fn write(run: &Run<'_>) -> Result<PathBuf> {
    let path = run.plan.output.join("cells.csv");
    let failed = |source: csv::Error| Error::WriteTable { path: path.clone(), source };
    let mut file = AtomicFile::create(&path)?;
    let mut table = csv::Writer::from_writer(&mut file);
    let axes = run.plan.axes.iter().map(|axis| format!("axis: {}", axis.name));
    let head = ["cell".to_owned()].into_iter().chain(axes);
    let head = head.chain(SETTINGS.map(str::to_owned)).chain(["file".to_owned()]);
    let head = head.chain(MEASURES.iter().map(|measure| measure.key.to_owned())).chain(["flat".to_owned()]);
    table.write_record(head).map_err(failed)?;
    for (number, look) in run.looks.iter().enumerate() {
        let cell = run.plan.cell(number);
        table.write_record(row(run, number, &cell, look.as_ref())).map_err(failed)?;
    }
    table.flush().map_err(|source| failed(source.into()))?;
    drop(table);
    file.commit()?;
    Ok(path)
}

/// Writes `judging.csv`: a line for each category, checkpoint and measure.
pub(super) fn write_judging(plan: &GridPlan, judging: &Judging) -> Result<PathBuf> {
    let path = plan.output.join("judging.csv");
    let failed = |source: csv::Error| Error::WriteTable { path: path.clone(), source };
    let mut file = AtomicFile::create(&path)?;
    let mut table = csv::Writer::from_writer(&mut file);
    table
        .write_record([
            "category",
            "checkpoint",
            "measure",
            "cells",
            "median",
            "low",
            "high",
            "over",
            "against",
            "difference",
            "difference_low",
            "difference_high",
            "difference_over",
        ])
        .map_err(failed)?;
    let label = |model: usize| {
        plan.axis_of(AxisType::Checkpoint).map_or("", |axis| &plan.axes[axis].values[model].label)
    };
    for Judgement { model, category, measure, own, difference } in &judging.judgements {
        let [median, low, high, over] = told(own);
        let [difference, difference_low, difference_high, difference_over] =
            difference.as_ref().map(told).unwrap_or_default();
        let category = category.as_deref().unwrap_or("all");
        let against = if difference.is_empty() { "" } else { label(judging.against) };
        let cells = own.count.to_string();
        let row = [
            category,
            label(*model),
            MEASURES[*measure].key,
            &cells,
            &median,
            &low,
            &high,
            &over,
            against,
            &difference,
            &difference_low,
            &difference_high,
            &difference_over,
        ];
        table.write_record(row).map_err(failed)?;
    }
    table.flush().map_err(|source| failed(source.into()))?;
    drop(table);
    file.commit()?;
    Ok(path)
}

/// The median, the ends of the interval where there is one, and what it is over.
fn told(interval: &Interval) -> [String; 4] {
    let end = |of: fn(&Range) -> f64| interval.range.as_ref().map(of).map(number_text).unwrap_or_default();
    let over = interval.range.map(|range| range.over.name().to_owned()).unwrap_or_default();
    [number_text(interval.median), end(|range| range.low), end(|range| range.high), over]
}

fn row(run: &Run<'_>, number: usize, cell: &Cell, look: Option<&Look>) -> Vec<String> {
    let plan = run.plan;
    let labels =
        plan.axes.iter().zip(&cell.place).map(|(axis, value)| axis.values[*value].label.replace('\n', "; "));
    let (settings, model) = (&cell.settings, run.model_id(cell));
    let category = plan.categories.get(prompt_of(plan, &cell.place)).cloned().flatten().unwrap_or_default();
    let of_settings = [
        category,
        model.name.clone(),
        model.sha256.short(10),
        settings.prompt.clone(),
        settings.negative_prompt.clone(),
        settings.seed.to_string(),
        settings.steps.to_string(),
        settings.cfg_scale.to_string(),
        settings.sampler.to_string(),
        settings.schedule.to_string(),
        settings.size.to_string(),
        settings.clip_skip.to_string(),
        cell.vae.as_deref().map(model_name).unwrap_or_default(),
    ];
    let file = look.map(|_| shown(&run.store.path(&run.entry(cell)), &plan.output)).unwrap_or_default();
    let measured =
        MEASURES.iter().map(|measure| look.map(|look| number_text((measure.of)(look))).unwrap_or_default());
    let flat = look.map(|look| u8::from(look.flat).to_string()).unwrap_or_default();
    let row = [(number + 1).to_string()].into_iter().chain(labels).chain(of_settings).chain([file]);
    row.chain(measured).chain([flat]).collect()
}

/// A path as it is written in the output folder: relative where it lies below.
pub(super) fn shown(path: &Path, output: &Path) -> String {
    let path = match path.strip_prefix(output) {
        Ok(below) => below.to_path_buf(),
        Err(_) => std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()),
    };
    path.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/").replace("//", "/")
}

/// A path in a page, as [`shown`] has it: what means something in a URL is encoded.
pub(super) fn link(path: &str) -> String {
    let mut link = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                link.push(byte.into());
            }
            _ => link.push_str(&format!("%{byte:02X}")),
        }
    }
    link
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_files_of_any_name() {
        assert_eq!(link("cells/0a1b.png"), "cells/0a1b.png");
        assert_eq!(link("/grids/50% #2?/é.png"), "/grids/50%25%20%232%3F/%C3%A9.png");
    }
}
