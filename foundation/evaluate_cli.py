"""The commands `foundation evaluate ...`: measure generated objects and tokenizers, on any files.

Each imports what it needs.
"""

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
from foundation.evaluate.panels.choice import PARTS

if TYPE_CHECKING:
    from foundation.data.cards import DatasetCard
    from foundation.data.point_clouds import PointClouds
    from foundation.evaluate.evaluation import Sample
    from foundation.evaluate.report import RunDescription
    from foundation.evaluate.tokenizer_evaluation import InformationTest
    from foundation.tokens.tokenizer import Tokenizer

OK, PROBLEMS = 0, 2
TRAINED_ON = 2 / 3
"""Share of the objects that the networks of the test of information loss are trained on; the rest tests them."""

DESCRIPTION = """\
Measure generated objects against truth:   foundation evaluate TRUTH GENERATED ... --card CARD
Put saved evaluations side by side:        foundation evaluate A/metrics.json B/metrics.json ...
Measure what tokenizers lose:              foundation evaluate tokenizer FOLDER ...
Recipes do the same with their stages `evaluate` and `evaluate_tokenizers`.
"""
FILES_HELP = """\
Compare generated with held-out objects, of any generator: no model of this platform is needed.
TRUTH and every GENERATED is a file, a quoted glob ('data/*.root') or a folder: in the format of
CARD, or point clouds of this platform. Every GENERATED is a model, a column of the tables. Every
number stands beside its floor: one half of the truth against the other half, at the same size.
So give twice as much truth as there are generated objects, where you can.
Writes metrics.json, report.html and figures/ into DIR. Files named *.json are taken as metrics of
earlier evaluations, and are put side by side.
"""
FILES_EPILOG = (
    """\
examples:
  foundation evaluate 'test/*.h5' generated.h5 --card pythia_jets
  foundation evaluate dataset_2_2.hdf5 mine.hdf5 theirs.hdf5 --card calochallenge_ds2 --metrics all
  foundation evaluate a/metrics.json b/metrics.json --out both

metrics: quick (the default), all (with the slow ones), or names with commas; long ones only by name
"""
    + "".join(f"  {part.name:<21} {part.cost:<6} {part.what}\n" for part in PARTS)
    + """
exit codes:
  0 fine   2 a mistake in a card, a file or an option, and also: a model could not be evaluated
"""
)
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


def with_action(arguments: Sequence[str]) -> list[str]:
    """`evaluate FILE ...` as `evaluate files FILE ...`: a word after it that is no action is a file or an option."""
    words = list(arguments)
    if words[:1] == ["evaluate"] and len(words) > 1 and words[1] not in ("tokenizer", "files", "-h", "--help"):
        words.insert(1, "files")
    return words


def add_evaluate_commands(commands: Any) -> None:
    """Add `evaluate` and its commands to the subparsers of `foundation`."""
    raw = argparse.RawDescriptionHelpFormatter
    evaluate = commands.add_parser(
        "evaluate", help="measure generated objects, or tokenizers, on any files", description=DESCRIPTION,
        formatter_class=raw,
    )  # fmt: skip
    actions = evaluate.add_subparsers(metavar="ACTION", required=True)
    _add_files(
        actions.add_parser(
            "files", help="generated objects against truth; may be left out: evaluate TRUTH GENERATED",
            description=FILES_HELP, epilog=FILES_EPILOG, formatter_class=raw, prog="foundation evaluate",
            usage="foundation evaluate TRUTH GENERATED [GENERATED ...] --card CARD [options]",
        )
    )  # fmt: skip
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


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILES", nargs="+", help="those of the truth, and then those of every model")
    parser.add_argument("--card", metavar="CARD", help="name of a shipped card, or a YAML file")
    parser.add_argument(
        "--name", metavar="NAME", action="append", default=[], help="name of a model, in the order of GENERATED"
    )
    parser.add_argument(
        "--metrics", metavar="NAMES", default="quick", help="quick, all, or names with commas, see below (quick)"
    )
    parser.add_argument(
        "--train", metavar="FILES", action="append", default=[],
        help="objects that the models were trained on, for the test of memorisation; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--objects", metavar="N", type=_positive, default=100_000,
        help="generated objects of each model at most, and twice as many of truth (100000)",
    )  # fmt: skip
    parser.add_argument("--seed", metavar="N", type=int, default=1, help="everything random follows from it (1)")
    parser.add_argument("--pdf", action="store_true", help="figures as PDF, too")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("evaluation"), help="folder (evaluation)")
    parser.set_defaults(command=_files)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _files(options: argparse.Namespace) -> int:
    if any(word.endswith(".json") for word in options.files):
        return _saved(options)
    from foundation.data.cards import load_card
    from foundation.evaluate.evaluation import evaluate
    from foundation.evaluate.panels.choice import chosen
    from foundation.evaluate.score_lines import score_lines

    if options.card is None:
        raise DataError("which dataset is it? name its card with --card (foundation data list)")
    metrics = [word for word in options.metrics.split(",") if word]
    chosen(metrics)
    card = load_card(options.card)
    samples = _samples(options, card)
    done = evaluate(
        options.out, _run_of_files(options, card, samples), samples, seed=options.seed, pdf=options.pdf,
        metrics=metrics, on_progress=say,
    )  # fmt: skip
    for line in ["", *score_lines(done.tidy), ""]:
        say(line)
    for problem in done.problems:
        say(f"not evaluated: {problem}")
    say(f"metrics: {done.metrics}")
    say(f"report: {done.report}")
    return PROBLEMS if done.problems else OK


def _samples(options: argparse.Namespace, card: DatasetCard) -> list[Sample]:
    """Truth and generated objects of every model, read from their files."""
    from foundation.data_cli import files_of
    from foundation.evaluate.evaluation import Sample
    from foundation.evaluate.sample_files import read_sample

    words = options.files[1:]
    if not words:
        raise DataError(f"{options.files[0]}: this is the truth; name the files of at least one model after it")
    names = options.name or _names(words)
    if len(names) != len(words):
        raise DataError(f"{len(names)} names (--name) were given for {len(words)} models; give one for each")
    if len(set(names)) < len(names):
        raise DataError(f"two models have the same name ({', '.join(names)}); give each its own with --name")
    paths = [files_of(card, [word]) for word in options.files]
    trained = files_of(card, options.train) if options.train else []
    truth = read_sample(card, paths[0], 2 * options.objects, "truth")
    train = read_sample(card, trained, options.objects, "training").clouds if trained else None
    say(f"truth: {len(truth.clouds):,} objects")
    samples = []
    for name, found in zip(names, paths[1:], strict=True):
        generated = read_sample(card, found, options.objects, name)
        say(f"{name}: {len(generated.clouds):,} objects")
        notes = [*truth.notes, *generated.notes]
        if len(truth.clouds) < 2 * len(generated.clouds):
            notes.append(
                f"{name}: half of the truth is the floor, so that {len(truth.clouds) // 2:,} of its "
                f"{len(generated.clouds):,} objects are compared; give twice as much truth to compare all"
            )
        samples.append(Sample(card, truth.clouds, generated.clouds, name, train, notes=tuple(notes)))
    for note in dict.fromkeys(note for sample in samples for note in sample.notes):
        say(f"note: {note}")
    return samples


def _names(words: Sequence[str]) -> list[str]:
    """Names of files and folders without their endings; with the folder in front where two are the same."""
    paths = [Path(word.rstrip("/")) for word in words]
    stems = [path.stem if path.suffix else path.name for path in paths]
    return [
        stem if stems.count(stem) == 1 else f"{path.resolve().parent.name}/{stem}"
        for stem, path in zip(stems, paths, strict=True)
    ]


def _saved(options: argparse.Namespace) -> int:
    from foundation.evaluate.score_lines import score_lines
    from foundation.evaluate.side_by_side import read_side_by_side, write_side_by_side

    other = next((word for word in options.files if not word.endswith(".json")), None)
    if other is not None:
        raise DataError(f"{other}: saved metrics (*.json) are put beside each other, not beside files of objects")
    saved = read_side_by_side([Path(word) for word in options.files], options.name)
    for line in score_lines(saved.scores):
        say(line)
    if len(options.files) > 1:
        for what, path in write_side_by_side(options.out, _run_of_saved(options), saved).items():
            say(f"{what}: {path}")
    return OK


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


def _run_of_files(options: argparse.Namespace, card: DatasetCard, samples: Sequence[Sample]) -> RunDescription:
    from foundation.evaluate.metrics_file import versions
    from foundation.evaluate.report import RunDescription

    command = ["foundation", "evaluate", *options.files, "--card", options.card, "--metrics", options.metrics]
    command += [word for name in options.name for word in ("--name", name)]
    command += [word for name in options.train for word in ("--train", name)]
    command += ["--objects", str(options.objects), "--seed", str(options.seed), "--out", str(options.out)]
    return RunDescription(
        title=f"Evaluation: {card.title}",
        summary=f"{', '.join(sample.model for sample in samples)} against held-out truth",
        facts={
            "seed": options.seed,
            "metrics": options.metrics,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        },
        versions=versions(),
        datasets={card.name: f"{len(samples[0].truth)} objects of truth from {options.files[0]}"},
        models={
            sample.model: f"{len(sample.generated)} objects from {word}"
            for sample, word in zip(samples, options.files[1:], strict=True)
        },
        reproduce=(shlex.join(command),),
    )


def _run_of_saved(options: argparse.Namespace) -> RunDescription:
    from foundation.evaluate.metrics_file import versions
    from foundation.evaluate.report import RunDescription

    return RunDescription(
        title="Evaluations side by side",
        summary="scores of saved evaluations; their own reports have the figures",
        versions=versions(),
        reproduce=(shlex.join(["foundation", "evaluate", *options.files, "--out", str(options.out)]),),
    )
