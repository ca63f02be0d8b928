//! One way to plan and run every stage.

use std::{error, path::PathBuf};

use serde::Serialize;
use vodka_captions::{
    CaptionSource,
    caption::{self, CaptionConfig, CaptionEvent, CaptionPlan, Style},
    clean::{self, CleanConfig, CleanEvent, CleanPlan},
    filter::{self, Action, FilterConfig, FilterEvent, FilterPlan},
    mix::{self, MixConfig, MixEvent, MixPlan},
    query::Dataset,
    recaption::{self, RecaptionConfig, RecaptionEvent, RecaptionPlan},
    report::{self, GalleryConfig, ReportConfig, ReportPlan},
    select::{self, SelectConfig, SelectPlan},
};
use vodka_merger::{MergeEvent, MergePlan};
use vodka_sampler::{GridCheckpoint, GridConfig, GridEvent, GridLayout, GridPlan, grid};
use vodka_stage::{Interrupt, Report, RunKey};
use vodka_tagger::{TagConfig, TagEvent, TagPlan};
use vodka_trainer::{Flaw, TrainConfig, TrainEvent, TrainPlan};

use crate::{
    ChooseConfig, ChoosePlan, Error, Job, JobReport, JudgePlan, Result, Workflow, choose, judge,
    probe::{self, ProbeConfig, ProbeEvent, ProbePlan},
    recipe::Captions,
};

type Cause = Box<dyn error::Error + Send + Sync>;

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Units of work that are through, and all of them.
    Units(u64, u64),
    /// Units of work that are through.
    Done(u64),
    /// Something worth a line of its own.
    Note(String),
}

/// The checked settings of a job.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is the plan of the stage of that name")]
pub enum Plan {
    Tag(TagPlan),
    Clean(CleanPlan),
    Filter(Box<FilterPlan>),
    Select(SelectPlan),
    Report(ReportPlan),
    Recaption(Box<RecaptionPlan>),
    Mix(MixPlan),
    Caption(Box<CaptionPlan>),
    Train(Box<TrainPlan>),
    Merge(MergePlan),
    Grid(Box<GridPlan>),
    Judge(JudgePlan),
    Probe(Box<ProbePlan>),
    Choose(ChoosePlan),
}

impl Workflow {
    /// The checked settings of every job, before any has run: what is wrong is told at once and not after a night's
    /// training. A trained model has a name that stands for its file as long as there is none.
    pub fn check(&self) -> Result<Vec<(Job, Plan)>> {
        self.check_models()?;
        let model = |name: &str| match self.model(name) {
            Err(Error::NotTrained { .. } | Error::NotChosen { .. }) => {
                Ok(self.output().join("train").join(format!("{name}.safetensors")))
            }
            found => found,
        };
        self.jobs().iter().map(|job| Ok((job.clone(), self.plan_with(job, &model)?))).collect()
    }

    /// The checked settings of a job whose needs are met.
    pub(crate) fn plan(&self, job: &Job) -> Result<Plan> {
        self.plan_with(job, &|name| self.model(name))
    }

    fn plan_with(&self, job: &Job, model: &dyn Fn(&str) -> Result<PathBuf>) -> Result<Plan> {
        let plan: Result<Plan, Cause> = match job {
            Job::Tag => self.tag().plan().map(Plan::Tag).map_err(Into::into),
            Job::Clean => self.clean().plan().map(Plan::Clean).map_err(Into::into),
            Job::Select => self.select().plan().map(Plan::Select).map_err(Into::into),
            Job::Report => self.report().plan().map(Plan::Report).map_err(Into::into),
            Job::Filter => self.filter_config().plan().map(|p| Plan::Filter(Box::new(p))).map_err(Into::into),
            Job::Recaption => {
                self.recaption().plan().map(|plan| Plan::Recaption(Box::new(plan))).map_err(Into::into)
            }
            Job::Mix => self.mix().plan().map(Plan::Mix).map_err(Into::into),
            Job::Caption => self.caption().plan().map(|p| Plan::Caption(Box::new(p))).map_err(Into::into),
            Job::Train(name) => {
                self.train(name, model)?.plan().map(|plan| Plan::Train(Box::new(plan))).map_err(Into::into)
            }
            Job::Merge(name) => self.merge(name, model)?.map(Plan::Merge).map_err(Into::into),
            Job::Grid(name) => {
                self.grid(name, model)?.plan().map(|plan| Plan::Grid(Box::new(plan))).map_err(Into::into)
            }
            Job::Judge(name) => Ok(Plan::Judge(self.judge(name))),
            Job::Choose(name) => Ok(Plan::Choose(self.choose(name).plan()?)),
            // Its errors say themselves which probe they are about.
            Job::Probe(name) => Ok(Plan::Probe(Box::new(self.probe(name, model)?.plan()?))),
        };
        plan.map_err(|source| Error::Settings { job: job.to_string(), source })
    }

    fn tag(&self) -> TagConfig {
        let images = self.recipe.workflow.images.clone();
        self.recipe.tag.config(images, self.output_of(&Job::Tag), &self.runtime_dir)
    }

    fn clean(&self) -> CleanConfig {
        let rules = self.recipe.clean.as_ref().map(|clean| clean.rules.clone()).unwrap_or_default();
        CleanConfig { tags: self.output_of(&Job::Tag), rules, output: self.output_of(&Job::Clean) }
    }

    fn filter_config(&self) -> FilterConfig {
        let filter = self.recipe.filter.clone();
        let (query, method) = filter.map(|filter| (filter.query, filter.method)).unzip();
        FilterConfig {
            dataset: Dataset {
                images: Some(self.recipe.workflow.images.clone()),
                tags: Some(self.output_of(&self.table())),
                labels: Some(self.select().labels),
                min_score: self.recipe.caption.min_score,
                ..Dataset::default()
            },
            query,
            query_file: None,
            action: Action::Place {
                output: self.output_of(&Job::Filter),
                method: method.unwrap_or_default(),
            },
            explain: false,
        }
    }

    fn recaption(&self) -> RecaptionConfig {
        let recaption = self.recipe.recaption_of();
        let (captions, model) = (recaption.captions.clone(), recaption.model.clone());
        let output = self.output_of(&Job::Recaption);
        RecaptionConfig { model, ..RecaptionConfig::from_file(self.pictures(), captions, output) }
    }

    fn mix(&self) -> MixConfig {
        let recaption = self.recipe.recaption_of();
        MixConfig {
            captions: self.output_of(&Job::Recaption),
            share: recaption.share,
            seed: recaption.seed,
            output: self.output_of(&Job::Mix),
        }
    }

    fn select(&self) -> SelectConfig {
        let recipe = &self.recipe.select;
        let of_model = || self.recipe.tag.model.join("selected_tags.csv");
        SelectConfig {
            labels: recipe.labels.clone().unwrap_or_else(of_model),
            coverage: recipe.coverage,
            list: recipe.list.clone(),
            all_head: recipe.all_head,
            include: recipe.include.clone(),
            exclude: recipe.exclude.clone(),
            output: self.output_of(&Job::Select),
        }
    }

    fn report(&self) -> ReportConfig {
        ReportConfig {
            tags: self.output_of(&self.table()),
            selection: self.output_of(&Job::Select),
            images: self.recipe.workflow.images.clone(),
            output: self.output_of(&Job::Report),
            min_score: self.recipe.caption.min_score,
            groups: self.recipe.report.clone().unwrap_or_default().groups,
            pictures: Some(self.output_of(&Job::Tag).with_extension("pictures.parquet"))
                .filter(|path| path.is_file()),
            labels: None,
            gallery: GalleryConfig::default(),
        }
    }

    fn caption(&self) -> CaptionConfig {
        let recipe = &self.recipe.caption;
        CaptionConfig {
            tags: self.output_of(&self.table()),
            selection: self.output_of(&Job::Select),
            images: self.pictures(),
            output: Some(self.output_of(&Job::Caption)),
            in_place: false,
            max_tags: recipe.max_tags,
            min_score: recipe.min_score,
            position: recipe.position,
            missing: recipe.missing,
            source: CaptionSource { folder: self.untagged(), ..CaptionSource::default() },
            format: None,
            style: Style::default(),
            without: Vec::new(),
        }
    }

    fn train(&self, name: &str, model: &dyn Fn(&str) -> Result<PathBuf>) -> Result<TrainConfig> {
        let recipe = self.recipe.train_of(name);
        let caption_root = match recipe.captions {
            Captions::Tagged => Some(self.output_of(&Job::Caption)),
            Captions::Original => self.untagged(),
        };
        Ok(TrainConfig {
            data_root: self.pictures().into(),
            caption_root,
            resume_ckpt: Some(model(&recipe.base)?),
            output: Some(self.output_of(&Job::Train(name.to_owned()))),
            project_name: Some(recipe.name.clone()),
            device: Some(self.recipe.workflow.device.clone()),
            optimizer: Some(recipe.optimizer.clone()),
            runtime_dir: self.runtime_dir.clone(),
            // The stages before this one have told of them.
            allow: vec![Flaw::Unreadable],
            ..recipe.config.clone()
        })
    }

    fn merge(
        &self,
        name: &str,
        model: &dyn Fn(&str) -> Result<PathBuf>,
    ) -> Result<vodka_merger::Result<MergePlan>> {
        let merge = self.recipe.merge_of(name);
        let files = merge.models().map(|name| Ok((name.clone(), model(name)?))).collect::<Result<_>>()?;
        let plan = merge.plan(&files, self.output_of(&Job::Merge(name.to_owned())));
        Ok(plan.map(|plan| MergePlan { hash_cache: self.hash_cache.clone(), ..plan }))
    }

    fn grid(&self, name: &str, model: &dyn Fn(&str) -> Result<PathBuf>) -> Result<GridConfig> {
        let recipe = self.recipe.grid_of(name);
        let column = |name: &String| Ok(GridCheckpoint::new(Some(name.clone()), model(name)?));
        Ok(GridConfig {
            checkpoints: recipe.models.iter().map(column).collect::<Result<_>>()?,
            prompts: recipe.prompts.clone(),
            seeds: Some(recipe.seeds.iter().collect()),
            axes: recipe.axes.clone(),
            layout: GridLayout::default(),
            sheet: grid::SheetConfig::default(),
            judge: grid::JudgeConfig::default(),
            steps: recipe.steps,
            cfg: recipe.cfg,
            size: recipe.size,
            sampler: recipe.sampler,
            schedule: recipe.schedule,
            clip_skip: recipe.clip_skip,
            hires: recipe.hires.clone(),
            control: Vec::new(),
            device: self.recipe.workflow.device.clone(),
            output: self.output_of(&Job::Grid(name.to_owned())),
            store: None,
            prune: true,
            hash_cache: self.hash_cache.clone(),
            vae: None,
            precision: recipe.precision,
            vae_precision: recipe.vae_precision,
            lora_dir: None,
            embedding_dir: None,
            runtime_dir: self.runtime_dir.clone(),
        })
    }
}

impl Workflow {
    fn judge(&self, name: &str) -> JudgePlan {
        let grid = self.output_of(&Job::Grid(name.to_owned()));
        let output = self.output_of(&Job::Judge(name.to_owned()));
        let tagger = self.tag();
        let (images, labels) = (grid.join("cells"), self.select().labels);
        let tagger = TagConfig { images, output: output.join("tags.csv"), ..tagger };
        JudgePlan { tagger, cells: grid.join("cells.csv"), labels, output }
    }
}

impl Workflow {
    fn probe(&self, name: &str, model: &dyn Fn(&str) -> Result<PathBuf>) -> Result<ProbeConfig> {
        let probe = self.recipe.probe_of(name).clone();
        let model = |name: &String| Ok((name.clone(), model(name)?));
        let images = self.recipe.workflow.images.clone();
        let captions = [images, self.output_of(&Job::Caption)].into_iter().chain(self.untagged());
        Ok(ProbeConfig {
            models: probe.models.iter().map(model).collect::<Result<_>>()?,
            tagger: self.tag(),
            labels: self.select().labels,
            selection: Some(self.output_of(&Job::Select)),
            captions: captions.filter(|folder| folder.is_dir()).collect(),
            data: Some(self.pictures()),
            device: self.recipe.workflow.device.clone(),
            output: self.output_of(&Job::Probe(name.to_owned())),
            hash_cache: self.hash_cache.clone(),
            runtime_dir: self.runtime_dir.clone(),
            probe,
        })
    }
}

impl Workflow {
    fn choose(&self, name: &str) -> ChooseConfig {
        let choose = self.recipe.choose_of(name).clone();
        let probe = self.recipe.probe_of(&choose.probe);
        let validation =
            probe.models.iter().filter_map(|model| Some((model.clone(), self.validation(model)?)));
        ChooseConfig {
            validation: validation.collect(),
            probe: self.output_of(&Job::Probe(choose.probe.clone())),
            output: self.output_of(&Job::Choose(name.to_owned())),
            choose,
        }
    }

    /// Where the validation loss of a trained model stands.
    fn validation(&self, model: &str) -> Option<choose::Validation> {
        let (training, epoch) = self.recipe.trained_at(model)?;
        let table = self.output_of(&Job::Train(training.to_owned())).join("validation.csv");
        Some(choose::Validation { table, epoch })
    }
}

impl Plan {
    /// What the outputs depend on.
    pub(crate) fn key(&self) -> Result<RunKey, Cause> {
        Ok(match self {
            Self::Tag(plan) => plan.key()?,
            Self::Clean(plan) => plan.key()?,
            Self::Filter(plan) => plan.key()?,
            Self::Recaption(plan) => plan.key()?,
            Self::Mix(plan) => plan.key()?,
            Self::Select(plan) => plan.key()?,
            Self::Report(plan) => plan.key()?,
            Self::Caption(plan) => plan.key()?,
            Self::Train(plan) => plan.key()?,
            // Each merge of a recipe has one output.
            Self::Merge(plan) => plan.keys()?.swap_remove(0),
            Self::Grid(plan) => plan.key()?,
            Self::Judge(plan) => plan.key()?,
            Self::Probe(plan) => plan.key()?,
            Self::Choose(plan) => plan.key()?,
        })
    }

    /// Runs the stage.
    pub(crate) fn run(
        &self,
        job: &Job,
        interrupt: &Interrupt,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<JobReport> {
        let mut tell = |progress: Option<Progress>| progress.into_iter().for_each(&mut *on_progress);
        let result = match self {
            Self::Tag(plan) => {
                through(job, vodka_tagger::run(plan, interrupt, &mut |event| tell(of_tag(event))))
            }
            Self::Clean(plan) => {
                through(job, clean::run(plan, interrupt, &mut |event| tell(Some(of_clean(event)))))
            }
            Self::Filter(plan) => {
                through(job, filter::run(plan, interrupt, &mut |event| tell(of_filter(&event))))
            }
            Self::Recaption(plan) => {
                through(job, recaption::run(plan, interrupt, &mut |event| tell(Some(of_recaption(event)))))
            }
            Self::Mix(plan) => {
                through(job, mix::run(plan, interrupt, &mut |event| tell(Some(of_mix(&event)))))
            }
            Self::Select(plan) => through(job, select::run(plan, interrupt, &mut |_| {})),
            Self::Report(plan) => through(job, report::run(plan, interrupt, &mut |_| {})),
            Self::Caption(plan) => {
                through(job, caption::run(plan, interrupt, &mut |event| tell(of_caption(event))))
            }
            Self::Train(plan) => {
                through(job, vodka_trainer::run(plan, interrupt, &mut |event| tell(of_train(event))))
            }
            Self::Merge(plan) => {
                through(job, vodka_merger::run(plan, interrupt, &mut |event| tell(of_merge(event))))
            }
            Self::Grid(plan) => through(job, grid::run(plan, interrupt, &mut |event| tell(of_grid(event)))),
            Self::Judge(plan) => through(job, judge::run(plan, interrupt, &mut |event| tell(of_tag(event)))),
            Self::Choose(plan) => through(job, choose::run(plan)),
            Self::Probe(plan) => {
                through(job, probe::run(plan, interrupt, &mut |event| tell(of_probe(event))))
            }
        };
        result.map_err(|source| Error::Stage { job: job.to_string(), source })
    }
}

/// A stage's result in the form that all share.
fn through<R: Report, E: Into<Cause>>(job: &Job, result: Result<R, E>) -> Result<JobReport, Cause> {
    let report = result.map_err(Into::into)?;
    Ok(JobReport {
        job: job.clone(),
        outcome: report.outcome(),
        text: report.to_string(),
        data: serde_json::to_value(&report).expect("reports are plain data"),
    })
}

fn of_tag(event: TagEvent) -> Option<Progress> {
    Some(match event {
        TagEvent::Started { total, resumed, .. } => Progress::Units(resumed as u64, total as u64),
        TagEvent::Progress { done, .. } => Progress::Done(done as u64),
        TagEvent::Skipped { image, reason } => Progress::Note(format!("skipped {image}: {reason}")),
    })
}

fn of_clean(event: CleanEvent) -> Progress {
    match event {
        CleanEvent::Started { images } => Progress::Units(0, images),
        CleanEvent::Cleaned { images } => Progress::Done(images),
    }
}

fn of_filter(event: &FilterEvent) -> Option<Progress> {
    match event {
        FilterEvent::Fits { .. } => None,
        FilterEvent::Placing { files } => Some(Progress::Units(0, *files)),
        FilterEvent::Placed { files } => Some(Progress::Done(*files)),
    }
}

fn of_recaption(event: RecaptionEvent) -> Progress {
    match event {
        RecaptionEvent::Started { images, answered } => Progress::Units(answered, images),
        RecaptionEvent::Answered { images } => Progress::Done(images),
        RecaptionEvent::Skipped(skipped) => {
            Progress::Note(format!("skipped {}: {}", skipped.image, skipped.reason))
        }
    }
}

fn of_mix(event: &MixEvent) -> Progress {
    match event {
        MixEvent::Started { images } => Progress::Units(0, *images),
        MixEvent::Wrote { images } => Progress::Done(*images),
    }
}

fn of_caption(event: CaptionEvent) -> Option<Progress> {
    Some(match event {
        CaptionEvent::Started { images } => Progress::Units(0, images),
        CaptionEvent::Captioned { images } => Progress::Done(images),
        CaptionEvent::Skipped(skipped) => {
            Progress::Note(format!("skipped {}: {}", skipped.image, skipped.reason))
        }
    })
}

fn of_train(event: TrainEvent) -> Option<Progress> {
    match event {
        TrainEvent::Audited { done, total } | TrainEvent::Loaded { done, total } => {
            Some(Progress::Units(done as u64, total as u64))
        }
        TrainEvent::Notice(notice) => Some(Progress::Note(notice.to_string())),
        TrainEvent::Started { steps, done, .. } => Some(Progress::Units(done, steps)),
        TrainEvent::Step { step, .. } => Some(Progress::Done(step)),
        TrainEvent::Saved { path } => Some(Progress::Note(format!("wrote {}", path.display()))),
        TrainEvent::Skipped(skipped) => {
            Some(Progress::Note(format!("skipped {}: {}", skipped.image, skipped.reason)))
        }
        _ => None,
    }
}

fn of_merge(event: MergeEvent) -> Option<Progress> {
    Some(match event {
        MergeEvent::Started { bytes } => Progress::Units(0, bytes),
        MergeEvent::Merged { bytes } => Progress::Done(bytes),
    })
}

/// How a probe goes on: pictures, then the tagger.
pub fn of_probe(event: ProbeEvent) -> Option<Progress> {
    match event {
        ProbeEvent::Pictures(done, total) => Some(Progress::Units(done as u64, total as u64)),
        ProbeEvent::Tag(event) => of_tag(event),
        ProbeEvent::WithoutGraphs(reason) => Some(Progress::Note(format!("without CUDA graphs: {reason}"))),
        ProbeEvent::Failed(told) => Some(Progress::Note(format!("not made: {told}"))),
    }
}

fn of_grid(event: GridEvent<'_>) -> Option<Progress> {
    match event {
        GridEvent::Cell { done, total } => Some(Progress::Units(done as u64, total as u64)),
        GridEvent::Failed(cell) => {
            Some(Progress::Note(format!("cell {} ({}): {}", cell.cell, cell.labels.join("; "), cell.reason)))
        }
        GridEvent::WithoutGraphs { reason } => Some(Progress::Note(format!("without CUDA graphs: {reason}"))),
        GridEvent::Loading { .. } | GridEvent::Step { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use vodka_merger::{Graph, VaePolicy};
    use vodka_sampler::Precision;

    use super::*;
    use crate::TEMPLATE;

    /// The template with other mixes, in a folder with a recipe of mixes.
    fn open(folder: &Path, merges: &str) -> Result<Workflow> {
        let (before, _) = TEMPLATE.split_once("# The three mixes of V3.").unwrap();
        fs::write(folder.join("recipe.toml"), format!("{before}{merges}")).unwrap();
        let mixes = r#"
            [parents]
            v3 = { path = "v3.safetensors", sha256 = "0000000000000000000000000000000000000000000000000000000000000000" }
            other = "../other.safetensors"
            lost = "lost.safetensors"
            [steps.half]
            method = "weighted-sum"
            a = "v3"
            b = "other"
            multiplier = 0.5
            [steps.whole]
            method = "weighted-sum"
            a = "half"
            b = "lost"
            multiplier = 0.5
            [[outputs]]
            step = "half"
            file = "half.safetensors"
            [[outputs]]
            step = "whole"
            file = "whole.safetensors"
        "#;
        fs::create_dir_all(folder.join("mixes")).unwrap();
        fs::write(folder.join("mixes/mixes.toml"), mixes).unwrap();
        Workflow::open(&folder.join("recipe.toml"), PathBuf::new())
    }

    fn plan(workflow: &Workflow, name: &str) -> MergePlan {
        let model = |name: &str| Ok(PathBuf::from(format!("{name}.safetensors")));
        workflow.merge(name, &model).unwrap().unwrap()
    }

    fn parents(graph: &Graph) -> Vec<(&str, String)> {
        graph.parents.iter().map(|parent| (parent.name.as_str(), parent.path.display().to_string())).collect()
    }

    #[test]
    fn a_grid_is_made_in_as_many_bits_as_its_keys_say() {
        let dir = tempfile::tempdir().unwrap();
        let model = |name: &str| Ok(PathBuf::from(format!("{name}.safetensors")));
        let keys = "[[grid]]\nname = \"half\"\nmodels = [\"v3\"]\nprompts = [{ prompt = \"x\" }]\n\
                    precision = \"fp16\"\nvae_precision = \"bf16\"";
        let workflow = open(dir.path(), keys).unwrap();
        let precisions = |name: &str| {
            let grid = workflow.grid(name, &model).unwrap();
            (grid.precision, grid.vae_precision)
        };
        assert_eq!(precisions("half"), (Precision::F16, Precision::BF16));
        assert_eq!(precisions("checkpoints"), (Precision::F32, Precision::F32));
    }

    #[test]
    fn a_control_has_the_captions_before_tags_and_a_probe_the_pictures_that_were_trained_on() {
        let dir = tempfile::tempdir().unwrap();
        let model = |name: &str| Ok(PathBuf::from(format!("{name}.safetensors")));
        let control = "[[train]]\nname = \"control\"\nbase = \"v1\"\ncaptions = \"original\"\n\
                       [train.config]\nmax_epochs = 1\n\
                       [[probe]]\nname = \"x\"\nmodels = [\"control\"]\nplacebo = [\"glorp\"]\n\
                       prompts = [{ prompt = \"x\", expect = [\"solo\"] }]\n";
        let workflow = open(dir.path(), control).unwrap();
        let of = |workflow: &Workflow| workflow.train("control", &model).unwrap();
        assert_eq!(of(&workflow).caption_root, None);
        let images = workflow.recipe.workflow.images.clone();
        assert_eq!(workflow.probe("x", &model).unwrap().data, Some(images));

        let more = format!(
            "{control}[filter]\nquery = \"not tag:solo\"\n[recaption]\ncaptions = \"theirs\"\nmodel = \"blip\"\nshare = 0.5\n"
        );
        let workflow = open(dir.path(), &more).unwrap();
        assert_eq!(of(&workflow).caption_root, Some(workflow.output_of(&Job::Mix)));
        assert_eq!(workflow.needs(&Job::Train("control".into())), [Job::Filter, Job::Mix]);
        let data = workflow.probe("x", &model).unwrap().data;
        assert_eq!(data, Some(workflow.output_of(&Job::Filter)));
        assert!(workflow.needs(&Job::Probe("x".into())).contains(&Job::Filter));
    }

    #[test]
    fn a_mix_takes_all_that_a_step_of_a_recipe_takes() {
        let dir = tempfile::tempdir().unwrap();
        let merges = r#"
            [[merge]]
            name = "blocks"
            method = "weighted-sum"
            a = "v3@25"
            b = "v1"
            alpha = { preset = "GRAD_V", text_encoder = 0.2, select = [{ keys = "*attn2*", value = 0.7 }] }
            precision = "bf16"
            vae = "merge"
            mismatched = "keep-a"

            [[merge]]
            name = "sparse"
            method = "dare"
            a = "base"
            models = ["blocks", "v2", "v3"]
            density = 0.25
            seed = 7

            [[merge]]
            name = "styled"
            method = "apply-lora"
            a = "sparse"
            loras = ["v1"]
        "#;
        let workflow = open(dir.path(), merges).unwrap();
        assert_eq!(plan(&workflow, "blocks").hash_cache, None);
        let cache = Some(PathBuf::from("hashes.json"));
        let workflow = workflow.with_hash_cache(cache.clone());
        let blocks = plan(&workflow, "blocks");
        assert_eq!(blocks.hash_cache, cache);
        let model = |name: &str| Ok(PathBuf::from(format!("{name}.safetensors")));
        assert_eq!(workflow.grid("checkpoints", &model).unwrap().hash_cache, cache);
        let output = &blocks.outputs[0];
        let policies = (output.precision.unwrap().to_string(), output.vae, output.mismatched.to_string());
        assert_eq!(policies, ("bf16".to_owned(), VaePolicy::Merge, "keep-a".to_owned()));
        assert_eq!(
            blocks.graph.steps[0].params[0].to_string(),
            "{ preset = \"GRAD_V\", text_encoder = 0.2, select = [{ keys = \"*attn2*\", value = 0.7 }] }"
        );
        assert!(output.path.ends_with("mixes/blocks.safetensors"), "{}", output.path.display());
        let sparse = plan(&workflow, "sparse");
        let step = &sparse.graph.steps[0];
        assert_eq!((step.seed, step.operands.len()), (Some(7), 4));
        assert_eq!(step.params.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1.0", "0.25"]);
        assert!(parents(&sparse.graph).contains(&("v3", "v3.safetensors".into())));
        let styled = plan(&workflow, "styled");
        assert!(styled.graph.parents.iter().any(|parent| parent.name == "v1" && parent.lora));
        let jobs: Vec<_> = workflow.jobs().iter().map(ToString::to_string).collect();
        assert!(
            jobs.ends_with(&["merge blocks", "merge sparse", "merge styled"].map(str::to_owned)),
            "{jobs:?}"
        );
    }

    #[test]
    fn a_mix_may_be_made_by_a_recipe_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let merges = r#"
            [[merge]]
            name = "mix"
            recipe = "mixes/mixes.toml"
            output = "half"
            parents = { v3 = "v3@25" }
            weights = { multiplier = 0.25 }
            precision = "fp16"
        "#;
        let workflow = open(dir.path(), merges).unwrap();
        let plan = plan(&workflow, "mix");
        let other = dir.path().join("mixes/../other.safetensors").display().to_string();
        assert_eq!(parents(&plan.graph), [("other", other), ("v3", "v3@25.safetensors".into())]);
        assert!(plan.graph.parents.iter().all(|parent| parent.sha256.is_none()));
        assert_eq!(plan.graph.steps[0].params[0].constant(), Some(0.25));
        assert_eq!(workflow.needs(&Job::Merge("mix".into())), [Job::Train("v3".into())]);
    }

    #[test]
    fn what_is_wrong_in_a_mix_is_told_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let said = |merge: &str| {
            let merge = format!("[[merge]]\nname = \"mix\"\n{merge}\n");
            let (before, _) = TEMPLATE.split_once("# The three mixes of V3.").unwrap();
            let error = open(dir.path(), &merge).unwrap_err().to_string();
            let (_, place) = error.split_once("line ").unwrap_or_else(|| panic!("no line in {error}"));
            let (line, message) = place.split_once(", column ").unwrap();
            // Lines of the mix, counted from 1.
            let line = line.parse::<usize>().unwrap() - before.lines().count();
            format!("{line}: {}", message.split_once(": ").unwrap().1)
        };
        let sum = "method = \"weighted-sum\"\na = \"v3\"\nb = \"v1\"\n";
        assert_eq!(
            said(&format!("{sum}multiplier = [0.1, 0.2]")),
            "6: expected one weight, found a list: each merge makes one model"
        );
        assert_eq!(said(&format!("{sum}multiplier = 2")), "6: multiplier is 2, expected 0 to 1");
        assert_eq!(
            said(&format!("{sum}multiplyer = 1")),
            "6: unknown key `multiplyer`, did you mean `multiplier`?"
        );
        assert_eq!(said(&format!("{sum}multiplier = 1\nprecision = \"fp8\"")).get(..2), Some("7:"));
        assert_eq!(said(""), "1: missing key `method`, or `recipe`");
        let lora = "method = \"apply-lora\"\na = \"v1\"\nloras = [\"v1\"]";
        assert_eq!(said(lora), "4: `v1` is used as a LoRA elsewhere, expected a checkpoint");
        let recipe = "recipe = \"mixes/mixes.toml\"\n";
        assert_eq!(said(recipe), "3: there are several outputs, expected one of `half`, `whole`");
        assert_eq!(
            said(&format!("{recipe}output = \"none\"")),
            "4: no output is called `none`, expected one of `half`, `whole`"
        );
        assert_eq!(said(&format!("{recipe}parents = {{ v4 = \"v3\" }}")), "4: the recipe has no parent `v4`");
        let wrong = format!("{recipe}output = \"half\"\nweights = {{ beta = 1 }}");
        assert_eq!(said(&wrong), "4: no step has a weight `beta`, expected one of `half.multiplier`");
        let unknown = open(
            dir.path(),
            &format!("[[merge]]\nname = \"mix\"\n{recipe}output = \"half\"\nparents = {{ v3 = \"v4\" }}"),
        );
        assert!(unknown.unwrap_err().to_string().contains("there is no model `v4`"));
    }
}
