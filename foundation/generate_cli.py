"""The command `foundation generate`: objects of a dataset from a trained model, into files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.console import is_main_process, say
from foundation.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from foundation.data.cards import DatasetCard
    from foundation.generate.campaign import Outputs
    from foundation.generate.request_config import CampaignSettings

OK = 0
HELP = """\
Generate objects of a dataset with a trained model. MODEL is a model folder, the folder of a
pretrain stage, or models:/NAME@ALIAS of the registry. Object i follows from the model, the
settings, the seed and i alone: not from --slots, --workers, the number of ranks, or the machine's
load. A run that was stopped goes on when the same command is given again; until then its parts
are in FILE.parts. A report (counts, speed, seed, settings) is written to FILE.json.
"""
EPILOG = """\
conditions, by name; what is not named is left open:
  --condition incident_energy=50                      one value
  --condition incident_energy=10,20,50                several, in turn
  --condition incident_energy=log_uniform:1,1000      also uniform:LOW,HIGH  normal:MEAN,SIGMA  choice:A,B,...
  --conditions-of truth.h5                            class and conditions of the objects of a file, together

examples:
  foundation generate runs/quickstart/pretrain --dataset pythia_jets --objects 10000 --class top
  foundation generate models:/showers@best --objects 100000 --condition incident_energy=uniform:10,90 \\
      --format own --out photons.h5 --workers 8
  foundation generate MODEL --dataset pythia_jets --complete jets.h5 --keep 10
  accelerate launch --num_processes 8 -m foundation generate MODEL --dataset gflash_siw --objects 1000000
"""
DISTRIBUTIONS = ("uniform", "log_uniform", "normal", "choice")
SAMPLING = {
    "temperature": (float, "above 1 flattens the distributions of the codes, below 1 sharpens them (1)"),
    "top_k": (int, "draw from this many of the most probable codes"),
    "top_p": (float, "draw from the most probable codes that add up to this probability"),
    "min_p": (float, "draw from codes that are at least this times as probable as the most probable one"),
    "end_temperature": (float, "the log-odds of ending are divided by it (1)"),
    "min_points": (int, "fewest points of an object: before that many none ends"),
    "max_points": (int, "most points of an object (1.2 times the longest that was trained on)"),
}


def add_generate_command(commands: Any) -> None:
    """Add `generate` to the subparsers of `foundation`."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        "generate", help="generate objects with a trained model", description=HELP, epilog=EPILOG, formatter_class=raw
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--dataset", metavar="TAG", help="may be left out where the model knows one")
    parser.add_argument("--objects", metavar="N", type=int, help="how many; with --complete, those of its file")
    parser.add_argument("--seed", metavar="N", type=int, default=1, help="everything random follows from it (1)")
    _add_asked(parser.add_argument_group("what to generate"))
    _add_sampling(parser.add_argument_group("sampling"))
    _add_corrections(parser.add_argument_group("corrections, off unless asked for; what they do is in the report"))
    _add_output(parser.add_argument_group("output"))
    _add_work(parser.add_argument_group("work; the result does not depend on it"))
    parser.set_defaults(command=_generate)


def _add_asked(group: Any) -> None:
    group.add_argument("--class", dest="classes", metavar="NAME", nargs="+", default=[], help="in turn; `any` for open")
    group.add_argument("--condition", metavar="NAME=VALUE", nargs="+", action="extend", default=[], help="see below")
    group.add_argument("--conditions-of", metavar="FILE", help="file, or folder of files, whose objects say it")
    group.add_argument(
        "--take",
        choices=["in_turn", "shuffled", "drawn"],
        default="in_turn",
        help="how these are taken (in_turn)",
    )
    group.add_argument("--outside", action="store_true", help="allow conditions outside the range of the training")
    group.add_argument("--complete", metavar="FILE", help="begin with the first points of the objects of a file")
    group.add_argument("--keep", metavar="N", type=int, help="how many first points")


def _add_sampling(group: Any) -> None:
    for name, (kind, words) in SAMPLING.items():
        group.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar="X", type=kind, help=words)
    group.add_argument(
        "--stream", metavar="NAME.SETTING=X", nargs="+", action="extend", default=[],
        help="temperature, top_k, top_p or min_p of one stream of the codes, as energy.temperature=0.9",
    )  # fmt: skip


def _add_corrections(group: Any) -> None:
    group.add_argument("--reject-points", metavar="N", type=int, default=0, help="draw objects with fewer points again")
    group.add_argument(
        "--reject-energy", metavar="A,B,C[,S]", help="draw showers again whose energy sum is below S (A E^B + C)"
    )
    group.add_argument("--tries", metavar="N", type=int, default=10, help="how often an object is drawn at most (10)")
    group.add_argument("--calibrate", metavar="FILE", help="true showers whose mean energy response is to be matched")
    group.add_argument("--calibrate-bins", metavar="N", type=int, default=10, help="bins of incident energy (10)")
    group.add_argument("--calibrate-objects", metavar="N", type=int, default=2000, help="showers to fit on (2000)")


def _add_output(group: Any) -> None:
    group.add_argument("--out", metavar="FILE", type=Path, help="TAG.h5, or TAG with the suffix of the own format")
    group.add_argument(
        "--format", choices=["foundation", "own"], default="foundation",
        help="point clouds of this platform, or the dataset's own format",
    )  # fmt: skip
    group.add_argument(
        "--assume", metavar="NAME=NUMBER", nargs="+", action="extend", default=[],
        help="value for all objects of what the own format needs and the objects do not have, as jet_eta=0",
    )  # fmt: skip


def _add_work(group: Any) -> None:
    group.add_argument("--slots", metavar="N", type=int, default=0, help="objects sampled at the same time")
    group.add_argument("--workers", metavar="N", type=int, default=1, help="processes of this machine (1)")
    group.add_argument("--scheduler", metavar="ADDRESS", help="of a running Dask cluster, instead of processes")


def _generate(options: argparse.Namespace) -> int:
    from foundation.generate.campaign import run_campaign
    from foundation.generate.opening import card_of_model, datasets_of
    from foundation.registry.finding import find_model

    home = find_model(options.model)
    known = datasets_of(home)
    if options.dataset is None and len(known) != 1:
        raise DataError(f"{options.model} knows several datasets, name one with --dataset: {', '.join(known)}")
    card = card_of_model(home, options.dataset or known[0])
    outputs, settings = _outputs(options, card), _settings(options, home, card)
    report = run_campaign(
        home, settings, outputs,
        source=options.model, slots=options.slots, workers=options.workers, scheduler=options.scheduler,
    )  # fmt: skip
    if report is not None and is_main_process():
        for line in _lines(report, outputs):
            say(line)
    return OK


def _outputs(options: argparse.Namespace, card: DatasetCard) -> Outputs:
    from foundation.generate.campaign import Outputs
    from foundation.generate.own_format import own_suffix

    if options.format == "foundation":
        return Outputs(options.out or Path(f"{card.tag}.h5"))
    assume = {name: _number(value, f"--assume {name}={value}") for name, value in _pairs("--assume", options.assume)}
    return Outputs(None, options.out or Path(f"{card.tag}{own_suffix(card)}"), assume)


def _settings(options: argparse.Namespace, home: Path, card: DatasetCard) -> CampaignSettings:
    from pydantic import ValidationError

    from foundation.generate.opening import usual_max_points
    from foundation.generate.own_format import own_places
    from foundation.generate.request_config import CampaignSettings

    sampling: dict[str, Any] = {n: v for n in SAMPLING if (v := getattr(options, n)) is not None}
    if "max_points" not in sampling:
        most = usual_max_points(home, card.tag)
        sampling["max_points"] = most if options.format == "foundation" else min(most, own_places(card) or most)
    try:
        return CampaignSettings.model_validate(
            {
                "dataset": card.tag,
                "objects": _objects(options, card),
                "seed": options.seed,
                "sampling": sampling | {"streams": _streams(options.stream)},
                "asked": _asked(options),
                "complete": _complete(options),
                "reject": _reject(options),
                "calibrate": _calibrate(options),
            }
        )
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(str(part) for part in wrong["loc"] if str(part) not in ("float", "tuple", "str"))
        raise DataError(f"{place}: {wrong['msg'].removeprefix('Value error, ')}") from None


def _objects(options: argparse.Namespace, card: DatasetCard) -> int:
    from foundation.generate.conditions import clouds_of

    if options.objects is not None:
        return int(options.objects)
    if options.complete is None:
        raise DataError("say how many objects to generate: --objects N")
    return sum(len(clouds) for clouds in clouds_of(card, Path(options.complete)))


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    source = None if options.conditions_of is None else {"file": options.conditions_of, "take": options.take}
    conditions = {name: _values(name, text) for name, text in _pairs("--condition", options.condition)}
    return {"classes": options.classes, "source": source, "conditions": conditions, "outside": options.outside}


def _values(name: str, text: str) -> Any:
    """What follows NAME= in --condition."""
    if text == "any":
        return text
    kind, colon, numbers = text.rpartition(":")
    if colon and kind not in DISTRIBUTIONS:
        raise DataError(f"--condition {name}={text}: no distribution '{kind}'{did_you_mean(kind, DISTRIBUTIONS)}")
    values = _numbers(numbers, f"--condition {name}={text}")
    if colon:
        return {kind: values}
    return values[0] if len(values) == 1 else values


def _complete(options: argparse.Namespace) -> dict[str, Any] | None:
    if (options.complete is None) != (options.keep is None):
        raise DataError("partial objects need both: --complete FILE and --keep N")
    return None if options.complete is None else {"file": options.complete, "keep": options.keep}


def _reject(options: argparse.Namespace) -> dict[str, Any] | None:
    if not options.reject_points and options.reject_energy is None:
        return None
    envelope = None
    if options.reject_energy is not None:
        what = f"--reject-energy {options.reject_energy}"
        numbers = _numbers(options.reject_energy, what)
        if len(numbers) not in (3, 4):
            raise DataError(f"{what}: give three or four numbers, A,B,C or A,B,C,S of S (A E^B + C)")
        envelope = dict(zip(("factor", "power", "offset", "scale"), numbers, strict=False))
    return {"min_points": options.reject_points, "energy_sum": envelope, "tries": options.tries}


def _calibrate(options: argparse.Namespace) -> dict[str, Any] | None:
    if options.calibrate is None:
        return None
    return {"truth": options.calibrate, "bins": options.calibrate_bins, "objects": options.calibrate_objects}


def _streams(words: Sequence[str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for place, value in _pairs("--stream", words):
        stream, _, setting = place.rpartition(".")
        if not stream:
            raise DataError(f"--stream {place}={value}: write STREAM.SETTING=NUMBER, as energy.temperature=0.9")
        number = _number(value, f"--stream {place}={value}")
        found.setdefault(stream, {})[setting] = int(number) if number.is_integer() else number
    return found


def _pairs(option: str, words: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [word.partition("=") for word in words]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise DataError(f"{option} {name}{equals}{value}: write NAME=VALUE")
    return [(name, value) for name, _, value in pairs]


def _numbers(text: str, where: str) -> list[float]:
    return [_number(number, where) for number in text.split(",")]


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{where}: '{text}' is not a number") from None


def _lines(report: dict[str, Any], outputs: Outputs) -> list[str]:
    """What a user should know, in a few lines."""
    counts = report["counts"]
    said = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items() if name != "tokens")
    speed = report["objects_per_process_second"]
    lines = [f"{said}; {speed:.4g} objects per second and process"]
    if "rejection_rate" in report:
        lines.append(f"rejected: {100 * report['rejection_rate']:.2g} % of what was drawn")
    files = ", ".join(str(outputs.first.with_name(name)) for name in report["files"])
    return [*lines, f"{files}; report: {outputs.report}"]
