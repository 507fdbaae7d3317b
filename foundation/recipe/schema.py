"""What a recipe may say: one typed model per stage. Imports nothing heavy, so that validating is quick."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from foundation.data.cards import Condition
from foundation.evaluate.panels.choice import Metric
from foundation.model.config import TransformerConfig
from foundation.recipe.mixtures import MixtureSpec
from foundation.recipe.samples import Sample
from foundation.recipe.section import Section
from foundation.tokens.config import TokenizerConfig
from foundation.train.config import TrainConfig

Metrics = Literal["quick", "all"] | Annotated[tuple[Literal["quick", "all"] | Metric, ...], Field(min_length=1)]


class StageSpec(Section):
    """What all stages share."""

    version: ClassVar[int] = 1
    """Raised when the code of a stage changes its result, so that finished stages are run again."""

    name: str
    """Name of the stage and of its folder."""

    @property
    def needs_all_ranks(self) -> bool:
        """True where all processes of a launch work together; other stages run on one."""
        return False

    def references(self) -> dict[str, str]:
        """Key of this section -> name of the earlier stage that it names."""
        return {}

    def card_names(self) -> tuple[str, ...]:
        """Dataset cards that the result depends on."""
        return ()

    def execution_only(self) -> frozenset[str]:
        """Keys that do not change the result."""
        return frozenset()


class Simulate(StageSpec):
    """Make jets or showers with the simulator of a dataset card."""

    kind: Literal["simulate"]
    dataset: str
    """Dataset card: a name that ships with the platform, or a YAML file relative to the recipe."""
    objects: dict[str, int]
    """Objects per split, for example {train: 20000, validation: 1000, test: 4000}, divided evenly over the classes."""
    classes: tuple[str, ...] = ()
    """Classes of the card to make; all of them where none is named."""
    simulator: dict[str, bool | int | float | str | list[float]] = {}
    """Simulator settings that differ from the card's."""
    shard_size: int = Field(500, ge=1)
    """Objects per file; each file has its own seed."""
    workers: int = Field(0, ge=0)
    """Processes; 0 means one per core."""

    def card_names(self) -> tuple[str, ...]:
        return (self.dataset,)

    def execution_only(self) -> frozenset[str]:
        return frozenset({"workers"})


class Import(StageSpec):
    """Take point clouds from files, checked against a dataset card."""

    kind: Literal["import"]
    dataset: str
    """Dataset card: a name that ships with the platform, or a YAML file relative to the recipe."""
    files: dict[str, tuple[str, ...]]
    """Files or patterns per split, relative to the recipe: in the card's format, or point clouds of this platform."""
    features: tuple[str, ...] = ()
    """Features to take; all of the card where none is named."""
    skip_bad: bool = False
    """Skip what cannot be right (unreadable files, NaN, negative energies, jets of nothing), count it and list it,
    instead of stopping."""
    workers: int = Field(1, ge=1)
    """Processes."""
    scheduler: str | None = None
    """Address of a running Dask scheduler, tcp://host:port, to work instead of processes of this machine."""

    def card_names(self) -> tuple[str, ...]:
        return (self.dataset,)

    def execution_only(self) -> frozenset[str]:
        return frozenset({"workers", "scheduler"})


class FitTokenizer(StageSpec):
    """Fit the tokenizer of one dataset, or of several that share it, on their train splits."""

    version: ClassVar[int] = 2
    kind: Literal["tokenizer"]
    source: str | tuple[str, ...] = Field(alias="from", min_length=1)
    """Stage that made or imported the dataset, or a list of such stages: one tokenizer for all of them, whose codes
    then mean the same in all of them."""
    method: TokenizerConfig
    called: str = ""
    """Name of its ranges in the vocabulary; the tag of the (first) dataset where none is given."""
    features: tuple[str, ...] = ()
    """Features of the card that become tokens; all of them where none is named."""
    fit_objects: int = Field(20_000, ge=1)
    """Objects of each train split that it is fitted on, at most."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The stages that it is fitted on."""
        return (self.source,) if isinstance(self.source, str) else self.source

    def references(self) -> dict[str, str]:
        if isinstance(self.source, str):
            return {"from": self.source}
        return {f"from.{i}": name for i, name in enumerate(self.source)}


class TokenizedDataset(Section):
    """A dataset and the tokenizer that encodes it."""

    source: str = Field(alias="from")
    tokenizer: str
    conditions: tuple[Condition, ...] | None = None
    """Quantities of the object that its sequence starts with, instead of those of the card: any condition or attribute
    of the dataset, as {name: jet_pt, unit: GeV, range: [500, 1000], bins: 32, scale: log}."""


class Tokenize(StageSpec):
    """Build the shared vocabulary and write every split of every dataset as shards."""

    version: ClassVar[int] = 2
    kind: Literal["tokenize"]
    datasets: tuple[TokenizedDataset, ...] = Field(min_length=1)
    streams: Literal["delayed", "interleaved"] = "delayed"
    """How several codes of a point are laid out: in one step, each a step later than the one before, or one by one."""
    features: Literal["none", "float16", "float32"] = "none"
    """Store the continuous features of every point beside its codes, transformed as the card says, in this type."""
    block_sequences: int = Field(8192, ge=1)
    """Most sequences of a block, the unit that is read, checked and packed at once; it also ends at about 1 MiB."""
    shard_mb: int = Field(256, ge=1)
    """Size of a shard in MiB, about."""
    workers: int = Field(1, ge=1)
    """Processes; each holds about 100 MiB of points, or one shard, in memory."""
    scheduler: str | None = None
    """Address of a running Dask scheduler, tcp://host:port, to work instead of processes of this machine."""

    def execution_only(self) -> frozenset[str]:
        return frozenset({"workers", "scheduler"})

    def references(self) -> dict[str, str]:
        found = {}
        for i, dataset in enumerate(self.datasets):
            found[f"datasets.{i}.from"] = dataset.source
            found[f"datasets.{i}.tokenizer"] = dataset.tokenizer
        return found


class TrainingStage(StageSpec):
    """What the stages that train share: all processes work together, and some settings do not change the result."""

    train: TrainConfig = TrainConfig()
    on_bad_block: Literal["error", "skip"] = "error"
    """At a damaged or missing block of a shard: stop, or leave its sequences out, count them and say so."""
    too_long: Literal["leave_out", "error"] = "leave_out"
    """At sequences longer than `row_tokens`: leave them out, count them and say so, or stop."""
    prefetch: int = Field(2, ge=0)
    """Steps whose batches a thread prepares ahead; 0 means no thread."""
    shards_at: str | None = None
    """Folder or URL that holds the shards, DATASET/SPLIT below it, where they were copied to another place."""
    cache: str | None = None
    """Folder for copies of remote shards, shared by the processes of a node."""
    cache_gb: float = Field(100.0, gt=0)
    """Size that the cache is kept to."""

    @property
    def needs_all_ranks(self) -> bool:
        return True

    def execution_only(self) -> frozenset[str]:
        # how work is spread and what is kept in memory changes rounding alone: checkpoints go on with another
        of_training = (
            "zero_stage", "offload", "deepspeed", "accumulation", "compile", "recompute", "checkpoint_seconds",
            "keep_checkpoints", "keep_best", "background_checkpoints", "log_every", "validate_every", "sample_every",
        )  # fmt: skip
        return frozenset({"prefetch", "shards_at", "cache", "cache_gb", *(f"train.{key}" for key in of_training)})


class Pretrain(TrainingStage):
    """Train one transformer on a mixture of datasets to predict the next step."""

    kind: Literal["pretrain"]
    data: str
    """The tokenize stage."""
    mixture: MixtureSpec
    """Weight of each dataset, by tag; weights mean tokens. Or {temperature: T}, or a list of parts, see below."""
    model: TransformerConfig = TransformerConfig()

    @model_validator(mode="after")
    def _check(self) -> Pretrain:
        if self.train.sample_every and self.model.features:
            raise ValueError("a model that reads features cannot generate: remove train.sample_every or model.features")
        return self

    def references(self) -> dict[str, str]:
        return {"data": self.data}


class Finetune(TrainingStage):
    """Train a model for a task on labelled objects, from a pre-trained backbone or from scratch."""

    kind: Literal["finetune"]
    source: str = Field(alias="from")
    """A stage or a registered model (models:/name@alias): its weights, or its architecture only (`start: scratch`)."""
    data: str
    """The tokenize stage."""
    dataset: str
    """Tag of the dataset."""
    task: Literal["classification"] = "classification"
    start: Literal["pretrained", "scratch"] = "pretrained"
    labels: int | None = Field(None, ge=1)
    """Labelled objects to train on; all when not given."""

    def references(self) -> dict[str, str]:
        return {"from": self.source, "data": self.data}


class Generate(StageSpec):
    """Generate point clouds with a pre-trained model."""

    version: ClassVar[int] = 2
    kind: Literal["generate"]
    source: str = Field(alias="from")
    """The pretrain stage, or a registered model (models:/name@alias)."""
    samples: tuple[Sample, ...] = Field(min_length=1)
    temperature: float = Field(1.0, gt=0)
    top_k: int = Field(0, ge=0)
    """Draw from this many of the most probable codes; 0 takes all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the most probable ids that add up to this probability."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Draw from codes that are at least this times as probable as the most probable one."""
    end_temperature: float = Field(1.0, gt=0)
    """The log-odds of ending are divided by it; the settings above are of the codes alone."""
    batch: int = Field(0, ge=0)
    """Objects that are sampled at the same time; 0 for as many as suit the machine."""
    workers: int = Field(1, ge=1)
    """Processes."""
    scheduler: str | None = None
    """Address of a running Dask scheduler, tcp://host:port, to work instead of processes of this machine."""

    @property
    def needs_all_ranks(self) -> bool:
        return True

    def references(self) -> dict[str, str]:
        return {"from": self.source} | {f"samples.{i}.truth": s.truth for i, s in enumerate(self.samples)}

    def execution_only(self) -> frozenset[str]:
        return frozenset({"batch", "workers", "scheduler"})


class Evaluate(StageSpec):
    """Compare generated with held-out objects, score classifiers, and write report.html."""

    version: ClassVar[int] = 2
    kind: Literal["evaluate"]
    generated: str | tuple[str, ...] = Field(min_length=1)
    """The generate stage, or several: what they made of one dataset is compared side by side."""
    classifiers: tuple[str, ...] = ()
    """Finetune stages whose test scores are compared."""
    metrics: Metrics = "quick"
    """Which metrics: `quick` ones, `all` with the slow ones, or names, see below."""
    train_objects: int = Field(20_000, ge=1)
    """Objects of the train split, at most, that the test of memorisation compares with."""
    pdf: bool = False
    """Figures as PDF, too."""

    @property
    def models(self) -> tuple[str, ...]:
        """The generate stages."""
        return (self.generated,) if isinstance(self.generated, str) else self.generated

    def references(self) -> dict[str, str]:
        one = isinstance(self.generated, str)
        generated = {"generated" if one else f"generated.{i}": name for i, name in enumerate(self.models)}
        return generated | {f"classifiers.{i}": c for i, c in enumerate(self.classifiers)}


class InformationSettings(Section):
    """Networks that are trained and tested on original and on decoded objects: the gap is the information lost."""

    networks: tuple[Literal["deep_sets", "transformer"], ...] = Field(("deep_sets", "transformer"), min_length=1)
    """Kinds of networks: classifiers where the dataset has classes, else regressions of the incident energy."""
    epochs: int = Field(5, ge=1)
    """Passes over the training objects."""
    seeds: int = Field(1, ge=1)
    """Trainings of each network; the error of the gap then knows how much these differ."""
    train_objects: int = Field(20_000, ge=1)
    """Objects of the train split that they are trained on, at most."""
    test_objects: int = Field(10_000, ge=1)
    """Objects of the test split that they are tested on, at most."""


class EvaluateTokenizers(StageSpec):
    """Measure what tokenizers lose, on the same held-out objects, and write tokenizers.html."""

    kind: Literal["evaluate_tokenizers"]
    source: str = Field(alias="from")
    """The simulate or import stage whose test split is encoded and decoded."""
    tokenizers: tuple[str, ...] = Field(min_length=1)
    """Tokenizer stages, fitted on this dataset."""
    objects: int = Field(10_000, ge=1)
    """Objects of the test split to measure, at most; as many of each file."""
    information: InformationSettings | None = None
    """The test of information loss, see below; none where it is not given."""

    def references(self) -> dict[str, str]:
        return {"from": self.source} | {f"tokenizers.{i}": name for i, name in enumerate(self.tokenizers)}


class RegisteredModel(Section):
    """A model and the name it gets in the registry."""

    source: str = Field(alias="from")
    """A pretrain or finetune stage."""
    name: str
    aliases: tuple[str, ...] = ("candidate",)
    """Names of this version, beside its number; `latest` always is the newest."""


class Register(StageSpec):
    """Put models into the MLflow registry, tagged with parent, datasets, vocabulary and scores."""

    kind: Literal["register"]
    models: tuple[RegisteredModel, ...] = Field(min_length=1)
    scores: str | None = None
    """The evaluate stage whose scores become tags."""

    def references(self) -> dict[str, str]:
        found = {f"models.{i}.from": m.source for i, m in enumerate(self.models)}
        return found | ({"scores": self.scores} if self.scores else {})


Stage = Annotated[
    Simulate
    | Import
    | FitTokenizer
    | Tokenize
    | Pretrain
    | Finetune
    | Generate
    | Evaluate
    | EvaluateTokenizers
    | Register,
    Field(discriminator="kind"),
]


class Recipe(Section):
    """A whole job: stages, run in the order in which they stand."""

    name: str
    """Name of the run folder and of the MLflow experiment."""
    description: str = ""
    seed: int = Field(1, ge=0)
    """Everything random is derived from it."""
    stages: tuple[Stage, ...] = Field(min_length=1)
