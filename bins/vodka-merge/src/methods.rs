//! A subcommand for each method, made from the table of methods.

use std::path::PathBuf;

use clap::{
    Arg, ArgAction, ArgMatches, Command, Error, FromArgMatches, Subcommand, builder::PossibleValuesParser,
    value_parser,
};
use vodka_merger::{
    Info, METHODS, Method, MismatchPolicy, Parents, Precision, Recipe, Result, VaePolicy, Weight,
};

/// One merge, as a subcommand says it.
#[derive(Debug, Clone)]
pub struct MergeCommand {
    method: Method,
    parents: Vec<PathBuf>,
    params: Vec<(String, Vec<Weight>)>,
    seed: Option<u64>,
    output: PathBuf,
    precision: Option<Precision>,
    vae: VaePolicy,
    mismatched: MismatchPolicy,
}

impl MergeCommand {
    /// The recipe of one step that it stands for.
    ///
    /// # Errors
    /// Too few checkpoints, or a weight out of range.
    pub fn recipe(self) -> Result<Recipe> {
        let mut recipe = Recipe::of_one(self.method, self.parents, &self.params, self.seed, self.output)?;
        let output = &mut recipe.outputs[0];
        (output.precision, output.vae, output.mismatched) = (self.precision, self.vae, self.mismatched);
        Ok(recipe)
    }
}

impl Subcommand for MergeCommand {
    fn augment_subcommands(command: Command) -> Command {
        METHODS.iter().fold(command, |command, info| command.subcommand(subcommand(info)))
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        METHODS.iter().any(|info| info.name == name)
    }
}

impl FromArgMatches for MergeCommand {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let (name, matches) = matches.subcommand().expect("clap asks for a subcommand");
        let method: Method = name.parse().expect("the subcommands are the methods");
        let info = method.info();
        let paths = |name: &str| matches.get_many::<PathBuf>(name).into_iter().flatten().cloned();
        let names = ["a", "b", "c", "others"].into_iter().filter(|name| has_parent(info, name));
        let given = |name: &'static str| Some((name, matches.get_many::<Weight>(name)?.cloned().collect()));
        let params = info.params.iter().filter_map(|param| given(param.name));
        let text = |name: &str| matches.get_one::<String>(name).expect("it has a default");
        Ok(Self {
            method,
            parents: names.flat_map(paths).collect(),
            params: params.map(|(name, weights): (_, Vec<_>)| (name.to_owned(), weights)).collect(),
            seed: if info.seeded { matches.get_one("seed").copied() } else { None },
            output: matches.get_one::<PathBuf>("output").expect("it is required").clone(),
            precision: matches.get_one("precision").copied(),
            vae: text("vae").parse().expect("clap knows the values"),
            mismatched: text("mismatched").parse().expect("clap knows the values"),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn has_parent(info: &Info, name: &str) -> bool {
    name == "a"
        || info.parents.letters().contains(&name)
        || (name == "others" && info.parents.list().is_some())
}

fn subcommand(info: &'static Info) -> Command {
    let formula = format!("{}: {}\n\nFrom {}.", info.summary, info.formula, info.source);
    let about = if info.formula.contains('\n') { info.summary } else { info.formula };
    let mut command = Command::new(info.name).about(about).long_about(formula).arg_required_else_help(false);
    for name in ["a", "b", "c"].into_iter().filter(|name| has_parent(info, name)) {
        command = command.arg(
            checkpoint(name)
                .value_name(letter(name))
                .help(format!("Checkpoint {}", letter(name)))
                .required(true),
        );
    }
    if let Some(list) = info.parents.list() {
        let what = if info.parents == Parents::Loras { "LoRA files" } else { "The other checkpoints" };
        let least = info.parents.least() - 1;
        command = command.arg(
            checkpoint("others")
                .value_name(if list == "loras" { "LORAS" } else { "MODELS" })
                .help(what)
                .num_args(least..)
                .required(true),
        );
    }
    for param in info.params {
        let mut arg = Arg::new(param.name)
            .long(param.name)
            .value_name(if param.name == "multiplier" { "M" } else { "X" })
            .help(format!("{}; a number, the name of a preset, or 26 numbers for the blocks. Several times for several results", param.help))
            .value_parser(value_parser!(Weight))
            .allow_hyphen_values(true)
            .action(ArgAction::Append)
            .required(param.default.is_none());
        if param.name == "multiplier" {
            arg = arg.short('m').visible_alias("alpha");
        }
        command = command.arg(arg);
    }
    if info.seeded {
        command = command.arg(
            Arg::new("seed")
                .long("seed")
                .value_name("N")
                .value_parser(value_parser!(u64))
                .help("Seed of what is dropped [default: 0]"),
        );
    }
    output_options(command)
}

fn letter(name: &str) -> &'static str {
    match name {
        "a" => "A",
        "b" => "B",
        _ => "C",
    }
}

fn checkpoint(name: &'static str) -> Arg {
    Arg::new(name).value_parser(value_parser!(PathBuf))
}

fn output_options(command: Command) -> Command {
    let choice = |name: &'static str, values: [&'static str; 2]| {
        Arg::new(name)
            .long(name)
            .value_name(if name == "vae" { "VAE" } else { "POLICY" })
            .value_parser(PossibleValuesParser::new(values))
    };
    command
        .arg(
            checkpoint("output")
                .long("output")
                .short('o')
                .value_name("FILE")
                .required(true)
                .help("The .safetensors file to write; {multiplier} stands for the weight"),
        )
        .arg(
            Arg::new("precision")
                .long("precision")
                .value_name("TYPE")
                .value_parser(value_parser!(Precision))
                .help("fp16, bf16 or fp32; by default that of A"),
        )
        .arg(
            choice("vae", ["a", "merge"])
                .default_value("a")
                .help("Keep the VAE of A, or merge it like the rest"),
        )
        .arg(
            choice("mismatched", ["error", "keep-a"])
                .default_value("error")
                .help("What to do about tensors that not all parents have alike: refuse, or keep those of A"),
        )
}
