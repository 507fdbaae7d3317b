"""The commands `foundation checkpoint ...`: list the checkpoints of a training, make a model of one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from foundation.console import say

OK, PROBLEMS = 0, 2
DESCRIPTION = """\
Look at the checkpoints that a stage leaves while it trains, and make a model of one. FOLDER is
the folder of the stage, or of one of its checkpoints.
"""
EPILOG = """\
examples:
  foundation checkpoint list runs/quickstart/pretrain --check
  foundation checkpoint export runs/quickstart/pretrain --to early_model
  foundation checkpoint export runs/quickstart/pretrain --best --to best_model
"""
EXPORT_HELP = """\
Write one model folder (model.safetensors, model.json, vocabulary.json, cards and tokenizers) of
a checkpoint. The processes that wrote it are not needed, and it does not matter how many they
were, nor which ZeRO stage they used.
"""


def add_checkpoint_commands(commands: Any) -> None:
    """Add `checkpoint` and its commands to the subparsers of `foundation`."""
    raw = argparse.RawDescriptionHelpFormatter
    checkpoint = commands.add_parser(
        "checkpoint", help="list checkpoints, make a model of one", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=raw,
    )  # fmt: skip
    actions = checkpoint.add_subparsers(metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="what is there")
    listing.add_argument("folder", metavar="FOLDER", type=Path)
    listing.add_argument("--check", action="store_true", help="compare every file with its sha256")
    listing.set_defaults(command=_list)

    export = actions.add_parser(
        "export", help="make a model folder of one", description=EXPORT_HELP, formatter_class=raw
    )
    export.add_argument("folder", metavar="FOLDER", type=Path)
    export.add_argument("--to", metavar="FOLDER", type=Path, required=True, help="new folder of the model")
    which = export.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="the checkpoint of this step, not the newest")
    which.add_argument("--best", action="store_true", help="the one with the smallest validation loss")
    export.add_argument("--average", action="store_true", help="the moving average of the weights")
    export.set_defaults(command=_export)


def _list(options: argparse.Namespace) -> int:
    from foundation.train.checkpoint import MARKER, committed, damage, read_about
    from foundation.train.export import checkpoints_in

    one = (options.folder / MARKER).is_file()
    problems = 0
    for folder in [options.folder] if one else committed(checkpoints_in(options.folder)):
        problem = damage(folder) if options.check else ""
        problems += bool(problem)
        about = {} if problem else read_about(folder)
        loss = about.get("validation_loss")
        words = [
            problem or f"{about['tokens']:,} tokens",
            "" if problem else f"written by {about['world']} process(es)",
            "" if loss is None else f"validation loss {loss:.4f}",
            "checked" if options.check and not problem else "",
        ]
        say(f"{folder.name}: {', '.join(word for word in words if word)}")
    return PROBLEMS if problems else OK


def _export(options: argparse.Namespace) -> int:
    from foundation.train.export import chosen_checkpoint, export_checkpoint

    checkpoint = chosen_checkpoint(options.folder, options.step, options.best)
    about = export_checkpoint(checkpoint, options.to, options.average)
    say(f"{options.to}: the model of {checkpoint.name}, {about['tokens']:,} tokens")
    return OK
