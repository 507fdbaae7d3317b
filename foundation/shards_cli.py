"""The commands `foundation shards ...`: look at, check, merge and plan with shards. Each imports what it needs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.console import say
from foundation.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from foundation.stream.mixture import Mixture
    from foundation.stream.reading import ShardedDataset
    from foundation.stream.weighing import EpochSize
    from foundation.tokens.layout import Layout

OK, PROBLEMS = 0, 2
SHOWN_FINDINGS = 50
ROW_TOKENS, ROWS_PER_STEP = 1024, 4
"""What a recipe's `train:` has when it says nothing."""

DESCRIPTION = """\
Look at the shards that training reads. FOLDER is the folder of a dataset's shards (the one with
a manifest.json), its URL (s3://..., https://...), or the folder of a tokenize stage: then all
TAG/SPLIT folders below it.
"""
EPILOG = """\
examples:
  foundation shards info runs/quickstart/tokens            sizes, lengths, how full rows are
  foundation shards verify FOLDER --workers 8              compare every byte with the manifest
  foundation shards merge 2024 2025 --to both              one dataset of two
  foundation shards reweigh A B --epochs 1 2               weights for one epoch of A and two of B
  foundation shards head FOLDER -n 1                       the first sequence, token by token
  foundation shards plan A B --weights 0.7 0.3 --steps 100000 --row-tokens 2048 --rows-per-step 512

exit codes:
  0 fine   2 a mistake in a file or an option, and of `verify` also: something is wrong
"""
VERIFY_HELP = """\
Compare every file with the manifest and every block with the index: is each shard there, is its
size right and its SHA-256, the CRC-32 of each block, do the members of a block agree, are the
headers those of a tar and of .npy arrays. Prints a table of what is wrong. Exit code 0: nothing.
"""
MERGE_HELP = """\
Join folders of the same tag, vocabulary and tokenizer to one. Shards are hard-linked where the
file system can, else copied. Sequences are not shuffled between the folders: the first ones,
which a limit of labels takes, are those of the first folder; in training, blocks of all folders
are shuffled together.
"""
REWEIGH_HELP = """\
Print the weights for a recipe's `mixture` that give wanted shares of tokens, or numbers of epochs,
or follow a temperature: shares go as tokens ** (1 / T), so 1 mixes by size and more is more even.
"""
PLAN_HELP = """\
Say what a run will read: steps in an epoch of each dataset, tokens, how full rows are, when a
dataset starts again, and how many bytes per second each rank reads at a given speed. Give folders
and numbers, or a recipe and its stage.
"""


def add_shards_commands(commands: Any) -> None:
    """Add `shards` and its commands to the subparsers of `foundation`."""
    raw = argparse.RawDescriptionHelpFormatter
    shards = commands.add_parser(
        "shards", help="look at, check, merge and plan with tokenised data", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=raw,
    )  # fmt: skip
    actions = shards.add_subparsers(metavar="ACTION", required=True)

    def add(name: str, command: Any, words: str, text: str | None = None) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = actions.add_parser(
            name, help=words, description=text or words, formatter_class=raw
        )
        parser.set_defaults(command=command)
        return parser

    _add_reading(add("info", _info, "what a dataset is, how long its sequences, how full rows of them"))
    verify = add("verify", _verify, "compare every file with the manifest, every block with the index", VERIFY_HELP)
    verify.add_argument("folders", metavar="FOLDER", nargs="+")
    verify.add_argument("--quick", action="store_true", help="sizes and the index only")
    verify.add_argument("--workers", metavar="N", type=_positive, default=1, help="shards checked at once (1)")
    merge = add("merge", _merge, "join folders of the same kind to one", MERGE_HELP)
    merge.add_argument("folders", metavar="FOLDER", nargs="+")
    merge.add_argument("--to", metavar="DIR", type=Path, required=True, help="new folder")
    _add_reweigh(
        _add_reading(add("reweigh", _reweigh, "weights of a mixture for wanted shares or epochs", REWEIGH_HELP))
    )
    head = _add_reading(add("head", _head, "the first sequences: ids, what they mean, and physical values"))
    head.add_argument("-n", dest="sequences", metavar="N", type=_positive, default=2, help="how many sequences (2)")
    head.add_argument("--points", metavar="N", type=_positive, default=6, help="points shown of each (6)")
    _add_plan(_add_reading(add("plan", _plan, "what a run will read, and how fast it must", PLAN_HELP), folders="*"))


def _add_reading(parser: argparse.ArgumentParser, folders: str = "+") -> argparse.ArgumentParser:
    parser.add_argument("folders", metavar="FOLDER", nargs=folders)
    parser.add_argument("--split", metavar="NAME", help="of a stage's folder, this split only")
    parser.add_argument(
        "--vocabulary", metavar="FILE", type=Path, help="vocabulary.json, where it is not in a folder above"
    )
    parser.add_argument(
        "--streams", choices=["delayed", "interleaved"], help="how codes stand in a sequence (as the stage says)"
    )
    return parser


def _add_reweigh(parser: argparse.ArgumentParser) -> None:
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument(
        "--shares", metavar="X", type=float, nargs="+", help="shares of the tokens, one for each dataset"
    )
    wanted.add_argument("--epochs", metavar="X", type=float, nargs="+", help="epochs that end at the same step")
    wanted.add_argument("--temperature", metavar="T", type=float, help="shares go as tokens ** (1 / T)")
    parser.add_argument("--steps", metavar="N", type=_positive, help="steps that it is spread over")
    _add_rows(parser)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", metavar="RECIPE", help="path of a YAML file, or name of a shipped recipe")
    parser.add_argument("--stage", metavar="NAME", help="its stage that trains (the first one)")
    mixture = parser.add_mutually_exclusive_group()
    mixture.add_argument("--weights", metavar="X", type=float, nargs="+", help="of the mixture, one for each dataset")
    mixture.add_argument("--temperature", metavar="T", type=float, help="weights go as tokens ** (1 / T) (1)")
    _add_rows(parser)
    parser.add_argument("--steps", metavar="N", type=_positive, help="steps of the run")
    parser.add_argument("--ranks", metavar="N", type=_positive, default=1, help="processes that train (1)")
    parser.add_argument("--seed", metavar="N", type=int, help="seed of the run (1)")
    parser.add_argument(
        "--tokens-per-second", metavar="X", type=float, help="of all ranks together: gives bytes per second"
    )


def _add_rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--row-tokens", metavar="N", type=_positive, help=f"tokens of a row ({ROW_TOKENS})")
    parser.add_argument(
        "--rows-per-step", metavar="N", type=_positive, help=f"rows of a step over all ranks ({ROWS_PER_STEP})"
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


# What the words on the command line mean


def _layout(folder: str, options: argparse.Namespace) -> Layout | None:
    from foundation.stream.folders import layout_above

    return layout_above(folder, options.vocabulary, options.streams)


def _needed_layout(folder: str, options: argparse.Namespace) -> Layout:
    layout = _layout(folder, options)
    if layout is None:
        raise DataError(f"{folder}: there is no vocabulary.json here or above: name it with --vocabulary")
    return layout


def _open_all(options: argparse.Namespace) -> tuple[list[ShardedDataset], Layout]:
    """All datasets that the options name, with their common layout."""
    from foundation.stream.folders import dataset_folders
    from foundation.stream.reading import ShardedDataset

    folders = dataset_folders(options.folders, options.split or "train")
    layout = _needed_layout(folders[0], options)
    datasets = [ShardedDataset(folder, layout.vocabulary.digest) for folder in folders]
    tags = [dataset.tag for dataset in datasets]
    if len(set(tags)) < len(tags):
        raise DataError(f"two folders have the same tag ({', '.join(tags)}): merge them first, or leave one out")
    return datasets, layout


# The commands


def _info(options: argparse.Namespace) -> int:
    from foundation.stream.describing import info_rows
    from foundation.stream.folders import dataset_folders
    from foundation.stream.reading import ShardedDataset
    from foundation.stream.verifying import read_manifest

    for number, folder in enumerate(dataset_folders(options.folders, options.split)):
        layout = _layout(folder, options)
        digest = read_manifest(folder)["vocabulary"] if layout is None else layout.vocabulary.digest
        say(("\n" if number else "") + folder)
        rows = info_rows(ShardedDataset(folder, digest), layout)
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            say(f"  {name:<{width}}  {value}")
        if layout is None:
            say("  tokens and rows: name the vocabulary.json with --vocabulary")
    return OK


def _verify(options: argparse.Namespace) -> int:
    from foundation.data.describe.text_table import table_lines
    from foundation.stream.folders import dataset_folders
    from foundation.stream.verifying import verify

    code = OK
    for folder in dataset_folders(options.folders):
        result = verify(folder, quick=options.quick, workers=options.workers)
        what = "sizes and index" if options.quick else "every byte"
        found = len(result.findings)
        told = f"{found} problems, {result.bad_blocks} bad blocks" if found else "nothing wrong"
        say(f"{folder}: {result.shards:,} shards, {result.blocks:,} blocks, {result.bytes:,} bytes, {what}: {told}")
        if found:
            code = PROBLEMS
            for line in table_lines(("file", "block", "what is wrong"), result.findings[:SHOWN_FINDINGS]):
                say(f"  {line}")
            if found > SHOWN_FINDINGS:
                say(f"  ... and {found - SHOWN_FINDINGS} more")
    return code


def _merge(options: argparse.Namespace) -> int:
    from foundation.stream.folders import dataset_folders
    from foundation.stream.merging import merge

    folders = dataset_folders(options.folders)
    manifest = merge(folders, options.to)
    say(
        f"{options.to}: {manifest['sequences']:,} sequences in {len(manifest['shards']):,} shards of {len(folders)} "
        f"folders; they are not shuffled between the folders"
    )
    return OK


def _head(options: argparse.Namespace) -> int:
    from foundation.stream.describing import head_lines
    from foundation.stream.folders import dataset_folders, tokenizer_beside
    from foundation.stream.reading import ShardedDataset

    for folder in dataset_folders(options.folders, options.split):
        layout = _needed_layout(folder, options)
        dataset = ShardedDataset(folder, layout.vocabulary.digest)
        tokenizer = tokenizer_beside(folder)
        say(f"{folder}: {dataset.tag}")
        for line in head_lines(dataset, layout, tokenizer, options.sequences, options.points):
            say(line)
        if tokenizer is None:
            say("no tokenizer beside the splits: values in physical units are not shown")
    return OK


def _reweigh(options: argparse.Namespace) -> int:
    from foundation.stream import weighing

    datasets, layout = _open_all(options)
    row_tokens, per_step = options.row_tokens or ROW_TOKENS, options.rows_per_step or ROWS_PER_STEP
    with redirect_stdout(sys.stderr):  # progress is no YAML
        sizes = [weighing.epoch_size(dataset, layout, row_tokens) for dataset in datasets]
    if options.epochs is not None:
        weights, rows = weighing.weights_for_epochs(sizes, options.epochs)
        if options.steps is not None:
            per_step = -(-rows // options.steps)
    else:
        weights = (
            weighing.weights_for_shares(sizes, options.shares)
            if options.temperature is None
            else weighing.weights_for_temperature(sizes, options.temperature)
        )
        rows = options.steps * per_step if options.steps else sum(size.rows for size in sizes)
    for line in _mixture_yaml(sizes, weights, rows, per_step):
        say(line)
    return OK


def _mixture_yaml(sizes: Sequence[EpochSize], weights: Sequence[float], rows: int, rows_per_step: int) -> list[str]:
    """A recipe's mixture, with what it means as comments, so that the whole output is YAML."""
    from foundation.data.describe.text_table import table_lines
    from foundation.stream.weighing import epochs_after

    tokens = [weight * size.fill for weight, size in zip(weights, sizes, strict=True)]
    header = ("dataset", "sequences", "too long", "tokens", "rows", "full", "share of tokens", "epochs")
    table = [
        (
            size.tag, f"{size.sequences:,}", f"{size.too_long:,}", f"{size.tokens:,}", f"{size.rows:,}",
            f"{100 * size.fill:.1f} %", f"{100 * share / sum(tokens):.2f} %", f"{epochs:.4g}",
        )
        for size, share, epochs in zip(sizes, tokens, epochs_after(sizes, weights, rows), strict=True)
    ]  # fmt: skip
    lines = [f"# {line}" for line in table_lines(header, table)]
    steps = -(-rows // rows_per_step)
    lines.append(f"# epochs: in {steps:,} steps of {rows_per_step} rows of {sizes[0].row_tokens} tokens")
    lines.append("mixture:")
    return lines + [f"  {size.tag}: {weight}" for size, weight in zip(sizes, weights, strict=True)]


def _plan(options: argparse.Namespace) -> int:
    from foundation.stream.planning import plan_stream
    from foundation.stream.rows import length_rule

    if bool(options.recipe) == bool(options.folders):
        raise DataError("plan: give the folders of datasets, or --recipe")
    run = _run_of_recipe(options) if options.recipe else _run_of_folders(options)
    steps = options.steps or run.steps
    plan = plan_stream(
        run.datasets,
        run.mixture,
        [length_rule(run.layout, dataset.tag) for dataset in run.datasets],
        options.row_tokens or run.row_tokens,
        options.rows_per_step or run.rows_per_step,
        ranks=options.ranks,
        seed=run.seed if options.seed is None else options.seed,
        steps=steps,
        tokens_per_second=options.tokens_per_second,
    )
    for line in plan.lines():
        say(line)
    if steps is not None:
        say(f"in {steps:,} steps:")
        for dataset in plan.datasets:
            tokens = dataset.epochs * dataset.rows_per_epoch * plan.row_tokens * dataset.fill
            seen = f"{dataset.epochs:.3g} epochs" if dataset.epochs > 1 else f"{dataset.epochs:.1%} of the sequences"
            say(f"  {dataset.name}: {tokens:,.0f} tokens, {seen}")
    return OK


@dataclass(frozen=True)
class PlannedRun:
    """What is known of a run before its command line changes it."""

    datasets: list[ShardedDataset]
    layout: Layout
    mixture: Mixture
    row_tokens: int = ROW_TOKENS
    rows_per_step: int = ROWS_PER_STEP
    seed: int = 1
    steps: int | None = None


def _run_of_folders(options: argparse.Namespace) -> PlannedRun:
    from foundation.stream.mixture import Mixture, temperature_weights
    from foundation.stream.rows import length_rule

    datasets, layout = _open_all(options)
    rules = [length_rule(layout, dataset.tag) for dataset in datasets]
    tokens = [r.scale * int(d.points.sum()) + r.extra * len(d) for r, d in zip(rules, datasets, strict=True)]
    weights = options.weights or temperature_weights(
        tokens, 1.0 if options.temperature is None else options.temperature
    )
    return PlannedRun(datasets, layout, Mixture(tuple(weights)))


def _run_of_recipe(options: argparse.Namespace) -> PlannedRun:
    """The run that a stage of a recipe is, on the shards that its tokenize stage left."""
    from foundation.recipe.loading import load_recipe
    from foundation.recipe.schema import Finetune, Pretrain
    from foundation.recipe.stages.training import mixture_of, tags_of
    from foundation.registry.store import runs_base
    from foundation.stream.mixture import Mixture
    from foundation.stream.reading import ShardedDataset

    recipe = load_recipe(options.recipe, []).recipe
    stages = {spec.name: spec for spec in recipe.stages if isinstance(spec, (Pretrain, Finetune))}
    name = options.stage or next(iter(stages), "")
    if name not in stages:
        raise DataError(f"{options.recipe}: no stage '{name}' that trains{did_you_mean(name, stages)}")
    spec = stages[name]
    home = runs_base() / recipe.name / spec.data
    layout = _needed_layout(str(home), options)
    tags = tags_of(spec.mixture, layout.vocabulary) if isinstance(spec, Pretrain) else [spec.dataset]
    limit = spec.labels if isinstance(spec, Finetune) else None
    datasets = [ShardedDataset(home / tag / "train", layout.vocabulary.digest, limit) for tag in tags]
    mixture = mixture_of(spec.mixture, datasets, layout) if isinstance(spec, Pretrain) else Mixture((1.0,))
    train = spec.train
    return PlannedRun(datasets, layout, mixture, train.row_tokens, train.rows_per_step, recipe.seed, train.steps)
