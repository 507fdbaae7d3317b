"""A trained model in Python: `foundation.load(...)`, then generate, complete, score, encode and decode.

The same parts do the work as for `foundation generate` and the recipe stage: equal settings give equal objects.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.generate.beginnings import Beginnings, encode_first
from foundation.generate.decoding import decoded
from foundation.generate.generator import Generator, Wanted
from foundation.generate.likelihood import Likelihoods, class_log_likelihoods, log_probabilities, over_classes
from foundation.generate.opening import generator_of
from foundation.generate.trained import TrainedModel, as_trained
from foundation.generate.wishes import Label, Wishes
from foundation.registry.finding import find_model
from foundation.tokens.tokenizer import Codes


def load(model: str | Path, *, device: str | None = None, runs: str | Path | None = None) -> Model:
    """A trained model, to generate with and to score objects.

    model:  `models:/NAME`, `models:/NAME/VERSION`, `models:/NAME@ALIAS` of the registry; or a model folder; or the
            folder of a training stage, also as RUN/STAGE
    device: "cpu", "cuda", "cuda:1"; a GPU where there is one, unless it is given
    runs:   folder of all runs, where a local registry is; $FOUNDATION_RUNS or ./runs unless it is given

    Raises RegistryError or DataError where there is no such model, or a damaged one.
    """
    folder = find_model(model, None if runs is None else Path(runs))
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"device '{name}' cannot be used here: {str(error).splitlines()[0]}") from None
    return Model(folder, chosen)


class Model(TrainedModel):
    """A trained generator, and what can be done with it; `load` makes one.

    report: counts of the latest `generate`, `complete` or `iterate`, such as objects cut at the most points
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        super().__init__(folder, device)
        self.report: Counter[str] = Counter()

    def generate(
        self,
        n: int,
        dataset: str | None = None,
        *,
        label: Label = None,
        condition: Mapping[str, Any] | None = None,
        seed: int = 1,
        first: int = 0,
        outside: bool = False,
        **sampling: Any,
    ) -> PointClouds:
        """Generate n objects in physical units.

        dataset:   tag; may be left out where the model knows one
        label:     name or index of a class; "any"; or one for each object. None: all classes in turn
        condition: by name, what each object shall have: a number, an array [n], or a distribution such as
                   {"uniform": [1, 100]}, {"log_uniform": [1, 100]}, {"normal": [50, 5]}, {"choice": [10, 20, 50]}; what
                   is not named is left open
        seed, first: object i is the one of number first + i, which follows from the model, the settings, the seed and
                   that number alone
        outside:   allow conditions outside the range of the training: they count as the nearest bin
        sampling:  settings as in SamplingConfig: temperature, top_k, top_p, min_p, max_points, ...

        Objects that were cut at `max_points` (by default 1.2 times the longest of the training data) are counted in
        `report`, and warned of. Raises DataError for what the model does not know.
        """
        parts = self.iterate(
            dataset,
            n=n,
            part=max(1, n),
            label=label,
            condition=condition,
            seed=seed,
            first=first,
            outside=outside,
            **sampling,
        )
        clouds = PointClouds.concatenate(list(parts))
        self._warn_of_cut()
        return clouds

    def iterate(
        self,
        dataset: str | None = None,
        *,
        n: int | None = None,
        part: int = 1000,
        slots: int = 0,
        label: Label = None,
        condition: Mapping[str, Any] | None = None,
        seed: int = 1,
        first: int = 0,
        outside: bool = False,
        **sampling: Any,
    ) -> Iterator[PointClouds]:
        """The objects of `generate` in their order, `part` at a time: n in all, or without end, with constant memory.

        slots: how many objects are under way at a time; 0 takes what is fast, few give the first part sooner
        """
        if n is not None and n < 1:
            raise DataError(f"nothing to generate: {n} objects were asked for")
        if part < 1:
            raise DataError(f"a part has at least one object, not {part}")
        tag = self.tag(dataset)
        wishes = Wishes.of(self.datasets[tag].card, label, condition, seed, first, n, outside)
        generator = self._generator(tag, seed, sampling, slots)
        return self._in_order(generator, _parts(wishes, first, n, part))

    def complete(
        self, clouds: PointClouds, keep: int, dataset: str | None = None, *, seed: int = 1, **sampling: Any
    ) -> PointClouds:
        """Objects that begin with the first `keep` points of these (shorter ones with all), in the order of the card,
        and go on as the model says. The points that are given stay exactly as they are.

        Classes and conditions are those of the clouds: label -1 and a condition that is NaN are left open.
        """
        if keep < 1:
            raise DataError(f"at least one point of each object is kept, not {keep}")
        tag = self.tag(dataset, clouds)
        tokenizer = self.tokenizer(tag)
        if tokenizer.tokens_per_object is not None:
            raise DataError(f"the tokenizer of '{tag}' codes patches and not points: partial objects have no codes")
        ordered = self._as_trained(tag, clouds)
        codes, begun = encode_first(tokenizer, ordered, keep)
        generator = self._generator(tag, seed, sampling)
        beginnings = Beginnings(codes.values, begun.points, begun.offsets)
        wanted = Wanted(np.arange(len(ordered)), ordered.labels, ordered.conditions, beginnings)
        completed = PointClouds.concatenate(list(self._in_order(generator, iter([wanted]))))
        self._warn_of_cut()
        return completed

    def log_likelihood(
        self,
        clouds: PointClouds,
        dataset: str | None = None,
        *,
        classes: Literal["given", "any", "sum"] = "given",
        conditions: Literal["given", "any"] = "given",
        prior: ArrayLike | None = None,
    ) -> NDArray[np.float64]:
        """Log-likelihood of the codes of each object, float64 [B], in nats; points count in the order of the card.

        classes:    "given": p(object | its class); "any": with the class left open; "sum": sum_c p(c) p(object | c)
        conditions: "given", or "any": left open
        prior:      p(c) for "sum", a number per class; all equal where not given
        """
        if classes == "sum":
            of_classes = self.class_log_likelihoods(clouds, dataset, conditions=conditions)
            return over_classes(of_classes, None if prior is None else np.asarray(prior, np.float64))
        return self.log_probabilities(clouds, dataset, classes=classes, conditions=conditions).objects

    def log_probabilities(
        self,
        clouds: PointClouds,
        dataset: str | None = None,
        *,
        classes: Literal["given", "any"] = "given",
        conditions: Literal["given", "any"] = "given",
    ) -> Likelihoods:
        """What the log-likelihood is made of: each code, each stream, the number of points."""
        tag, codes, ordered = self._codes(clouds, dataset, conditions)
        labels = {"given": ordered.labels, "any": np.full(len(ordered), -1)}
        if classes not in labels:
            raise DataError(f"classes are 'given' or 'any', not '{classes}'")
        return log_probabilities(self.backbone, self.layout, tag, codes, labels[classes], ordered.conditions)

    def class_log_likelihoods(
        self, clouds: PointClouds, dataset: str | None = None, *, conditions: Literal["given", "any"] = "given"
    ) -> NDArray[np.float64]:
        """Log-likelihood of each object for every class, float64 [B, classes]: for a generative classifier."""
        tag, codes, ordered = self._codes(clouds, dataset, conditions)
        return class_log_likelihoods(self.backbone, self.layout, tag, codes, ordered.conditions)

    def encode(self, clouds: PointClouds, dataset: str | None = None) -> Codes:
        """Codes of all points, in the order in which they are."""
        return self.tokenizer(self.tag(dataset, clouds)).encode(clouds)

    def decode(
        self,
        codes: Codes,
        dataset: str | None = None,
        *,
        labels: NDArray[np.int64] | None = None,
        conditions: NDArray[np.float32] | None = None,
        seed: int = 1,
    ) -> PointClouds:
        """Clouds in physical units of the codes of B objects; labels [B] and conditions [B, C] are put beside them, and
        used where the tokenizer needs conditions. `seed` places values inside their bins."""
        known = self.datasets[self.tag(dataset)]
        if labels is None:
            labels = np.full(len(codes), -1)
        if conditions is None:
            conditions = np.full((len(codes), len(known.conditions)), np.nan, np.float32)
        return decoded(self.tokenizer(known.tag), known.card, codes, labels, conditions, seed)

    def _generator(self, tag: str, seed: int, sampling: Mapping[str, Any], slots: int = 0) -> Generator:
        self.require_generator()
        config = self.sampling(tag, sampling)
        card = self.datasets[tag].card
        return generator_of(self.backbone, self.layout, self.tokenizer(tag), card, seed, config, slots)

    def _in_order(self, generator: Generator, wanted: Iterator[Wanted]) -> Iterator[PointClouds]:
        """The clouds of all parts; one that is ready before an earlier one waits."""
        self.report = Counter()
        ready: dict[int, PointClouds] = {}
        following = 0
        for number, made in generator.parts(wanted):
            self.report.update(made.report)
            ready[number] = made.clouds
            while following in ready:
                yield ready.pop(following)
                following += 1

    def _warn_of_cut(self) -> None:
        if cut := self.report["reached_max_points"]:
            warnings.warn(
                f"{cut} of {self.report['objects']} objects were cut at max_points: give a larger max_points",
                stacklevel=3,
            )

    def _codes(self, clouds: PointClouds, dataset: str | None, conditions: str) -> tuple[str, Codes, PointClouds]:
        """Tag, codes, and the clouds they are of, as the model was trained on them."""
        self.require_generator()
        if conditions not in ("given", "any"):
            raise DataError(f"conditions are 'given' or 'any', not '{conditions}'")
        tag = self.tag(dataset, clouds)
        ordered = self._as_trained(tag, clouds, conditions == "any")
        return tag, self.tokenizer(tag).encode(ordered), ordered

    def _as_trained(self, tag: str, clouds: PointClouds, leave_open: bool = False) -> PointClouds:
        return as_trained(self.datasets[tag].card, self.tokenizer(tag), clouds, leave_open)


def _parts(wishes: Wishes, first: int, n: int | None, part: int) -> Iterator[Wanted]:
    end = None if n is None else first + n
    while end is None or first < end:
        last = first + part if end is None else min(end, first + part)
        index = np.arange(first, last)
        yield Wanted(index, *wishes(index))
        first = last
