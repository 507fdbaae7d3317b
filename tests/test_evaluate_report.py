"""Everything in one go: figures, metrics.json and a report that needs nothing but itself."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from foundation.errors import DataError
from foundation.evaluate.evaluation import ClassifierArm, Evaluation, Sample, evaluate
from foundation.evaluate.report import RunDescription, Stage

from evaluate_samples import JET_CARD, SHOWER_CARD, toy_jets, toy_showers

RUN = RunDescription(
    title="Jets <&> showers",
    stages=(Stage("pretrain", "pretrain", 12.5, "600 steps"),),
    facts={"seed": 1},
    versions={"numpy": np.__version__},
    reproduce=("foundation run recipes/quickstart.yaml",),
)
VOID = {"meta", "img", "br", "link", "input", "hr"}


def arm(name: str, separation: float) -> ClassifierArm:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    scores = 1 / (1 + np.exp(-separation * (labels - 0.5) - rng.normal(size=400)))
    return ClassifierArm(name, "top", 1000, labels, scores)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return evaluate(
        tmp_path_factory.mktemp("evaluation"),
        RUN,
        [
            Sample(JET_CARD, toy_jets(200, 1), toy_jets(200, 2)),
            Sample(SHOWER_CARD, toy_showers(200, 1), toy_showers(200, 2)),
            Sample(JET_CARD, toy_jets(200, 1), toy_jets(0, 1)),
        ],
        [arm("pretrained", 3.0), arm("scratch", 1.0), ClassifierArm("broken", "top", 9, np.ones(3, int), np.ones(3))],
        {"pretrain": [{"step": k, "loss": 3.0 / (k + 1), "validation_loss": 2.0} for k in range(40)], "empty": []},
    )


class Balance(HTMLParser):
    """Fails on a tag that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_is_self_contained_and_well_formed(result: Evaluation) -> None:
    page = result.report.read_text()
    assert not re.search(r"https?://|@import|<link|url\(|<script src", page)
    assert "default-src 'none'" in page
    images = re.findall(r'src="([^"]*)"', page)
    assert 10 <= len(images) <= 20
    for image in images:
        assert image.startswith("data:image/png;base64,")
        assert base64.b64decode(image.partition(",")[2]).startswith(b"\x89PNG")
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "Jets &lt;&amp;&gt; showers" in page and "<&>" not in page
    assert "$" not in re.sub(r'src="[^"]*"', "", page)


def test_every_failure_is_named_and_loses_nothing_else(result: Evaluation) -> None:
    assert len(result.comparisons) == 2
    assert len(result.problems) == 2
    assert "generated sample is empty" in result.problems[0]
    assert "broken: classifier: need both classes" in result.problems[1]
    page = result.report.read_text()
    assert all(problem in page for problem in result.problems)


def test_metrics_are_strict_json_with_all_rows(result: Evaluation) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads(result.metrics.read_text(), parse_constant=refuse)
    assert [len(d["rows"]) for d in content["datasets"].values()] == [len(c.rows) for c in result.comparisons]
    by_name = {a["name"]: a for a in content["classifiers"]}
    assert by_name["pretrained"]["auc"]["value"] > by_name["scratch"]["auc"]["value"]
    assert "auc" not in by_name["broken"] and by_name["broken"]["problem"]
    assert result.scores["pretrained.auc"] == by_name["pretrained"]["auc"]["value"]
    assert {"pythia_jets.top.mass.ratio", "gflash_siw.all.response.difference"} <= set(result.scores)
    assert not list(result.report.parent.rglob("*.part"))


def test_figures_leave_no_pyplot_state(result: Evaluation) -> None:
    import matplotlib
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []
    assert matplotlib.rcParams["font.size"] == matplotlib.rcParamsDefault["font.size"]
    names = {path.stem for path in (result.report.parent / "figures").iterdir()}
    assert {"roc", "training", "pythia_jets_mass", "gflash_siw_profiles", "gflash_siw_showers"} <= names


def test_nothing_to_evaluate_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing could be evaluated: .*generated sample is empty"):
        evaluate(tmp_path / "out", RUN, [Sample(JET_CARD, toy_jets(200, 1), toy_jets(0, 1))])
    assert not (tmp_path / "out").exists()


def test_classifiers_alone_make_a_report(tmp_path: Path) -> None:
    done = evaluate(tmp_path, RunDescription("Taggers"), [], [arm("scratch", 2.0)], pdf=True)
    assert "±" in done.report.read_text()
    pdf = (tmp_path / "figures" / "roc.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf and b"/Type3" not in pdf
