//! The sheets of a grid as PNG files: one for each value of the axes that are neither columns nor rows, split or shown
//! smaller where it would be too large.

use std::path::PathBuf;

use vodka_stage::remove_all;

use super::{Axis, AxisType, GridPlan, SheetConfig, TooLarge, axes::Change, run::Run};
use crate::{
    Result, Size,
    picture_file::write_png_bands,
    sheet::{self, Layout, Legend},
};

/// One file: some columns and rows of one sheet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    /// The combination of the sheets' axes.
    sheet: usize,
    columns: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
}

/// Writes all sheets and removes those that an earlier run has left and this one does not have.
pub(super) fn write(run: &Run<'_>) -> Result<Vec<PathBuf>> {
    let plan = run.plan;
    let (parts, scale) = parts(plan);
    let mut written = Vec::new();
    for (number, part) in (1..).zip(&parts) {
        let name = if parts.len() == 1 { "grid.png".to_owned() } else { format!("grid-{number}.png") };
        let path = plan.output.join(name);
        write_part(run, part, scale, &path)?;
        written.push(path);
    }
    for entry in plan.output.read_dir().into_iter().flatten().flatten() {
        if is_sheet(&entry.file_name().to_string_lossy()) && !written.contains(&entry.path()) {
            remove_all(&entry.path())?;
        }
    }
    Ok(written)
}

fn is_sheet(name: &str) -> bool {
    let number = |name: &str| name.strip_prefix("grid-")?.strip_suffix(".png")?.parse::<usize>().ok();
    name == "grid.png" || number(name).is_some_and(|number| format!("grid-{number}.png") == name)
}

fn write_part(run: &Run<'_>, part: &Part, scale: f64, path: &std::path::Path) -> Result<()> {
    let plan = run.plan;
    let legend = legend(plan, part);
    let layout = Layout::new(&legend, largest(plan), scale);
    let place = |row: usize, column: usize| {
        let mut place = vec![0; plan.axes.len()];
        for (axes, n) in [
            (&plan.sheets, part.sheet),
            (&plan.rows, part.rows.start + row),
            (&plan.columns, part.columns.start + column),
        ] {
            for (axis, value) in axes.iter().zip(plan.combination(axes, n)) {
                place[*axis] = value;
            }
        }
        plan.cell_at(place)
    };
    let text = run.sheet_text(&place(0, 0), &legend.columns, &legend.rows);
    let mut cell = |row, column| {
        run.check()?;
        run.store.get(&run.entry(&place(row, column)))
    };
    let size = (layout.width(legend.columns.len()), layout.height(legend.rows.len()));
    write_png_bands(path, size, &text, &mut |on_band| sheet::draw(&legend, &layout, &mut cell, on_band))
}

fn legend(plan: &GridPlan, part: &Part) -> Legend {
    let labels =
        |axes: &[usize], range: &std::ops::Range<usize>| range.clone().map(|n| plan.label(axes, n)).collect();
    Legend {
        title: plan.label(&plan.sheets, part.sheet).replace('\n', ", "),
        columns: labels(&plan.columns, &part.columns),
        rows: labels(&plan.rows, &part.rows),
    }
}

/// The size that holds every cell.
fn largest(plan: &GridPlan) -> Size {
    let sizes = |axis: &Axis| {
        let size = |change: &Change| if let Change::Size(size) = change { Some(*size) } else { None };
        axis.values.iter().filter_map(|value| size(&value.change)).collect::<Vec<_>>()
    };
    let sizes = plan.axis_of(AxisType::Size).map_or(vec![plan.settings.size], |axis| sizes(&plan.axes[axis]));
    let most = |side: fn(&Size) -> u32| sizes.iter().map(side).max().unwrap_or(1);
    Size { width: most(|size| size.width), height: most(|size| size.height) }
}

/// The files, and how large the cells are shown in them.
fn parts(plan: &GridPlan) -> (Vec<Part>, f64) {
    let (columns, rows) = (plan.count(&plan.columns), plan.count(&plan.rows));
    let scale = match plan.sheet.too_large {
        TooLarge::Split => 1.0,
        TooLarge::Scale => scale(plan, columns, rows),
    };
    let mut parts = Vec::new();
    for sheet in 0..plan.count(&plan.sheets) {
        let whole = Part { sheet, columns: 0..columns, rows: 0..rows };
        let legend = legend(plan, &whole);
        let layout = Layout::new(&legend, largest(plan), scale);
        let (columns_each, rows_each) = split(&layout, columns, rows, &plan.sheet);
        for top in (0..rows).step_by(rows_each) {
            for left in (0..columns).step_by(columns_each) {
                let (right, bottom) = ((left + columns_each).min(columns), (top + rows_each).min(rows));
                parts.push(Part { sheet, columns: left..right, rows: top..bottom });
            }
        }
    }
    (parts, scale)
}

/// How many columns and rows go on a file: all columns as long as they fit, then as many rows as fit.
fn split(layout: &Layout, columns: usize, rows: usize, limits: &SheetConfig) -> (usize, usize) {
    let columns = columns.min(layout.columns_in(limits.max_side_px));
    let pixels = (limits.max_megapixels * 1e6) as u64;
    let mut each = columns;
    // A single row may have too many pixels already.
    while each > 1 && u64::from(layout.width(each)) * u64::from(layout.height(1)) > pixels {
        each -= 1;
    }
    let height = (pixels / u64::from(layout.width(each))).min(limits.max_side_px.into());
    (each, rows.min(layout.rows_in(u32::try_from(height).unwrap_or(u32::MAX))))
}

/// Cells are shown no smaller than this, in pixels; what then still is too large is split.
const SMALLEST_PX: f64 = 48.0;

/// The largest scale at which every sheet is within its limits.
fn scale(plan: &GridPlan, columns: usize, rows: usize) -> f64 {
    let size = largest(plan);
    let least = (SMALLEST_PX / f64::from(size.width.max(size.height))).min(1.0);
    let fits = |scale: f64| {
        (0..plan.count(&plan.sheets)).all(|sheet| {
            let legend = legend(plan, &Part { sheet, columns: 0..columns, rows: 0..rows });
            let layout = Layout::new(&legend, size, scale);
            let (width, height) = (layout.width(columns), layout.height(rows));
            width.max(height) <= plan.sheet.max_side_px
                && f64::from(width) * f64::from(height) <= plan.sheet.max_megapixels * 1e6
        })
    };
    if fits(1.0) {
        return 1.0;
    }
    let (mut small, mut large) = (least, 1.0);
    for _ in 0..12 {
        let middle = f64::midpoint(small, large);
        if fits(middle) { small = middle } else { large = middle }
    }
    small
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::{GridCheckpoint, GridConfig, GridPrompt, Values};

    fn plan(prompts: usize, more: impl FnOnce(&mut GridConfig)) -> GridPlan {
        let mut config: GridConfig =
            vodka_stage::parse_toml("size = \"512x512\"", std::path::Path::new("g.toml")).unwrap();
        config.checkpoints = (0..4).map(|i| GridCheckpoint::new(None, format!("m{i}.safetensors"))).collect();
        config.prompts = (0..prompts).map(|i| GridPrompt::new(format!("prompt {i}"), "")).collect();
        more(&mut config);
        config.plan().unwrap()
    }

    /// Every cell of every sheet is on one file, and no file is larger than it may be.
    fn check(plan: &GridPlan) -> (usize, f64) {
        let (parts, scale) = parts(plan);
        let mut cells = 0;
        for part in &parts {
            cells += part.columns.len() * part.rows.len();
            let legend = legend(plan, part);
            let layout = Layout::new(&legend, largest(plan), scale);
            let (width, height) = (layout.width(part.columns.len()), layout.height(part.rows.len()));
            assert!(width.max(height) <= plan.sheet.max_side_px, "{width}x{height}");
            assert!(
                f64::from(width) * f64::from(height) <= plan.sheet.max_megapixels * 1e6,
                "{width}x{height}"
            );
        }
        assert_eq!(cells, plan.cells());
        (parts.len(), scale)
    }

    #[test]
    fn the_suite_of_v3_is_one_sheet() {
        assert_eq!(check(&plan(20, |_| {})), (1, 1.0));
    }

    #[test]
    fn what_is_too_large_is_split_or_scaled() {
        let small = |too_large| SheetConfig { max_side_px: 3000, max_megapixels: 5.0, too_large };
        assert_eq!(check(&plan(20, |config| config.sheet = small(TooLarge::Split))), (7, 1.0));
        let (files, scale) = check(&plan(20, |config| config.sheet = small(TooLarge::Scale)));
        assert!(files == 1 && scale > 0.2 && scale < 0.5, "{files} {scale}");
        // At 48 px it is split after all.
        let tiny = SheetConfig { max_side_px: 300, max_megapixels: 0.1, too_large: TooLarge::Scale };
        assert!(check(&plan(20, |config| config.sheet = tiny)).0 > 1);
        let narrow = SheetConfig { max_side_px: 2000, max_megapixels: 89.0, too_large: TooLarge::Split };
        assert_eq!(check(&plan(6, |config| config.sheet = narrow)).0, 4);
    }

    #[test]
    fn axes_that_are_elsewhere_make_sheets() {
        let axis = |kind: &str, values: &str| {
            let axis = crate::grid::GridAxis::new(kind.parse().unwrap(), Values::split(values).unwrap());
            vodka_stage::Spanned::new(0..0, axis)
        };
        let plan = plan(2, |config| config.axes = vec![axis("cfg", "3, 7"), axis("size", "64x128, 256x64")]);
        assert_eq!(
            (plan.columns.clone(), plan.rows.clone(), plan.sheets.clone()),
            (vec![0], vec![1, 2], vec![3, 4])
        );
        assert_eq!(check(&plan).0, 4);
        assert_eq!(largest(&plan), Size { width: 256, height: 128 });
        let (parts, _) = parts(&plan);
        assert_eq!(legend(&plan, &parts[1]).title, "CFG Scale 3, 256x64");
        assert_eq!(legend(&plan, &parts[0]).rows, ["prompt 0", "prompt 1"]);
        for name in ["grid.png", "grid-1.png", "grid-20.png"] {
            assert!(is_sheet(name), "{name}");
        }
        for name in ["grid-01.png", "grid-x.png", "grid.jpg", "mine.png"] {
            assert!(!is_sheet(name), "{name}");
        }
    }
}
