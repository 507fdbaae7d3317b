"""The command `foundation plan`: what a stage that trains will need, before it is given a machine."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foundation.console import say
from foundation.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from foundation.model.config import TransformerConfig
    from foundation.recipe.loading import LoadedRecipe
    from foundation.recipe.schema import Finetune, Pretrain
    from foundation.train.planning import TrainingPlan, Work

OK = 0
DESCRIPTION = """\
Say what a stage that trains will need on GPUs of a kind: parameters, memory of a process for each
ZeRO stage, floating-point operations, time and GPU-hours, and what processes send to one another.
Nothing is run. Lengths of sequences are those of the shards, where the tokenize stage is finished;
before, give --vocabulary-size and --sequence-tokens.
"""
EPILOG = """\
examples:
  foundation plan my.yaml --gpus 8                              the first stage that trains, one machine
  foundation plan my.yaml --gpus 64 --nodes 8 --gpu a100-80 --set pretrain.train.rows_per_step=512
  foundation plan my.yaml --gpus 64 --nodes 8 --tokens-per-second 310000
  foundation plan my.yaml --gpus 1 --vocabulary-size 65000 --sequence-tokens 130

The time rests on --efficiency, the share of a GPU's peak that training reaches. It is a guess until
a short run on one GPU has told its tokens per second: give these instead.
"""


def add_plan_command(commands: Any) -> None:
    """Add `plan` to the subparsers of `foundation`."""
    raw = argparse.RawDescriptionHelpFormatter
    plan = commands.add_parser(
        "plan", help="memory, time and GPU-hours of a stage that trains", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=raw,
    )  # fmt: skip
    plan.add_argument("recipe", metavar="RECIPE", help="path of a YAML file, or name of a shipped recipe")
    plan.add_argument("--stage", metavar="NAME", help="its stage that trains (the first one)")
    plan.add_argument("--gpus", metavar="N", type=_positive, default=1, help="in all, one process each (1)")
    plan.add_argument("--nodes", metavar="M", type=_positive, default=1, help="machines that these are in (1)")
    plan.add_argument("--gpu", metavar="KIND", default="h200", help="such as h100, a100-80, mi300x (h200)")
    speed = plan.add_mutually_exclusive_group()
    speed.add_argument("--efficiency", metavar="X", type=float, default=0.4, help="share of the peak (0.4, a guess)")
    speed.add_argument("--tokens-per-second", metavar="X", type=float, help="of one GPU, measured")
    plan.add_argument(
        "--network", metavar="X", type=float, default=25.0, help="GB/s that a machine sends to others (25: 200 Gbit/s)"
    )
    plan.add_argument("--vocabulary-size", metavar="N", type=_positive, help="ids, where there are no shards yet")
    plan.add_argument("--sequence-tokens", metavar="N", type=_positive, help="of a typical object, likewise")
    plan.add_argument("--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
                      help="change a setting, as `foundation run` does")  # fmt: skip
    plan.add_argument("--json", action="store_true", help="print JSON: bytes, seconds, operations")
    plan.set_defaults(command=_plan)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _plan(options: argparse.Namespace) -> int:
    from foundation.recipe.loading import load_recipe
    from foundation.train.hardware import gpu_named
    from foundation.train.planning import Machines, plan_training

    if options.gpus % options.nodes:
        raise DataError(f"--gpus {options.gpus} is the number in all, a multiple of --nodes {options.nodes}")
    if not 0 < options.efficiency <= 1:
        raise DataError(f"--efficiency {options.efficiency} is a share of the peak, above 0 and at most 1")
    machines = Machines(
        gpu_named(options.gpu),
        options.gpus,
        options.nodes,
        options.network * 1e9,
        None if options.tokens_per_second else options.efficiency,
        options.tokens_per_second,
    )
    loaded = load_recipe(options.recipe, options.overrides)
    spec = _training_stage(loaded, options.stage)
    model = _model_of(loaded, spec)
    work, epochs = _work(loaded, spec, options)
    plan = plan_training(model, spec.train, work, machines)
    if options.json:
        say(json.dumps(plan.as_json() | {"epochs": epochs}, indent=1))
        return OK
    say(f"stage {spec.name} of {loaded.recipe.name}")
    for line in _lines(plan, work, epochs):
        say(line)
    return OK


# What the recipe says


def _training_stage(loaded: LoadedRecipe, name: str | None) -> Pretrain | Finetune:
    from foundation.recipe.schema import Finetune, Pretrain

    stages = {spec.name: spec for spec in loaded.recipe.stages if isinstance(spec, (Pretrain, Finetune))}
    if not stages:
        raise DataError(f"{loaded.path}: no stage of this recipe trains")
    name = name or next(iter(stages))
    if name not in stages:
        raise DataError(f"{loaded.path}: no stage '{name}' that trains{did_you_mean(name, stages)}")
    return stages[name]


def _model_of(loaded: LoadedRecipe, spec: Pretrain | Finetune) -> TransformerConfig:
    """The architecture; a fine-tuned model's is that of the backbone that it starts from."""
    from foundation.model.weights import read_model
    from foundation.recipe.schema import Finetune
    from foundation.registry.models import resolve_model
    from foundation.registry.store import runs_base

    if not isinstance(spec, Finetune):
        return spec.model
    if spec.source.startswith("models:/"):
        return read_model(resolve_model(spec.source, runs_base()))[0].transformer
    return _model_of(loaded, _training_stage(loaded, spec.source))


# What the data say


def _work(
    loaded: LoadedRecipe, spec: Pretrain | Finetune, options: argparse.Namespace
) -> tuple[Work, dict[str, float]]:
    """Work of the stage, and epochs of each dataset."""
    from foundation.registry.store import runs_base

    home = runs_base() / loaded.recipe.name / spec.data
    if options.vocabulary_size and options.sequence_tokens:
        return _stated_work(spec, options.vocabulary_size, options.sequence_tokens), {}
    if options.vocabulary_size or options.sequence_tokens:
        raise DataError("--vocabulary-size and --sequence-tokens stand for the shards together: give both")
    if not (home / "vocabulary.json").is_file():
        raise DataError(
            f"{home}: no shards yet. Run `foundation run {options.recipe} --until {spec.data}`, or give "
            "--vocabulary-size and --sequence-tokens"
        )
    return _measured_work(loaded, spec, home)


def _stated_work(spec: Pretrain | Finetune, vocabulary: int, length: int) -> Work:
    from foundation.train.planning import Work

    tokens = spec.train.row_tokens * spec.train.rows_per_step
    return Work(vocabulary, 1, (vocabulary,), tokens, length, vocabulary)


def _measured_work(loaded: LoadedRecipe, spec: Pretrain | Finetune, home: Any) -> tuple[Work, dict[str, float]]:
    from foundation.recipe.schema import Pretrain
    from foundation.recipe.stages.training import mixture_of, tags_of
    from foundation.stream.mixture import Mixture, MixtureSchedule
    from foundation.stream.reading import ShardedDataset
    from foundation.stream.rows import length_rule, row_table
    from foundation.tokens.layout import Layout
    from foundation.tokens.vocabulary import Vocabulary
    from foundation.train.planning import lengths_in, work_of

    tokenize = next(stage for stage in loaded.recipe.stages if stage.name == spec.data)
    layout = Layout(Vocabulary.load(home / "vocabulary.json"), tokenize.streams)
    tags = tags_of(spec.mixture, layout.vocabulary) if isinstance(spec, Pretrain) else [spec.dataset]
    limit = None if isinstance(spec, Pretrain) else spec.labels
    shards = str(home) if spec.shards_at is None else spec.shards_at.rstrip("/")
    data = [ShardedDataset(f"{shards}/{tag}/train", layout.vocabulary.digest, limit) for tag in tags]
    mixture = mixture_of(spec.mixture, data, layout) if isinstance(spec, Pretrain) else Mixture((1.0,))
    train, rules = spec.train, [length_rule(layout, tag) for tag in tags]
    tables = [row_table(d, rule, train.row_tokens) for d, rule in zip(data, rules, strict=True)]
    later = [(step * train.rows_per_step, weights) for step, weights in mixture.later]
    rows = MixtureSchedule(mixture.weights, later).counts(train.steps * train.rows_per_step)
    in_epoch = [max(1, int(table["rows"].sum())) for table in tables]
    tokens = [n * int(t["tokens"].sum()) / epoch for n, t, epoch in zip(rows.tolist(), tables, in_epoch, strict=True)]
    points = [lengths_in(d, rule, train.row_tokens) for d, rule in zip(data, rules, strict=True)]
    work = work_of(layout, tags, points, tokens, sum(tokens) / train.steps)
    if not isinstance(spec, Pretrain):
        work = replace(work, legal=(), outputs=0.0)  # a class per sequence takes no time and no room
    return work, {tag: n / epoch for tag, n, epoch in zip(tags, rows.tolist(), in_epoch, strict=True)}


# What is told


def _lines(plan: TrainingPlan, work: Work, epochs: dict[str, float]) -> list[str]:
    machines, parameters = plan.machines, plan.parameters
    where = f"{machines.gpus} x {machines.gpu.name}" + (f" in {machines.nodes} machines" if machines.nodes > 1 else "")
    peak = f"{machines.gpu.peak / 1e12:,.0f} TFLOP/s, {machines.gpu.memory / 1e9:.0f} GB ({machines.gpu.source})"
    total = plan.tokens * plan.steps
    speed = f"{plan.tokens_per_second:,.0f} tokens/s a GPU"
    share = plan.flops * plan.tokens_per_second / machines.gpu.peak
    rests_on = f"{share:.0%} of the peak, " + ("assumed" if machines.efficiency else "measured")
    seen = ", ".join(f"{name} {number:.3g}" for name, number in epochs.items())
    return [
        f"GPUs        {where}: {peak}",
        f"parameters  {parameters.total:,}: {parameters.hidden:,} in matrices of blocks, {parameters.embeddings:,} of "
        f"{work.vocabulary:,} ids",
        f"a step      {plan.tokens:,.0f} tokens, {plan.rows_of_process} rows a process at a time; "
        f"{plan.steps:,} steps, {total:.3g} tokens" + (f"; epochs: {seen}" if seen else ""),
        f"work        {plan.flops / 1e9:.3g} GFLOP a token ({plan.of_output:.0%} output, {plan.of_attention:.0%} "
        f"attention to {work.length:,.0f} tokens), {plan.flops * total:.3g} FLOP in all",
        f"time        {speed} ({rests_on}"
        + (f": {share:.0%} of the peak)" if not machines.efficiency else ")")
        + f": {plan.step_seconds * 1e3:,.0f} ms a step, {_hours(plan.seconds)}, {plan.gpu_hours:,.1f} GPU-hours",
        f"memory of a process in {_unit(plan)[1]} ({plan.usable / 1e9:.0f} GB are counted on)"
        + (", and what it sends in a step" if machines.gpus > 1 else ""),
        *_table(plan),
    ]


def _unit(plan: TrainingPlan) -> tuple[float, str]:
    return (1e9, "GB") if max(memory.peak for memory in plan.memory.values()) > 1e9 else (1e6, "MB")


def _table(plan: TrainingPlan) -> list[str]:
    from foundation.data.describe.text_table import table_lines

    several, (unit, name_of_unit) = plan.machines.gpus > 1, _unit(plan)
    header = ["", "weights", "gradients", "optimiser", "buffers", "activations", "loss", "most", "host", "fits"]
    header += [f"sends {name_of_unit}", "ms", "by"] if several else []
    rows = []
    for stage, memory in plan.memory.items():
        name = ("* " if stage == plan.zero_stage else "  ") + f"ZeRO {stage}" if several else "one process"
        parts = (
            memory.weights, memory.gradients, memory.optimizer, memory.buffers, memory.activations, memory.loss,
            memory.peak, memory.host,
        )  # fmt: skip
        row = [name, *(_short(part / unit) for part in parts), "yes" if plan.fits(stage) else "no"]
        if several:
            exchange = plan.exchange[stage]
            way = "network" if exchange.between_machines else "GPU links"
            row += [_short(exchange.bytes / unit), _short(exchange.seconds * 1e3), way]
        rows.append(row)
    lines = [f"  {line}" for line in table_lines(header, rows)]
    return lines + _verdict(plan) if several else lines


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _verdict(plan: TrainingPlan) -> list[str]:
    """What to choose."""
    fitting = [stage for stage in plan.memory if plan.fits(stage)]
    lines = ["  * zero_stage of the recipe; `most` is at the worst moment of a step, when not all is there at once"]
    if not fitting:
        lines.append("nothing fits: try accumulation, train.recompute, train.offload, or more GPUs and ZeRO 3")
        return lines
    shares = {stage: plan.exchange[stage].seconds / plan.step_seconds for stage in fitting}
    told = ", ".join(f"{share:.0%} (ZeRO {stage})" for stage, share in shares.items())
    lines.append(f"sending, over computing: {told}; a step waits for what does not overlap")
    if min(shares.values()) > 1:
        lines.append("the network does not keep up: more rows_per_step, or fewer machines")
    return lines


def _hours(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
