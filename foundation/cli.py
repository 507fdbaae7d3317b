"""The command line `foundation COMMAND ...`; heavy imports come late."""

from __future__ import annotations

import argparse
import errno
import json
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import foundation
from foundation.checkpoint_cli import add_checkpoint_commands
from foundation.console import is_main_process, say
from foundation.data_cli import add_data_commands, dataset_rows
from foundation.errors import FoundationError
from foundation.evaluate_cli import add_evaluate_commands, with_action
from foundation.generate_cli import add_generate_command
from foundation.likelihood_cli import add_likelihood_command
from foundation.plan_cli import add_plan_command
from foundation.shards_cli import add_shards_commands
from foundation.vocabulary_cli import add_vocabulary_commands

OK, BUG, MISTAKE, INTERRUPTED, TERMINATED, CLOSED_PIPE = 0, 1, 2, 130, 143, 141

DESCRIPTION = """\
Train, evaluate and share foundation models for particle physics: jets and calorimeter
showers in one vocabulary and one transformer. What to do is written in a recipe, a YAML
file that lists the stages: simulate, tokenizer, tokenize, pretrain, finetune, generate, ...
"""
EPILOG = """\
examples:
  foundation list recipes                       what is there
  foundation run quickstart                     from simulated events to a report, minutes on a laptop
  foundation run my.yaml --set pretrain.steps=500 --until pretrain
  foundation validate my.yaml                   all mistakes at once, with file and line
  foundation show my.yaml                       every setting, and which stage uses which
  foundation plan my.yaml --gpus 64 --nodes 8   memory, time and GPU-hours of a training, before it is run
  foundation data --help                        read, check, plot, import and write files of datasets
  foundation shards --help                      look at, check, merge and plan with tokenised data
  foundation evaluate test.h5 made.h5 --card jetclass   objects of any generator against truth, with a report
  foundation evaluate tokenizer --help          what tokenizers lose, in tables, figures and a report
  foundation generate MODEL --objects 10000     objects from a trained model, in the dataset's own format too
  foundation likelihood MODEL FILE              how likely a model finds the objects of a file
  foundation vocabulary --help                  look at, compare and grow the ids of models
  foundation checkpoint --help                  list checkpoints, make a model of one
  accelerate launch --num_processes 8 -m foundation run my.yaml

exit codes:
  0 fine   1 a bug of this program   2 a mistake in a recipe, a file or an option
  130 stopped by Ctrl-C   143 stopped by a batch system (SIGTERM)   85 the same in a training, after a
  checkpoint (SIGTERM or SIGUSR1); run the same command to continue
"""
RUN_HELP = """\
Run the stages of a recipe in their order. Results go to runs/NAME/STAGE, or below the folder
in the environment variable FOUNDATION_RUNS. A stage that is finished is skipped on the next
run; one that was stopped continues; one whose settings, seed, inputs or dataset cards changed
is made again, and so is what depends on it.
"""

RECIPE_HELP = "path of a YAML file, or name of a shipped recipe"


class Terminated(KeyboardInterrupt):
    """SIGTERM: what a batch system sends before it kills."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    options = _parser().parse_args(with_action(sys.argv[1:] if arguments is None else arguments))
    return exit_code(lambda: options.command(options))


def exit_code(work: Callable[[], int]) -> int:
    """Do the work of a command; what a user can mend or has caused is told in a line. Bugs keep their traceback."""
    try:
        with _termination_as_exception():
            code = work()
            sys.stdout.flush()
            return code
    except FoundationError as error:
        return _mistake(str(error))
    except KeyboardInterrupt as error:
        say("interrupted; run the same command to continue")
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    except BrokenPipeError:
        # `foundation show x | head`: nobody reads on, and Python's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            return _mistake(f"{error.filename or 'output'}: {error.strerror}")
        raise


def _mistake(text: str) -> int:
    """Print what is wrong on standard error; a rank above 0 says who it is."""
    rank = "" if is_main_process() else f"rank {os.environ['RANK']}: "
    lines = text if text.startswith("error") or _is_located(text) else f"error: {text}"
    print(rank + lines, file=sys.stderr, flush=True)
    return MISTAKE


def _is_located(text: str) -> bool:
    """True for `file:line: ...`, which editors and terminals make clickable only at the start of a line."""
    return re.match(r"\S+:\d+: ", text) is not None


@contextmanager
def _termination_as_exception() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that a stopped run closes its files and says how to go on."""
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            # A forked worker: ending it is the everyday business of its pool.
            os._exit(TERMINATED)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="foundation", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    version = f"foundation {foundation.__version__} (Python {platform.python_version()})"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run a recipe", description=RUN_HELP, formatter_class=raw)
    _add_recipe(run)
    part = run.add_mutually_exclusive_group()
    part.add_argument("--until", metavar="STAGE", help="stop after this stage")
    part.add_argument("--only", metavar="STAGE", help="run this stage alone; those that it uses must be finished")
    run.set_defaults(command=_run)

    validate = commands.add_parser("validate", help="check recipes, all mistakes at once, without running")
    validate.add_argument("recipes", metavar="RECIPE", nargs="+", help=RECIPE_HELP)
    _add_set(validate)
    validate.set_defaults(command=_validate)

    show = commands.add_parser("show", help="print a recipe with everything resolved, and the graph of its stages")
    _add_recipe(show)
    show.set_defaults(command=_show)

    listing = commands.add_parser("list", help="list recipes, datasets or registered models")
    listing.add_argument("what", choices=["recipes", "datasets", "models"])
    listing.set_defaults(command=_list)

    add_plan_command(commands)
    add_data_commands(commands)
    add_shards_commands(commands)
    add_evaluate_commands(commands)
    add_generate_command(commands)
    add_likelihood_command(commands)
    add_vocabulary_commands(commands)
    add_checkpoint_commands(commands)

    schema = commands.add_parser("schema", help="print the JSON schema of a recipe, for completion in an editor")
    schema.set_defaults(command=_schema)
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)
    _add_set(parser)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="change a setting: STAGE.KEY=VALUE or seed=VALUE, nested keys with dots, the value as in YAML",
    )


def _run(options: argparse.Namespace) -> int:
    from foundation.recipe.loading import load_recipe
    from foundation.recipe.running import run_recipe

    run_recipe(load_recipe(options.recipe, options.overrides), until=options.until, only=options.only)
    return OK


def _validate(options: argparse.Namespace) -> int:
    from foundation.recipe.loading import load_recipe

    code = OK
    for name in options.recipes:
        try:
            loaded = load_recipe(name, options.overrides)
        except FoundationError as error:
            code = _mistake(str(error))
        else:
            say(f"{name}: fine, {len(loaded.recipe.stages)} stages")
    return code


def _show(options: argparse.Namespace) -> int:
    from foundation.recipe.loading import load_recipe

    loaded = load_recipe(options.recipe, options.overrides)
    say(loaded.as_yaml())
    # As comments, so that the whole output is a recipe again.
    say("# stages, each below the last one that it uses")
    for line in stage_tree([(s.name, s.kind, list(s.references().values())) for s in loaded.recipe.stages]):
        say(f"#   {line}")
    return OK


def stage_tree(stages: Sequence[tuple[str, str, Sequence[str]]]) -> list[str]:
    """Lines of a text tree from (name, kind, names of used stages or models), in the order of the recipe."""
    order = {name: i for i, (name, _, _) in enumerate(stages)}
    below: dict[str | None, list[int]] = {}
    for i, (_, _, used) in enumerate(stages):
        parent = max((name for name in used if name in order), key=lambda name: order[name], default=None)
        below.setdefault(parent, []).append(i)

    rows: list[tuple[str, str, str]] = []

    def add(parent: str | None, depth: int) -> None:
        for i in below.get(parent, []):
            name, kind, used = stages[i]
            branch = "  " * (depth - 1) + "+-" if depth else ""
            rows.append((branch + name, kind, ", ".join(dict.fromkeys(used))))
            add(name, depth + 1)

    add(None, 0)
    return _columns([(name, kind, f"uses {used}" if used else "") for name, kind, used in rows])


def _list(options: argparse.Namespace) -> int:
    rows = {"recipes": _recipe_rows, "datasets": dataset_rows, "models": _model_rows}[options.what]()
    for line in _columns(rows) or [f"no {options.what} yet"]:
        say(line)
    return OK


def _recipe_rows() -> list[tuple[str, ...]]:
    from foundation.recipe.loading import shipped_recipes

    return [(name, _first_words(path)) for name, path in shipped_recipes().items()]


def _first_words(path: Path) -> str:
    """The first sentence of a recipe's description, or its first comment."""
    from foundation.recipe.yaml_source import parse_yaml

    text = path.read_text(encoding="utf-8")
    data = parse_yaml(text, path.name)
    described = str(data.get("description", "")) if isinstance(data, dict) else ""
    comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    words = described or next((line for line in comments if line and not line.startswith("yaml-language-server")), "")
    return " ".join(words.split()).partition(". ")[0].rstrip(".")


def _model_rows() -> list[tuple[str, ...]]:
    from foundation.registry.models import list_models

    return [_model_row(row) for row in list_models()]


def _model_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    scores = ", ".join(f"{name} {value:.4g}" for name, value in row["scores"].items())
    aliases = " ".join(f"@{alias}" for alias in row["aliases"])
    return f"models:/{row['name']}/{row['version']}", aliases, row["task"], row["datasets"], row["created"], scores


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns, two spaces apart."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _schema(options: argparse.Namespace) -> int:
    from foundation.recipe.schema import Recipe

    schema = Recipe.model_json_schema()
    path = {"type": "string"}
    schema["properties"]["extends"] = {
        "anyOf": [path, {"type": "array", "items": path}],
        "description": "Recipe(s) that this one is laid over, relative to this file; stages merge by their name.",
    }
    say(json.dumps(schema, indent=1))
    return OK
