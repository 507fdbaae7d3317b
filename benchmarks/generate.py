"""How many objects per second our sampler generates, beside public code, in one run on one machine.

    python benchmarks/generate.py [--peers FOLDER] [--files jets/*.h5] [--turns 3]
                                  [--tables jets,showers,hits,bound,latency,gpu]

Models have the sizes of OmniJet-alpha (`jets`), OmniJet-alpha_C (`showers`) and SPADE (`hits`: four delayed streams),
and random weights: nothing but the moment of the end depends on weights, and the end comes at the lengths of jets of
--files (or such as the card's) and of simulated showers. Each side runs in a process of its own; they take turns, and
the median turn counts. `sh benchmarks/peers.sh FOLDER` makes the peers' environments (ONLY=omnijet, gpt or spade).
`bound`: a token of ours beside what the machine can do; `latency`: one object alone; `gpu`: left out without one.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from coders.ours import SAME_SIZES, fit_all
from coders.samples import random_jets, real_jets
from generation import bounds, gpu, ours
from generation.law import Law
from generation.lines import Line, Sides, beside, table, take_turns
from generation.sizes import Lengths
from stream import load, machine
from training.samples import point_counts
from training.sizes import WORKLOADS

TABLES = ("jets", "showers", "hits", "bound", "latency", "gpu")
TARGETS = {"jets": 150, "showers": 1000, "hits": 2}
HITS = ((1, 200), (16, 500), (516, 64))
"""Showers at once, as SPADE's sampler makes them (516 is its default), and hits of each."""
SLOTS = {"jets": 512, "showers": 128}
HUGGING_FACE = {"jets": 64, "showers": 8}
TOKENIZER_STEPS = 5
LEGEND = """
One thread each, wall time; tokens are real ones, up to the end of their object. "decoded": to constituents in physical
units, by a VQ-VAE of OmniJet-alpha's sizes on both sides."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="of jets of the card pythia_jetclass")
    parser.add_argument("--tables", default=",".join(TABLES), help="with commas between them")
    parser.add_argument("--jets", type=int, default=2048, help="of ours in a turn")
    parser.add_argument("--showers", type=int, default=128, help="of ours in a turn")
    parser.add_argument("--peer-jets", type=int, default=8, help="a batch of OmniJet-alpha's")
    parser.add_argument("--most-hits", type=int, default=WORKLOADS["showers"].longest, help="cut showers there")
    parser.add_argument("--hits", default=",".join(f"{b}x{n}" for b, n in HITS), help="showers times hits, for SPADE")
    parser.add_argument("--slots", default="1,100,10000", help="objects at once in the table of the bound")
    parser.add_argument("--bound-tokens", type=int, default=30_000, help="most tokens of a line of that table")
    parser.add_argument("--alone", type=int, default=100, help="jets for the latency; a tenth as many showers")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", type=Path, help="folder that peers.sh filled")
    options = parser.parse_args()
    options.tables = options.tables.split(",")
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"no table '{unknown.pop()}': choose from {', '.join(TABLES)}")
    print(f"{machine()}; torch {torch.__version__}", flush=True)
    home = Path(tempfile.mkdtemp())
    try:
        lengths = {sample: lengths_of(sample, options, home) for sample in ("jets", "showers")}
        for name in options.tables:
            print(f"\n{name}; {load()}", flush=True)
            RUN[name](options, home, lengths)
    finally:
        shutil.rmtree(home)


def lengths_of(sample: str, options: argparse.Namespace, home: Path) -> Lengths:
    """How objects of this sample end; `home` keeps it for all sides."""
    number = 1000 if sample == "jets" else 200
    longest = min(WORKLOADS[sample].longest - 2, options.most_hits)
    lengths = Lengths.like(point_counts(sample, options.files, number).clip(max=longest), longest)
    lengths.save(home / f"{sample}.json")
    return lengths


def jets(options: argparse.Namespace, home: Path, lengths: dict[str, Lengths]) -> None:
    """OmniJet-alpha's sizes."""
    print(described("jets", lengths["jets"]), flush=True)
    clouds = real_jets(options.files, 64) if options.files else random_jets(64)
    problem = fit_all(home, [SAME_SIZES], {"ragged": clouds}, TOKENIZER_STEPS).get(SAME_SIZES, "")
    at_once, few = min(SLOTS["jets"], options.jets), options.peer_jets
    name = f"OmniJet-alpha's generate_batch({few})"
    with sides_of("jets", options, home) as sides:
        own = own_lines(sides, at_once, "ends", options.jets)
        decoded = own_lines(sides, at_once, "ends decoded", options.jets, "constituents")
        for one in decoded:
            one.problem = problem
        peer = sides.line(name, "omnijet", "ends", few)
        theirs = sides.line(f"{name}, decoded", "omnijet", "ends decoded", few, "constituents")
        others = hugging_face(sides, "jets")
        lines = [*own, *decoded, peer, theirs, *others]
        take_turns(lines, options.turns, "jets")
    findings = [beside(one, peer, TARGETS["jets"]) for one in own]
    findings += [beside(one, theirs) for one in decoded]
    findings += [beside(one, other) for one, other in zip(own, others, strict=True)]
    print("\n".join([table(lines, "jets", "tokens", peer), "", *filter(None, findings), LEGEND]), flush=True)


def showers(options: argparse.Namespace, home: Path, lengths: dict[str, Lengths]) -> None:
    """OmniJet-alpha_C's sizes."""
    print(described("showers", lengths["showers"]), flush=True)
    with sides_of("showers", options, home) as sides:
        own = own_lines(sides, min(SLOTS["showers"], options.showers), "ends", options.showers)
        peer = sides.line("OmniJet-alpha_C's generate_batch(1)", "omnijet", "endless", 16, "short")
        others = hugging_face(sides, "showers")
        lines = [*own, peer, *others]
        law = Law(peer, lengths["showers"].draw(1000), lengths["showers"].longest)
        take_turns(lines, options.turns, "showers", lambda one: law.turn() if one is peer else one.turn())
    findings = [law.report(), *(beside(one, peer, TARGETS["showers"]) for one in own)]
    findings += [beside(one, other) for one, other in zip(own, others, strict=True)]
    print("\n".join([table(lines, "showers", "tokens", peer), "", *filter(None, findings)]), flush=True)


def hits(options: argparse.Namespace, home: Path, lengths: dict[str, Lengths]) -> None:
    """SPADE's sizes: showers of exactly so many hits."""
    with sides_of("hits", options, home) as sides:
        for words in options.hits.split(","):
            at_once, each = (int(word) for word in words.split("x"))
            own = own_lines(sides, at_once, str(each), at_once)
            peers = [
                sides.line(f"SPADE, energy as {e}", "spade", f"{each} {e}", at_once) for e in ("tokens", "mixture")
            ]
            take_turns([*own, *peers], options.turns, f"hits, {words}")
            print(f"\n{at_once} showers at once, {each} hits each:")
            findings = [beside(one, peer, TARGETS["hits"]) for one in own for peer in peers]
            print(
                "\n".join([table([*own, *peers], "showers", "hits", peers[0]), "", *filter(None, findings)]), flush=True
            )


def sides_of(sample: str, options: argparse.Namespace, home: Path) -> Sides:
    """The processes of a table."""
    return Sides(sample, options.threads, home, options.peers)


def own_lines(sides: Sides, slots: int, points: str, size: int, task: str = "generate") -> list[Line]:
    """Ours, in both types."""
    decoded = ", decoded" if task == "constituents" else ""
    return [sides.line(f"ours, {p}{decoded}", "ours", f"{p} {slots} {points}", size, task) for p in ours.TYPES]


def hugging_face(sides: Sides, sample: str) -> list[Line]:
    """GPT-2 with a static cache, in both types."""
    size = HUGGING_FACE[sample]
    return [sides.line(f"Hugging Face GPT-2, static cache, {size} at once, {p}", "gpts", p, size) for p in ours.TYPES]


def bound(options: argparse.Namespace, home: Path, lengths: dict[str, Lengths]) -> None:
    """A token beside what the machine can do."""
    slots = [int(n) for n in options.slots.split(",")]
    for sample, law in lengths.items():
        print(bounds.per_token(sample, round(law.mean), slots, options.bound_tokens, options.threads, home), flush=True)
    print(bounds.LEGEND, flush=True)


def latency(options: argparse.Namespace, home: Path, lengths: dict[str, Lengths]) -> None:
    """One object alone."""
    for sample, number in (("jets", options.alone), ("showers", max(1, options.alone // 10))):
        print(bounds.latency(sample, number, options.threads, home), flush=True)


def described(sample: str, law: Lengths) -> str:
    """How long objects are."""
    return (f"{WORKLOADS[sample].codes:,} codes; {law.mean:.0f} points on average: {law.shortest} at least, then each "
            f"is the last with probability {law.stop:.2g}, cut at {law.longest} ({cut_share(law):.0f} %)")  # fmt: skip


def cut_share(law: Lengths) -> float:
    """Percentage of objects that reach the longest length."""
    return 100 * float(np.exp((law.longest - law.shortest) * np.log1p(-law.stop)))


RUN = {"jets": jets, "showers": showers, "hits": hits, "bound": bound, "latency": latency,
       "gpu": lambda options, home, lengths: print(gpu.report(home), flush=True)}  # fmt: skip


if __name__ == "__main__":
    main()
