"""The commands `foundation data ...`: look at, check, fetch, import and write files. Each imports what it needs."""

from __future__ import annotations

import argparse
import glob
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.console import say
from foundation.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from foundation.data.cards import DatasetCard
    from foundation.data.point_clouds import PointClouds

OK, PROBLEMS = 0, 2
OBJECTS_AT_ONCE = 5000

DESCRIPTION = """\
Read files of published datasets, or your own, by their dataset cards: YAML files that say what
is in them. CARD is the name of a shipped card (`foundation data list`) or the path of a YAML file.
FILES are files, quoted globs ('data/*.root', also '**'), or folders: then all files below that
are named as the card says.
"""
EPILOG = """\
examples:
  foundation data inspect unknown.h5                  what is in it, and which card fits
  foundation data show jetclass                       where it comes from, what its numbers mean
  foundation data check jetclass 'data/*.root'        NaN, wrong units, duplicates, what cannot be read
  foundation data import jetclass data --to imported/jetclass --workers 8
  foundation data write jetnet30 generated/*.h5 --to generated_g.hdf5

exit codes:
  0 fine   2 a mistake in a card, a file or an option, and of `check` also: it found errors
"""
CHECK_HELP = """\
Read files and list what is wrong: a table with severity, count, share and the number of an object
for example. Errors make data unusable (files that cannot be read, NaN, negative energies, cells
outside of the detector); warnings are odd (values out of the card's range, units that look wrong,
duplicates); the rest is for information. Exit code 0: no errors; 2: errors were found.
"""
IMPORT_HELP = """\
Write the objects of files as the platform's point clouds, DIR/SPLIT/*.h5, for a recipe's stage
`import`. Splits are those of the card, unless --split puts all files into one. The result is the
same for any number of workers; run the same command again to continue one that was stopped.
"""
WRITE_HELP = """\
Write point clouds to one file in the format of CARD. FILES are the platform's own (*.h5: imported,
simulated or generated), or with --from files in the format of another card.
"""
FILES_HELP = "files, quoted globs, or folders"


def add_data_commands(commands: Any) -> None:
    """Add `data` and its commands to the subparsers of `foundation`."""
    raw = argparse.RawDescriptionHelpFormatter
    data = commands.add_parser(
        "data", help="look at, check, fetch, import and write files of datasets", description=DESCRIPTION,
        epilog=EPILOG, formatter_class=raw,
    )  # fmt: skip
    actions = data.add_subparsers(metavar="ACTION", required=True)

    def add(name: str, command: Any, words: str, text: str | None = None) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = actions.add_parser(
            name, help=words, description=text or words, formatter_class=raw
        )
        parser.set_defaults(command=command)
        return parser

    add("list", _list, "list the dataset cards that ship")
    show = add("show", _show, "print all that a card says")
    show.add_argument("card", metavar="CARD")
    inspect = add("inspect", _inspect, "what is in a file, which cards fit, and first statistics")
    inspect.add_argument("file", metavar="FILE", nargs="+")
    check = _add_files(add("check", _check, "look for wrong numbers and damaged files", CHECK_HELP))
    check.add_argument("--json", metavar="FILE", type=Path, help="write the findings for machines, too")
    plot = _add_files(add("plot", _plot, "draw histograms of features and objects, and a few objects"))
    plot.add_argument("--to", metavar="DIR", type=Path, default=Path("plots"), help="folder of the PNG files (plots)")
    plot.add_argument("--objects", metavar="N", type=_positive, default=5000, help="how many objects are drawn (5000)")
    _add_import(_add_files(add("import", _import, "write files as point clouds for a recipe", IMPORT_HELP)))
    _add_write(_add_files(add("write", _write, "write point clouds in the format of a card", WRITE_HELP)))
    download = add("download", _download, "fetch the files of a card; a transfer that broke off goes on")
    download.add_argument("card", metavar="CARD")
    download.add_argument("--to", metavar="DIR", type=Path, help="folder of the files (data/CARD)")
    download.add_argument("--only", metavar="NAME", nargs="+", default=[], help="names or patterns of files")


def _add_files(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("card", metavar="CARD", help="name of a shipped card, or path of a YAML file")
    parser.add_argument("files", metavar="FILES", nargs="+", help=FILES_HELP)
    return parser


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", metavar="DIR", type=Path, required=True, help="folder of the imported files")
    parser.add_argument("--split", metavar="NAME", help="put all files into this split")
    parser.add_argument("--workers", metavar="N", type=_positive, default=1, help="processes on this machine (1)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="use a running Dask cluster, tcp://HOST:PORT")
    parser.add_argument("--skip-bad", action="store_true", help="leave out what is wrong; count and list it")
    parser.add_argument("--features", metavar="NAME", nargs="+", default=[], help="only these features of the card")


def _add_write(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", metavar="PATH", type=Path, required=True, help="file to write")
    parser.add_argument("--from", dest="source", metavar="CARD", help="card that describes FILES")
    parser.add_argument(
        "--assume", metavar="NAME=VALUE", nargs="+", action="extend", default=[],
        help="a quantity of all objects that the format needs and the files have not: jet_eta=0",
    )  # fmt: skip


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def dataset_rows() -> list[tuple[str, ...]]:
    """Name, domain, container and title of every card that ships."""
    from foundation.data.cards import card_paths, load_card

    cards = {name: load_card(name) for name in card_paths()}
    return [(n, c.domain, c.format.container if c.format else "simulated", c.title) for n, c in cards.items()]


def files_of(card: DatasetCard, words: Sequence[str], own: bool = False) -> list[Path]:
    """The files that words on a command line mean: files, globs, or folders. Each once, those of a word sorted.

    own: in folders only the platform's own files are looked for; else those named as the card says come first

    Raises DataError where there is nothing.
    """
    found: dict[Path, None] = {}
    for word in words:
        if Path(word).exists():
            paths = [Path(word)]
        else:
            paths = [Path(name) for name in sorted(glob.glob(word, recursive=True))]
            if not paths:
                raise DataError(f"{word}: no such file or folder{_nearest(word)}")
        for path in paths:
            found |= dict.fromkeys(_in_folder(card, path, own) if path.is_dir() else [path])
    return list(found)


def _nearest(word: str) -> str:
    """Names in the same folder that are like the word's."""
    path = Path(word)
    if glob.has_magic(word) or not path.parent.is_dir():
        return ""
    names = [p.name for p in path.parent.iterdir()][:1000]
    hint = did_you_mean(path.name, names)
    return hint if "did you mean" in hint else ""


def _in_folder(card: DatasetCard, folder: Path, own: bool) -> list[Path]:
    from foundation.data.files import is_point_cloud_file

    pattern = None if own or card.files is None else card.files.pattern
    if pattern is not None:
        for wanted in (pattern, f"**/{Path(pattern).name}"):
            paths = sorted(path for path in folder.glob(wanted) if path.is_file())
            if paths:
                return paths
    paths = sorted(path for path in folder.glob("**/*.h5") if is_point_cloud_file(path))
    if not paths:
        named = "has no point clouds of this platform" if pattern is None else f"has no file named like '{pattern}'"
        raise DataError(f"{folder}: {named}; name files, or a glob in quotes")
    return paths


def _list(options: argparse.Namespace) -> int:
    from foundation.data.describe.text_table import table_lines

    for line in table_lines(("card", "domain", "files", "dataset"), dataset_rows()):
        say(line)
    return OK


def _show(options: argparse.Namespace) -> int:
    from foundation.data.cards import load_card
    from foundation.data.describe.card_pages import card_lines

    for line in card_lines(load_card(options.card)):
        say(line)
    return OK


def _inspect(options: argparse.Namespace) -> int:
    from foundation.data.inspect.inspection import inspect

    for number, name in enumerate(options.file):
        if number:
            say()
        for line in inspect(Path(name)).lines():
            say(line)
    return OK


def _check(options: argparse.Namespace) -> int:
    from foundation.data.cards import load_card
    from foundation.data.inspect.checking import check

    card = load_card(options.card)
    result = check(card, files_of(card, options.files))
    for line in result.lines():
        say(line)
    if options.json is not None:
        result.write_json(options.json)
    return PROBLEMS if result.number("error") else OK


def _plot(options: argparse.Namespace) -> int:
    from foundation.data.cards import load_card
    from foundation.evaluate.dataset_plots import plot_dataset

    card = load_card(options.card)
    clouds = first_objects(card, files_of(card, options.files), options.objects)
    for path in plot_dataset(card, clouds, options.to):
        say(str(path))
    return OK


def first_objects(card: DatasetCard, paths: Sequence[Path], wanted: int) -> PointClouds:
    """The first objects of the files, as many of each; objects that are wrong are left out and named."""
    from foundation.data.formats.reading import read_first

    clouds, report = read_first(card, paths, wanted)
    for line in report.lines():
        say(line)
    return clouds


def _import(options: argparse.Namespace) -> int:
    from foundation.data.cards import load_card
    from foundation.data.importing import import_dataset, splits_of

    card = load_card(options.card)
    paths = files_of(card, options.files)
    files = {options.split: paths} if options.split else splits_of(card, paths)
    summary = import_dataset(
        card, files, options.to, workers=options.workers, scheduler=options.scheduler,
        skip_bad=options.skip_bad, features=options.features,
    )  # fmt: skip
    for line in summary.lines():
        say(line)
    return OK


def _write(options: argparse.Namespace) -> int:
    from foundation.data.cards import load_card
    from foundation.data.formats.writing import leaves_places_open, write_file

    card = load_card(options.card)
    assume = dict(_assumed(word) for word in options.assume)
    source: DatasetCard | None = load_card(options.source) if options.source else None
    paths = files_of(source or card, options.files, own=source is None)

    def clouds() -> Iterator[PointClouds]:
        return _own_clouds(paths) if source is None else _clouds_of_card(source, paths)

    # A padded array is as long as the longest object of all files, which takes a first pass over them.
    longest = max(int(part.counts.max(initial=0)) for part in clouds()) if leaves_places_open(card) else None
    described_by = source or _card_of_tag(next(clouds()).tag)
    done = Counter[str]()
    for line in write_file(card, _counted(clouds(), done), options.to, assume, described_by, longest):
        say(f"note: {line}")
    say(f"{options.to}: {done['objects']:,} objects, {done['points']:,} points")
    return OK


def _counted(parts: Iterable[PointClouds], done: Counter[str]) -> Iterator[PointClouds]:
    for part in parts:
        done.update(objects=len(part), points=len(part.points))
        yield part


def _clouds_of_card(card: DatasetCard, paths: Sequence[Path]) -> Iterator[PointClouds]:
    from foundation.data.formats.reading import read_in_ranges

    return (clouds for path in paths for clouds, _ in read_in_ranges(card, path))


def _own_clouds(paths: Sequence[Path]) -> Iterator[PointClouds]:
    """The clouds of the platform's own files, some thousand at a time."""
    from foundation.data.files import is_point_cloud_file, point_cloud_file_size, read_point_clouds

    for path in paths:
        if not is_point_cloud_file(path):
            raise DataError(
                f"{path}: not a file of point clouds of this platform; say with --from CARD which card describes it"
            )
        size = point_cloud_file_size(path)
        for start in range(0, size.clouds, OBJECTS_AT_ONCE):
            yield read_point_clouds(path, start, min(start + OBJECTS_AT_ONCE, size.clouds))


def _card_of_tag(tag: str) -> DatasetCard | None:
    """The shipped card with this tag: its classes and categories are matched by name with those of the new file."""
    from foundation.data.cards import card_paths, load_card

    return next((card for card in map(load_card, card_paths()) if card.tag == tag), None)


def _assumed(word: str) -> tuple[str, float]:
    name, _, value = word.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise DataError(f"--assume {word}: write NAME=NUMBER, for example jet_eta=0") from None


def _download(options: argparse.Namespace) -> int:
    from foundation.data.cards import load_card
    from foundation.data.download import download

    card = load_card(options.card)
    paths = download(card, options.to or Path("data") / card.name, options.only)
    say(f"{len(paths)} files are there; next: foundation data check {options.card} {paths[0].parent if paths else ''}")
    return OK
