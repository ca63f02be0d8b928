//! `losses.csv`, one line a batch, and `validation.csv`.

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use vodka_stage::write_atomic;

use crate::{Error, Result, epoch::Epochs, state::Progress};

/// A losses file that is being written.
#[derive(Debug)]
pub(crate) struct LossesFile {
    path: PathBuf,
    file: File,
}

/// One line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    /// From 1.
    pub epoch: u64,
    /// Batches so far over all epochs, from 1.
    pub step: u64,
    /// The mean over the batch's pictures.
    pub loss: f32,
    /// The learning rates of UNet and text encoder.
    pub rates: [f64; 2],
}

impl LossesFile {
    /// The path of the file in an output folder.
    pub fn path_in(output: &Path) -> PathBuf {
        output.join("losses.csv")
    }

    /// Starts the file with the lines of the steps that are done, whatever it held before.
    pub fn start(output: &Path, done: impl Iterator<Item = Row>) -> Result<Self> {
        let path = Self::path_in(output);
        let mut text = "epoch,step,loss,lr_unet,lr_text_encoder\n".to_owned();
        done.for_each(|row| text += &line(row));
        write_atomic(&path, text)?;
        let opened = OpenOptions::new().append(true).open(&path);
        let file = opened.map_err(|source| vodka_stage::Error::Write { path: path.clone(), source })?;
        Ok(Self { path, file })
    }

    /// Adds a line.
    pub fn append(&mut self, row: Row) -> Result<()> {
        let written = self.file.write_all(line(row).as_bytes());
        Ok(written.map_err(|source| vodka_stage::Error::Write { path: self.path.clone(), source })?)
    }

    /// Makes the lines survive a power cut.
    pub fn sync(&self) -> Result<()> {
        let synced = self.file.sync_all();
        synced.map_err(|source| Error::Stage(vodka_stage::Error::Write { path: self.path.clone(), source }))
    }
}

fn line(row: Row) -> String {
    let [unet, text_encoder] = row.rates;
    let mut line = String::new();
    let _ = writeln!(line, "{},{},{},{unet:e},{text_encoder:e}", row.epoch, row.step, row.loss);
    line
}

/// A validation's line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ValidationRow {
    /// Epochs that were done.
    pub epoch: u64,
    /// Batches that were done.
    pub step: u64,
    /// The name of the set.
    pub set: String,
    /// The mean over its pictures.
    pub loss: f32,
}

/// `validation.csv` while it is being written: one line a set and validation.
#[derive(Debug)]
pub(crate) struct Validations {
    path: PathBuf,
    file: File,
}

impl Validations {
    /// The path of the file in an output folder.
    pub fn path_in(output: &Path) -> PathBuf {
        output.join("validation.csv")
    }

    /// Starts the file with what is done; there is none without sets.
    pub fn start<E>(
        output: &Path,
        sets: &[(String, Arc<Vec<E>>)],
        progress: &Progress,
        epochs: &Epochs,
    ) -> Result<Option<Self>> {
        let names: Vec<_> = sets.iter().filter(|(_, set)| !set.is_empty()).map(|(name, _)| name).collect();
        if names.is_empty() {
            return Ok(None);
        }
        let path = Self::path_in(output);
        let mut text = "epoch,step,set,loss\n".to_owned();
        for (&(step, loss), name) in progress.validations.iter().zip(names.iter().cycle()) {
            let set = (*name).clone();
            text += &validation_line(&ValidationRow { epoch: epochs.done(step), step, set, loss });
        }
        write_atomic(&path, text)?;
        let opened = OpenOptions::new().append(true).open(&path);
        let file = opened.map_err(|source| vodka_stage::Error::Write { path: path.clone(), source })?;
        Ok(Some(Self { path, file }))
    }

    /// Adds a line.
    pub fn append(&mut self, row: &ValidationRow) -> Result<()> {
        let written = self.file.write_all(validation_line(row).as_bytes());
        Ok(written.map_err(|source| vodka_stage::Error::Write { path: self.path.clone(), source })?)
    }

    /// Makes the lines survive a power cut.
    pub fn sync(&self) -> Result<()> {
        let synced = self.file.sync_all();
        synced.map_err(|source| Error::Stage(vodka_stage::Error::Write { path: self.path.clone(), source }))
    }
}

fn validation_line(row: &ValidationRow) -> String {
    format!("{},{},{},{}\n", row.epoch, row.step, csv_cell(&row.set), row.loss)
}

/// A text as a cell of a CSV file.
pub(crate) fn csv_cell(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_file_is_the_undisturbed_one() {
        let dir = tempfile::tempdir().unwrap();
        let row = |step| Row { epoch: 1, step, loss: 0.1 * step as f32, rates: [1.5e-7, 0.0] };
        let read = || std::fs::read_to_string(LossesFile::path_in(dir.path())).unwrap();

        let mut file = LossesFile::start(dir.path(), std::iter::empty()).unwrap();
        (1..=5).for_each(|step| file.append(row(step)).unwrap());
        let undisturbed = read();
        assert!(undisturbed.starts_with("epoch,step,loss,lr_unet,lr_text_encoder\n1,1,0.1,1.5e-7,0e0\n"));

        let mut file = LossesFile::start(dir.path(), (1..=2).map(row)).unwrap();
        (3..=5).for_each(|step| file.append(row(step)).unwrap());
        file.sync().unwrap();
        assert_eq!(read(), undisturbed);
    }
}
