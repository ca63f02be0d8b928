//! The learning-rate finder: a short run with a rate that grows, whose weights are thrown away.

use std::sync::Arc;

use vodka_stage::{FolderLock, Interrupt, Outcome, create_dir, write_atomic};

use super::{Run, beside::Beside};
use crate::{
    Error, FinderReport, FinderSettings, Result, TrainEvent, TrainPlan, Tried,
    data::Example,
    epoch::batches,
    finder::{self, diverged, suggestion},
    watch::{Phase, mean},
};

/// The folder in the output folder.
const FOLDER: &str = "find-lr";
/// How many pictures the loss is measured on.
const PROBED: usize = 16;

/// Tries learning rates as planned, from the smallest to where the loss goes wild. In the folder `find-lr` of the output
/// folder it leaves `find-lr.csv`, `find-lr.svg` and `find-lr.png`, beside the log of the sweep; checkpoints it neither
/// writes nor touches.
///
/// # Errors
/// As [`run`](super::run); a loss that is not finite ends the sweep and is no error.
pub fn find_lr(
    plan: &TrainPlan,
    settings: &FinderSettings,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(TrainEvent),
) -> Result<FinderReport> {
    settings.check()?;
    let plan = TrainPlan {
        output: plan.output.join(FOLDER),
        start_over: true,
        logdir: None,
        sample_prompts: None,
        // Each step is looked at before the next.
        read_every_n_steps: 1,
        ..plan.clone()
    };
    let key = plan.key()?;
    create_dir(&plan.output)?;
    let _lock = FolderLock::take(&plan.output)?;
    let _beside = Beside::enter(&plan, &key)?;
    let [table, graph, svg] = ["csv", "png", "svg"].map(|form| plan.output.join(format!("find-lr.{form}")));
    let mut report = FinderReport {
        outcome: Outcome::Interrupted,
        first: f32::NAN,
        tried: Vec::new(),
        suggestion: None,
        limit: None,
        diverged: false,
        table,
        graph,
    };
    let Some(mut run) = Run::prepared(&plan, &key, interrupt, on_event)? else { return Ok(report) };
    if run.sweep(settings, &mut report, interrupt, on_event)? {
        report.outcome = if run.dataset.skipped.is_empty() { Outcome::Done } else { Outcome::Skipped };
    }
    let found = suggestion(report.first, &report.tried);
    (report.suggestion, report.limit) = (found.map(|(lr, _)| lr), found.map(|(_, limit)| limit));
    let plot = finder::graph(&plan.settings.name, report.first, &report.tried);
    write_atomic(&report.table, finder::table(&report.tried))?;
    write_atomic(&svg, plot.svg())?;
    write_atomic(&report.graph, plot.png())?;
    Ok(report)
}

impl Run<'_> {
    /// Tries the rates; `false` when interrupted.
    fn sweep(
        &mut self,
        settings: &FinderSettings,
        report: &mut FinderReport,
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<bool> {
        let together = self.plan.settings.grad_accum;
        let steps = settings.steps * together as u64;
        self.watch.meter.start(steps);
        on_event(TrainEvent::Started { steps, done: 0, steps_per_epoch: self.epochs.end(1) });
        let examples = &self.dataset.examples;
        let probed = &Arc::new(examples[..examples.len().min(PROBED)].to_vec());
        report.first = self.probe(probed)?;
        let proportion = self.rates.proportion();
        for epoch in (1..=self.plan.settings.max_epochs).cycle() {
            for group in batches(&self.entries, &self.epoch_settings, epoch).chunks(together) {
                let done = report.tried.len() as u64;
                if done == settings.steps || report.diverged {
                    return Ok(true);
                }
                if interrupt.is_raised() {
                    return Ok(false);
                }
                let lr = settings.rate(done);
                self.rates.fixed = Some([lr, lr * proportion]);
                let loss = match self.optimizer_step(epoch, group, on_event) {
                    Ok(()) => self.probe(probed)?,
                    Err(Error::NotFinite { .. }) => f32::NAN,
                    Err(error) => return Err(error),
                };
                report.tried.push(Tried { lr, loss });
                report.diverged = diverged(report.first, &report.tried);
            }
        }
        Ok(true)
    }

    /// The loss of the same pictures with the same noise.
    fn probe(&mut self, probed: &Arc<Vec<Example>>) -> Result<f32> {
        self.watch.meter.enter(Phase::Validation);
        let losses = tch::no_grad(|| self.validation_losses("probe", probed, self.plan.settings.seed))?;
        Ok(mean(&losses))
    }
}
