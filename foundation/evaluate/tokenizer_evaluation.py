"""Tokenizers on the same sample: measure each, test the loss of information, write numbers, figures and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from foundation.data.cards import DatasetCard
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.evaluate.figures import Picture
from foundation.evaluate.information import ORIGINAL, InformationLoss, information_loss
from foundation.evaluate.metrics_file import write_json
from foundation.evaluate.observables import JET_OBSERVABLES, SHOWER_OBSERVABLES
from foundation.evaluate.report import RunDescription
from foundation.evaluate.tokenizer_plots import (
    Distortion,
    distortion_picture,
    feature_picture,
    object_picture,
    usage_picture,
)
from foundation.evaluate.tokenizer_report import (
    COLUMNS,
    distortions,
    information_table,
    markdown,
    rate_table,
    write_tokenizer_report,
)
from foundation.evaluate.tokenizers import Quality, Truth, decoded_clouds, measure, one_thread
from foundation.tokens.tokenizer import Tokenizer

SCHEMA = "foundation/tokenizer-metrics/1"
METRICS, REPORT, TABLE = "tokenizer_metrics.json", "tokenizers.html", "tokenizers.md"


@dataclass(frozen=True)
class InformationTest:
    """The test of information loss: networks are trained on `train` and tested on `test`, original and decoded."""

    train: PointClouds
    test: PointClouds
    networks: tuple[str, ...] = ("deep_sets", "transformer")
    epochs: int = 5
    seeds: int = 1


@dataclass(frozen=True)
class TokenizerEvaluation:
    """What was found, and the files that say so.

    losses: of the test of information loss, the original first; none where it was not asked for
    table:  lines of Markdown
    """

    card: DatasetCard
    qualities: tuple[Quality, ...]
    losses: tuple[InformationLoss, ...]
    points: tuple[Distortion, ...]
    problems: tuple[str, ...]
    table: tuple[str, ...]
    report: Path
    metrics: Path

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """The headline numbers of each tokenizer, only finite ones; relative ones as shares, not in per cent.

        `OBSERVABLE_{width,bias}`, `gap_NETWORK`, `bits`, `entropy_bits`, `tokens`, `used`, `encode_per_second`,
        `decode_per_second`
        """
        found: dict[str, dict[str, float]] = {}
        for q in self.qualities:
            rate = q.rate
            scores = {"tokens": rate.tokens, "bits": rate.bits, "entropy_bits": rate.entropy_bits}
            scores["used"] = min(stream.used for stream in q.streams)
            scores |= {"encode_per_second": q.encode_per_second, "decode_per_second": q.decode_per_second}
            for row in (row for row in q.object_rows if row.group == "all"):
                scores[f"{row.observable}_width"] = row.residuals.width.value
                scores[f"{row.observable}_bias"] = row.residuals.bias.value
            scores |= {f"gap_{x.network}": x.gap.value for x in self.losses if x.tokenizer == q.name}
            found[q.name] = {name: float(value) for name, value in scores.items() if np.isfinite(value)}
        return found

    @property
    def headline(self) -> list[str]:
        """A line on each tokenizer."""
        lines = []
        for point in self.points:
            lost = ", ".join(f"{name} {value.value:.3g}" for name, value in point.losses.items())
            lines.append(f"{point.tokenizer}: {point.entropy_bits:.0f} bits an object" + (f", {lost}" if lost else ""))
        return lines

    @property
    def line(self) -> str:
        """All of it in a line: which tokenizer loses least, and the first problem."""
        heading = COLUMNS[self.card.domain][0].heading
        known = [(p.losses[heading].value, p.tokenizer) for p in self.points if heading in p.losses]
        words = f"{len(self.qualities)} tokenizers on {self.qualities[0].objects} objects"
        if known:
            words += f"; least {heading}: {min(known)[1]}, {min(known)[0]:.3g}"
        return words + (f"; {len(self.problems)} problems: {self.problems[0]}" if self.problems else "")


def evaluate_tokenizers(
    folder: Path,
    run: RunDescription,
    card: DatasetCard,
    clouds: PointClouds,
    tokenizers: Mapping[str, Tokenizer],
    information: InformationTest | None = None,
    *,
    seed: int = 0,
    pdf: bool = False,
    on_progress: Callable[[str], None] = lambda line: None,
) -> TokenizerEvaluation:
    """Write tokenizer_metrics.json, tokenizers.md, tokenizers.html and figures/*.png (and PDF) into `folder`.

    clouds:     held-out objects that all tokenizers are measured on
    tokenizers: by the name that they get in tables
    on_progress: called with a line after each piece of work

    A tokenizer that cannot be measured becomes a sentence in `problems`, and so does a test of information that cannot
    be done. DataError when no tokenizer can be measured.
    """
    problems: list[str] = []
    truth = Truth.of(card, clouds)
    qualities = _measured(truth, tokenizers, seed, problems, on_progress)
    losses: list[InformationLoss] = []
    if information is not None:
        kept = {q.name: tokenizers[q.name] for q in qualities}
        losses = _information(card, kept, information, seed, problems, on_progress)

    points = distortions(qualities, losses, card.domain)
    table = markdown(*rate_table(qualities, losses, card.domain))
    if losses:
        table += ["", *markdown(*information_table(losses))]
    pictures = _pictures(truth, qualities, points, folder / "figures", pdf)
    metrics = _write_metrics(folder / METRICS, card, qualities, losses, problems, seed)
    (folder / TABLE).write_text("\n".join(table) + "\n")
    report = write_tokenizer_report(folder / REPORT, run, card, qualities, losses, pictures, problems)
    return TokenizerEvaluation(
        card, tuple(qualities), tuple(losses), points, tuple(problems), tuple(table), report, metrics
    )


def _measured(
    truth: Truth,
    tokenizers: Mapping[str, Tokenizer],
    seed: int,
    problems: list[str],
    on_progress: Callable[[str], None],
) -> list[Quality]:
    """Qualities by rising bits per object."""
    qualities = []
    for name, tokenizer in tokenizers.items():
        try:
            qualities.append(measure(name, tokenizer, truth, seed))
        except DataError as error:
            problems.append(f"{name}: {error}")
            on_progress(f"{name}: not measured, {error}")
            continue
        on_progress(f"{name}: {len(truth.clouds)} objects measured")
    if not qualities:
        raise DataError("no tokenizer could be measured: " + (" ".join(problems) or "none was given"))
    return sorted(qualities, key=lambda quality: quality.rate.entropy_bits)


def _information(
    card: DatasetCard,
    tokenizers: Mapping[str, Tokenizer],
    test: InformationTest,
    seed: int,
    problems: list[str],
    on_progress: Callable[[str], None],
) -> list[InformationLoss]:
    """The loss of information on the features that all tokenizers code."""
    common = [f for f in card.feature_names if all(f in (g.name for g in t.features) for t in tokenizers.values())]

    def only_common(clouds: PointClouds) -> PointClouds:
        return clouds.with_columns(common, clouds.condition_names, card.tag)

    def both(name: str, tokenizer: Tokenizer) -> tuple[PointClouds, PointClouds]:
        train, truth = (decoded_clouds(tokenizer, c, s) for c, s in ((test.train, seed + 1), (test.test, seed)))
        on_progress(f"{name}: {len(train) + len(truth)} objects decoded for the test of information")
        return only_common(train), only_common(truth)

    try:
        if not common:
            raise DataError("the tokenizers have no feature in common")
        with one_thread():
            decoded = {name: both(name, tokenizer) for name, tokenizer in tokenizers.items()}
        return information_loss(
            card,
            only_common(test.train),
            only_common(test.test),
            decoded,
            networks=test.networks,
            epochs=test.epochs,
            seeds=test.seeds,
            on_progress=on_progress,
        )
    except DataError as error:
        problems.append(f"loss of information: {error}")
        return []


def _pictures(
    truth: Truth, qualities: Sequence[Quality], points: Sequence[Distortion], folder: Path, pdf: bool
) -> dict[str, list[Picture]]:
    """Figures of each section of the report."""
    card = truth.card
    observables = JET_OBSERVABLES if card.domain == "jet" else SHOWER_OBSERVABLES
    drawn = {
        "rates": distortion_picture(points, folder, pdf),
        "objects": object_picture(qualities, observables, folder, pdf),
        "features": feature_picture(qualities, card.features, folder, pdf),
        "codes": usage_picture(qualities, folder, pdf),
    }
    return {section: [] if picture is None else [picture] for section, picture in drawn.items()}


def _write_metrics(
    path: Path,
    card: DatasetCard,
    qualities: Sequence[Quality],
    losses: Sequence[InformationLoss],
    problems: Sequence[str],
    seed: int,
) -> Path:
    content = {
        "schema": SCHEMA,
        "seed": seed,
        "dataset": card.name,
        "domain": card.domain,
        "distortion": COLUMNS[card.domain][0].observable,
        "tokenizers": [_numbers(quality) for quality in qualities],
        "information": [asdict(loss) for loss in losses],
        "original": ORIGINAL,
        "problems": list(problems),
    }
    return write_json(path, content)


def _numbers(quality: Quality) -> dict[str, object]:
    """All of a quality but what only figures need."""
    drawn = ("residuals", "code_counts")
    kept = {name: getattr(quality, name) for name in quality.__dataclass_fields__ if name not in drawn}
    rows = {name: [asdict(row) for row in kept[name]] for name in ("streams", "feature_rows", "object_rows")}
    voxels = None if quality.voxels is None else asdict(quality.voxels)
    return kept | rows | {"rate": asdict(quality.rate), "voxels": voxels}
