"""The commands `foundation evaluate ...`: measure what was fitted, on any files. Each imports what it needs."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.console import say
from foundation.errors import DataError

if TYPE_CHECKING:
    from foundation.data.cards import DatasetCard
    from foundation.data.point_clouds import PointClouds
    from foundation.evaluate.report import RunDescription
    from foundation.evaluate.tokenizer_evaluation import InformationTest
    from foundation.tokens.tokenizer import Tokenizer

OK, PROBLEMS = 0, 2
TRAINED_ON = 2 / 3
"""Share of the objects that the networks of the test of information loss are trained on; the rest tests them."""

DESCRIPTION = """\
Measure what was fitted or trained. Recipes do the same with their stages `evaluate_tokenizers`
and `evaluate`.
"""
TOKENIZER_HELP = """\
Encode and decode objects with one or several tokenizers and measure what is lost: residuals of
every feature and of whole objects (mass, pT, substructure; energy, hits, centre of gravity), how
codes are used, tokens and bits per object, and speed. FOLDER holds a tokenizer.json: a tokenizer
stage of a run, or TAG/tokenizer of its tokenize stage. FILES should be objects that the
tokenizers were not fitted on: in the format of CARD, or point clouds of this platform.
Writes tokenizer_metrics.json, tokenizers.md, tokenizers.html and figures/ into DIR.
"""
TOKENIZER_EPILOG = """\
examples:
  foundation evaluate tokenizer runs/my/tokenizer --card pythia_jets --files runs/my/jets/test
  foundation evaluate tokenizer runs/my/coarse runs/my/fine --card jetclass --files 'data/*.root' --information

exit codes:
  0 fine   2 a mistake in a card, a file or an option, and also: a tokenizer could not be measured
"""


def add_evaluate_commands(commands: Any) -> None:
    """Add `evaluate` and its commands to the subparsers of `foundation`."""
    raw = argparse.RawDescriptionHelpFormatter
    evaluate = commands.add_parser(
        "evaluate", help="measure tokenizers on any files", description=DESCRIPTION, formatter_class=raw
    )
    actions = evaluate.add_subparsers(metavar="ACTION", required=True)
    tokenizer = actions.add_parser(
        "tokenizer", help="what tokenizers lose: tables, figures and a report", description=TOKENIZER_HELP,
        epilog=TOKENIZER_EPILOG, formatter_class=raw,
    )  # fmt: skip
    tokenizer.add_argument("folders", metavar="FOLDER", nargs="+", type=Path)
    tokenizer.add_argument("--card", metavar="CARD", required=True, help="name of a shipped card, or a YAML file")
    tokenizer.add_argument("--files", metavar="FILES", nargs="+", required=True, help="files, quoted globs, or folders")
    tokenizer.add_argument(
        "--objects", metavar="N", type=_positive, default=10_000, help="how many objects are measured (10000)"
    )
    tokenizer.add_argument(
        "--information", action="store_true",
        help="also train networks on original and on decoded objects: two thirds of the objects train, the rest tests",
    )  # fmt: skip
    tokenizer.add_argument("--epochs", metavar="N", type=_positive, default=5, help="epochs of these networks (5)")
    tokenizer.add_argument("--seed", metavar="N", type=int, default=1, help="everything random follows from it (1)")
    tokenizer.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("tokenizer_report"), help="folder of the report"
    )
    tokenizer.set_defaults(command=_tokenizer)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _tokenizer(options: argparse.Namespace) -> int:
    from foundation.data.cards import load_card
    from foundation.data_cli import files_of, first_objects
    from foundation.evaluate.tokenizer_evaluation import evaluate_tokenizers

    card, tokenizers = load_card(options.card), _tokenizers(options.folders)
    clouds = first_objects(_card_of_features(card, tokenizers), files_of(card, options.files), options.objects)
    done = evaluate_tokenizers(
        options.out,
        _run(options, card, clouds, tokenizers),
        card,
        clouds,
        tokenizers,
        _information(clouds, options.epochs, options.seed) if options.information else None,
        seed=options.seed,
        on_progress=say,
    )
    for line in done.table:
        say(line)
    for problem in done.problems:
        say(f"not measured: {problem}")
    say(f"report: {done.report}")
    return PROBLEMS if done.problems else OK


def _tokenizers(folders: Sequence[Path]) -> dict[str, Tokenizer]:
    """Tokenizers by the name of their folder, or by the whole path where folders have the same name."""
    from foundation.tokens.kinds import load_tokenizer

    found: dict[str, Tokenizer] = {}
    names = [folder.resolve().name for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        if not (folder / "tokenizer.json").is_file():
            raise DataError(f"{folder}: there is no tokenizer.json; give the folder of a tokenizer stage")
        key = name if names.count(name) == 1 else str(folder)
        if key in found:
            raise DataError(f"{folder}: named twice; give every tokenizer once")
        found[key] = load_tokenizer(folder)
    return found


def _card_of_features(card: DatasetCard, tokenizers: dict[str, Tokenizer]) -> DatasetCard:
    """The card with the features that any of the tokenizers takes; files need not have the others."""
    from foundation.data.formats.reading import with_features

    wanted = {feature.name for tokenizer in tokenizers.values() for feature in tokenizer.features}
    return with_features(card, tuple(sorted(wanted & set(card.feature_names))), ordered=False)


def _information(clouds: PointClouds, epochs: int, seed: int) -> InformationTest:
    import numpy as np

    from foundation.evaluate.tokenizer_evaluation import InformationTest

    order = np.random.default_rng(seed).permutation(len(clouds))
    train = round(TRAINED_ON * len(clouds))
    return InformationTest(clouds.select(np.sort(order[:train])), clouds.select(np.sort(order[train:])), epochs=epochs)


def _run(
    options: argparse.Namespace, card: DatasetCard, clouds: PointClouds, tokenizers: dict[str, Tokenizer]
) -> RunDescription:
    import foundation
    from foundation.evaluate.report import RunDescription

    command = ["foundation", "evaluate", "tokenizer", *map(str, options.folders), "--card", options.card]
    command += ["--files", *options.files, "--objects", str(options.objects), "--seed", str(options.seed)]
    command += ["--information", "--epochs", str(options.epochs)] if options.information else []
    return RunDescription(
        title="Tokenizers",
        summary=f"{len(tokenizers)} on {len(clouds)} objects of {card.title}",
        facts={
            "seed": options.seed,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "platform version": foundation.__version__,
        },
        datasets={card.tag: f"{len(clouds)} objects, {len(clouds.points)} points"},
        models={
            name: f"{t.kind}, fitted on {', '.join(t.inputs.datasets)}; codes {', '.join(f.name for f in t.features)}"
            for name, t in tokenizers.items()
        },
        reproduce=(shlex.join([*command, "--out", str(options.out)]),),
    )
