//! Loads what the arms name: templates, models and calibration prompts; clients of models that are elsewhere, and the
//! matchers of what models write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Context;
use sha2::{Digest, Sha256};

use super::artefact::artefact;
use super::digest;
use crate::config::{Config, text_matcher, text_needs};
use crate::files;
use crate::members::generate::{
    ArmScorer, FreeScorer, LoadedArm, NewTexts, Ranking, Renewed, TextParts, Writer,
};
use nearshore_core::list::prompt::{Arm, Calibrations, Digests, Endpoint, Frozen, Template};
use nearshore_core::list::terms::artefact::Artefact;
use nearshore_core::list::terms::{HEAD, MODEL, Weights};
use nearshore_core::names::matcher;
use nearshore_core::shop::arms::delay_of;
use nearshore_engine::encoder::Encoder;
use nearshore_engine::search::constrained::{Bases, Constrained, Limits};
use nearshore_engine::table::Table;
use nearshore_engine::thread::{Handle, spawn, spawn_with, threads};
use nearshore_engine::{Info, Options};
use nearshore_remote::Client;

/// Counts the tokens of a text with the tokenizer of the arm's model.
type Count = Arc<dyn Fn(&str) -> usize + Send + Sync>;

/// A token of a model elsewhere, in bytes: its tokenizer is not known here.
const TOKEN_BYTES: usize = 4;

/// A running model.
#[derive(Clone)]
struct Engine<A = Handle> {
    handle: A,
    info: Info,
    count: Count,
    /// Hash of the tokenizer.
    tokenizer: String,
}

/// The models of arms that run here; arms with the same model file and adapter share one, and with
/// `engine.share_adapted` those with other adapters share its weights.
struct Engines<'a> {
    config: &'a Config,
    options: Options,
    bases: Bases,
    known: BTreeMap<(String, Option<String>), Engine>,
    /// Models that have the hashes which an arm names.
    compared: BTreeSet<(String, Option<Digests>)>,
}

impl<'a> Engines<'a> {
    fn new(config: &'a Config) -> Self {
        let options = Options {
            threads: threads(config.engine.threads),
            precision: config.engine.precision,
            place: config.engine.device,
            ..Options::default()
        };
        Self {
            config,
            options,
            bases: Bases::default(),
            known: BTreeMap::new(),
            compared: BTreeSet::new(),
        }
    }

    /// The arm's model, or a stand-in if it has no part.
    fn of(&mut self, arm: &Arm, weights: &Weights) -> anyhow::Result<Engine> {
        if !weights.ask_model() {
            return Ok(without_model());
        }
        if (self.compared).insert((arm.model.clone(), arm.sha256.clone())) {
            same_files(self.config, arm)?;
        }
        let key = (arm.model.clone(), arm.adapter.clone());
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let bases = (self.config.engine.share_adapted).then_some(&mut self.bases);
        let engine = start(self.config, arm, self.options, bases)?;
        self.known.insert(key, engine.clone());
        Ok(engine)
    }
}

/// Loads each arm's template and model. An arm whose model writes freely is an error, unless its weights leave it out.
pub(crate) fn load_arms(config: &Config) -> anyhow::Result<Vec<LoadedArm<Handle>>> {
    let mut engines = Engines::new(config);
    load(config, |arm, weights| {
        anyhow::ensure!(
            !(arm.is_free() && weights.ask_model()),
            "its model writes freely, and only `run`, `check` and `try --mode free` ask it"
        );
        engines.of(arm, weights)
    })
}

/// Loads the arms, those whose model writes freely included, and starts the encoder for texts that will be new while
/// they serve.
pub(super) fn load_serving_arms(config: &Config) -> anyhow::Result<Vec<LoadedArm<ArmScorer>>> {
    let mut engines = Engines::new(config);
    let mut arms = load(config, |arm, weights| match &arm.endpoint {
        Some(endpoint) if weights.use_model() => elsewhere(config, (arm, endpoint)),
        _ => {
            let engine = engines.of(arm, weights)?;
            let handle = match arm.is_free() && weights.use_model() {
                true => {
                    let decoding = arm.decoding.unwrap_or_default();
                    let writer = Writer::Here(engine.handle, decoding);
                    ArmScorer::Writes(FreeScorer::new(&arm.id, writer, matcher_of(config, arm)?))
                }
                false => ArmScorer::Scores(engine.handle),
            };
            Ok(Engine {
                handle,
                info: engine.info,
                count: engine.count,
                tokenizer: engine.tokenizer,
            })
        }
    })?;
    start_encoder(config, &mut arms)?;
    Ok(arms)
}

/// Loads what each arm names, with the model that `engine` starts.
fn load<A>(
    config: &Config,
    mut engine: impl FnMut(&Arm, &Weights) -> anyhow::Result<Engine<A>>,
) -> anyhow::Result<Vec<LoadedArm<A>>> {
    let mut arms = Vec::new();
    for arm in &config.arms {
        let artefact = artefact(config, arm).with_context(|| format!("arm {}", arm.id))?;
        let weights = weights(arm, artefact.as_deref());
        let weights = weights.with_context(|| format!("arm {}", arm.id))?;
        let engine = engine(arm, &weights).with_context(|| format!("arm {}", arm.id))?;
        let file = config.resolve(&arm.template);
        let source = files::read(&file).with_context(|| format!("arm {}: template", arm.id))?;
        let template = Template::load(&source, &arm.template)
            .with_context(|| format!("arm {}: template {}", arm.id, file.display()))?;
        let of = (template.hash.as_str(), Some(engine.info.revision.as_str()));
        head_fits(artefact.as_deref(), &weights, of).with_context(|| format!("arm {}", arm.id))?;
        let known = (template.hash.as_str(), engine.tokenizer.as_str());
        let ranking = ranking((config, arm), (artefact, weights), known);
        let ranking = ranking.with_context(|| format!("arm {}", arm.id))?;
        arms.push(LoadedArm {
            arm: arm.clone(),
            ranking: Arc::new(ranking),
            renewed: Renewed::default(),
            new_texts: None,
            template,
            info: engine.info,
            tokenizer: engine.tokenizer,
            count: engine.count,
            engine: engine.handle,
        });
    }
    anyhow::ensure!(
        !arms.is_empty(),
        "no [[arms]] in the configuration: add one, or start with --role ingest"
    );
    Ok(arms)
}

/// Fails unless the arm's model is the one that `sha256` names.
fn same_files(config: &Config, arm: &Arm) -> anyhow::Result<()> {
    if let Some(same) = digest::compare(config, arm)? {
        let seconds = same.took.as_secs_f64();
        tracing::info!(
            arm = arm.id,
            model = arm.model,
            files = same.files,
            bytes = same.bytes,
            seconds,
            "the model has the configured SHA-256"
        );
    }
    Ok(())
}

/// The client of an arm's server, and the matcher of what it writes.
fn elsewhere(
    config: &Config,
    (arm, endpoint): (&Arm, &Endpoint),
) -> anyhow::Result<Engine<ArmScorer>> {
    let client = client(config, (arm, endpoint))?;
    let matcher = matcher_of(config, arm)?;
    tracing::info!(
        arm = arm.id,
        url = endpoint.url,
        model = arm.model,
        "this arm's model is elsewhere"
    );
    let info = Info {
        name: arm.model.clone(),
        revision: "unknown".into(),
        dtype: "unknown".into(),
        device: endpoint.url.clone(),
    };
    Ok(Engine {
        handle: ArmScorer::Writes(FreeScorer::new(&arm.id, Writer::Elsewhere(client), matcher)),
        info,
        count: Arc::new(|text: &str| text.len().div_ceil(TOKEN_BYTES)),
        tokenizer: "elsewhere".into(),
    })
}

/// The client of an arm's server.
pub(crate) fn client(
    config: &Config,
    (arm, endpoint): (&Arm, &Endpoint),
) -> anyhow::Result<Client> {
    let path = |file: &Option<String>| {
        let file = file.as_ref()?;
        Some(config.resolve(file).display().to_string())
    };
    let endpoint = Endpoint {
        api_key_file: path(&endpoint.api_key_file),
        ca_file: path(&endpoint.ca_file),
        ..endpoint.clone()
    };
    Ok(Client::new(&endpoint, &arm.model)?)
}

/// The model by which the arm's written names are matched.
pub(crate) fn matcher_of(config: &Config, arm: &Arm) -> anyhow::Result<Arc<matcher::Model>> {
    let advice = "make it with `nearshore match --labels FILE --fit FILE`";
    let file = arm.matcher.as_ref();
    let path = config.resolve(file.with_context(|| format!("matcher is missing; {advice}"))?);
    let text = files::read_filled(&path, advice).context("matcher")?;
    let model = matcher::Model::read(&text);
    let model = model.with_context(|| format!("matcher {}", path.display()))?;
    anyhow::ensure!(
        model.encoder.is_none(),
        "matcher {} was fitted with an encoder, which is not asked here; fit it without --encoder",
        path.display()
    );
    Ok(Arc::new(model))
}

/// What `[text]` names; `None` if no text is read.
pub(crate) fn text_parts(config: &Config) -> anyhow::Result<Option<Arc<TextParts>>> {
    if config.text.matcher.is_empty() {
        return Ok(None);
    }
    let wrong = |key: &str, what: String| anyhow::anyhow!("{key}: {what}");
    let model = text_matcher(config).map_err(|what| wrong("text.matcher", what))?;
    let needs = text_needs(config).map_err(|what| wrong("text.terms", what))?;
    let mut hash = Sha256::new();
    hash.update(model.write());
    hash.update(needs.write());
    Ok(Some(Arc::new(TextParts {
        settings: config.text.clone(),
        model: Arc::new(model),
        needs,
        version: hex::encode(&hash.finalize()[..8]),
    })))
}

/// Gives the arms whose weights need vectors of texts the configured encoder.
fn start_encoder<A>(config: &Config, arms: &mut [LoadedArm<A>]) -> anyhow::Result<()> {
    let Some(folder) = config.encoder() else {
        return Ok(());
    };
    let arms = arms
        .iter_mut()
        .filter(|arm| arm.ranking.weights.use_vectors());
    let arms: Vec<&mut LoadedArm<A>> = arms.collect();
    if arms.is_empty() {
        return Ok(());
    }
    let encoder = Encoder::load(&folder).context("engine.encoder")?;
    tracing::info!(encoder = %folder.display(), hash = encoder.hash(), "encoder loaded");
    let new_texts = NewTexts::start(encoder);
    for loaded in arms {
        let vectors = loaded.ranking.artefact.as_ref();
        let vectors = vectors.and_then(|artefact| artefact.vectors.as_ref());
        match new_texts.fits(vectors.map(|vectors| &**vectors)) {
            true => loaded.new_texts = Some(new_texts.clone()),
            false => tracing::warn!(
                arm = loaded.arm.id,
                encoder = new_texts.encoder(),
                "the artefact's vectors are of another encoder than engine.encoder; they are used, and new texts of this \
                 arm have no vectors; run `nearshore align` with this encoder"
            ),
        }
    }
    Ok(())
}

/// What an arm ranks by, with a template of this hash and a model with this tokenizer.
pub(super) fn ranking(
    (config, arm): (&Config, &Arm),
    (artefact, weights): (Option<Arc<Artefact>>, Weights),
    known: (&str, &str),
) -> anyhow::Result<Ranking> {
    let references = (artefact.as_ref()).and_then(|artefact| artefact.references.as_deref());
    let calibrations = match references {
        _ if !weights.use_model() || arm.is_free() => Calibrations::default(),
        Some(text) => {
            let (template, tokenizer) = known;
            let read = Calibrations::read(text, template, tokenizer);
            read.context("reference prompts of the artefact")?
        }
        None => calibrations(config, arm, known)?,
    };
    Ok(Ranking {
        weights,
        artefact,
        calibrations,
    })
}

/// Reads the arm's calibration prompts; none if the arm names no file.
fn calibrations(
    config: &Config,
    arm: &Arm,
    (template, tokenizer): (&str, &str),
) -> anyhow::Result<Calibrations> {
    let Some(file) = &arm.calibration else {
        tracing::warn!(
            arm = arm.id,
            "the model has a weight in this arm without calibration prompts; its scores contain what it says to everyone"
        );
        return Ok(Calibrations::default());
    };
    let path = config.resolve(file);
    let text = files::read_filled(&path, "write it with nearshore calibrate");
    let text = text.context("calibration prompts")?;
    let calibration = Frozen::read(&text, template, tokenizer)
        .with_context(|| format!("calibration prompts {}", path.display()))?;
    Ok(Calibrations::of_all(Arc::new(calibration)))
}

/// An arm's weights: those set by hand, or its artefact's.
pub(crate) fn weights(arm: &Arm, artefact: Option<&Artefact>) -> anyhow::Result<Weights> {
    let Some(artefact) = artefact else {
        return Ok(Weights::by_hand(&arm.weights)?);
    };
    let weights = match arm.weights.is_empty() {
        true => artefact.weights.clone(),
        false => Weights::beside_artefact(&arm.weights)?,
    };
    let weights = match arm.mode == HEAD {
        true => weights.without(MODEL),
        false => weights,
    };
    anyhow::ensure!(
        arm.mode != HEAD || weights.use_head(),
        "mode = \"head\", and the artefact's head has no weight: it was not trained, or not better than the mixture; train \
         one with `nearshore align --arm {} --head`, or write mode = \"constrained\"",
        arm.id
    );
    anyhow::ensure!(
        !weights.use_head() || artefact.head.is_some(),
        "head has a weight, and the artefact has no head; train it with `nearshore align --head`"
    );
    anyhow::ensure!(
        !weights.use_head() || !arm.is_free(),
        "head has a weight, and mode = \"free\": such a model only writes, and its hidden states are not read"
    );
    anyhow::ensure!(
        !weights.use_table() || artefact.table.is_some(),
        "table has a weight, and the artefact has no table of products; make it with `nearshore align --table`"
    );
    Ok(weights)
}

/// Fails unless the artefact's head, if it has a weight, was trained with this template and this model, as far as that
/// is known.
pub(crate) fn head_fits(
    artefact: Option<&Artefact>,
    weights: &Weights,
    (template, model): (&str, Option<&str>),
) -> anyhow::Result<()> {
    let head = artefact.and_then(|artefact| artefact.head.as_ref());
    let Some(head) = head.filter(|_| weights.use_head()) else {
        return Ok(());
    };
    let origin = head.origin();
    anyhow::ensure!(
        origin.template == template,
        "the artefact's head was trained with the template {}, and the arm has {template}; run `nearshore align --head` again",
        origin.template
    );
    let other = model.filter(|model| *model != origin.model);
    anyhow::ensure!(
        other.is_none(),
        "the artefact's head was trained on the hidden states of the model {}, and the arm has {}; run `nearshore align \
         --head` again",
        origin.model,
        other.unwrap_or_default()
    );
    Ok(())
}

/// A stand-in for the model of an arm that gives the model no weight: the model is not loaded.
fn without_model() -> Engine {
    of_table(spawn(Box::new(Table::default())))
}

/// A model that is a table, which counts words as tokens.
fn of_table(handle: Handle) -> Engine {
    Engine {
        info: handle.info().clone(),
        handle,
        count: Arc::new(|text: &str| text.split_whitespace().count()),
        tokenizer: "words".into(),
    }
}

/// Starts the arm's model on its own thread.
fn start(
    config: &Config,
    arm: &Arm,
    options: Options,
    bases: Option<&mut Bases>,
) -> anyhow::Result<Engine> {
    if let Some(delay) = delay_of(&arm.model) {
        let delay = delay.map_err(anyhow::Error::msg)?;
        tracing::warn!(
            arm = arm.id,
            ?delay,
            "this arm uses a table of fixed scores instead of a model; its lists are only for tests"
        );
        return Ok(of_table(spawn(Box::new(Table::default().delayed(delay)))));
    }
    let path = config.resolve(&arm.model);
    let since = std::time::Instant::now();
    let limits = Limits {
        rows_max: config.engine.batch_rows_max,
        kv_max: config.engine.kv_mb_max << 20,
        prompts_max: config.engine.prompts_mb_max << 20,
        time_max: config.engine.generation_max,
    };
    let adapter = arm.adapter.as_ref().map(|folder| config.resolve(folder));
    let model = match bases {
        Some(bases) => Constrained::load_beside(&path, adapter.as_deref(), options, bases)?,
        None => Constrained::load_adapted(&path, adapter.as_deref(), options)?,
    };
    let model = model.limited(limits);
    for warning in &model.loading().warnings {
        tracing::warn!(arm = arm.id, model = %path.display(), "{warning}");
    }
    tracing::info!(arm = arm.id, model = %path.display(), seconds = since.elapsed().as_secs_f64(), "model loaded: {}", model.loading());
    let (text, pulse) = (model.text().clone(), model.pulse());
    let tokenizer = text.hash()?;
    let handle = spawn_with(Box::new(model), pulse);
    Ok(Engine {
        info: handle.info().clone(),
        handle,
        count: Arc::new(move |part: &str| text.count(part)),
        tokenizer,
    })
}
