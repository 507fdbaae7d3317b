"""The commands `foundation vocabulary ...`, and a tokenize stage whose datasets share a tokenizer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from foundation.cli import main
from foundation.data.cards import DatasetCard
from foundation.data.files import write_point_clouds
from foundation.model.config import TransformerConfig
from foundation.recipe.artifact import Artifact
from foundation.recipe.running import StageContext
from foundation.recipe.schema import Tokenize
from foundation.recipe.stages.tokenization import tokenize
from foundation.recipe.stages.training import new_backbone
from foundation.stream.reading import ShardedDataset
from foundation.stream.token_stream import StreamConfig, TokenStream
from foundation.tokens.config import PerFeatureConfig
from foundation.tokens.grammar import Grammar
from foundation.tokens.inputs import Inputs
from foundation.tokens.kinds import load_tokenizer
from foundation.tokens.layout import Layout
from foundation.tokens.per_feature import PerFeatureTokenizer
from foundation.tokens.tokenizer import tokenizer_digest
from foundation.tokens.vocabulary import NONE, Addition, Vocabulary

from conftest import JETS, SHOWERS, toy_jets, toy_showers

MORE = JETS.model_copy(update={"name": "more_jets", "tag": "more_jets", "classes": ("any",)})


class Home:
    """A card each of jets, more jets and showers; a tokenizer of both kinds of jets and one of the showers; the
    vocabulary of the jets."""

    def __init__(self, home: Path) -> None:
        self.path = home
        self.cards = {card.tag: card for card in (JETS, MORE, SHOWERS)}
        for card in self.cards.values():
            (home / f"{card.tag}.yaml").write_text(yaml.safe_dump(card.model_dump(mode="json", exclude_none=True)))
        config = PerFeatureConfig(type="per_feature", bins=8)
        jets, showers = toy_jets(60, 1), toy_showers(60, 1)
        for folder, inputs, clouds in (
            ("jets", Inputs.fit("jets", ("toy_jets", "more_jets"), JETS.features, jets), jets),
            ("showers", Inputs.fit("toy_showers", ("toy_showers",), SHOWERS.features, showers), showers),
            ("others", Inputs.fit("jets", ("other",), JETS.features, toy_jets(60, 2)), jets),
        ):
            PerFeatureTokenizer.fit(inputs, clouds, config).save(home / folder)
        (home / "tokens").mkdir()
        self.vocabulary = Vocabulary.build([self.addition(JETS, "jets")])
        self.vocabulary.save(home / "tokens" / "vocabulary.json")

    def addition(self, card: DatasetCard, folder: str) -> Addition:
        """A dataset with the tokenizer in a folder."""
        return Addition.of(card, load_tokenizer(self.path / folder), tokenizer_digest(self.path / folder))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Read-only."""
    return Home(tmp_path_factory.mktemp("vocabulary"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    capsys.readouterr()
    code = main(["vocabulary", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out, told.err


def grown(home: Home, out: Path, tag: str, folder: str, *more: object) -> list[object]:
    """Words of the command that adds a dataset to the vocabulary of the jets."""
    card, tokenizer = home.path / f"{tag}.yaml", home.path / folder
    return ["grow", home.path / "tokens", "--card", card, "--tokenizer", tokenizer, "--out", out, *more]


# show


def test_show_lists_ranges_and_datasets(home: Home, capsys) -> None:
    code, out, _ = run(capsys, "show", home.path / "tokens")
    assert code == 0 and run(capsys, "show", home.path / "tokens" / "vocabulary.json")[1] == out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == f"{home.vocabulary.size} ids in 7 ranges, 1 datasets; sha256 {home.vocabulary.digest}"
    assert "special 0 4 none, bos, eos, any" in lines
    assert "class.toy_jets 5 2 classes narrow, wide" in lines
    assert "jets.charge 31 3 the codes of toy_jets" in lines
    digest = home.vocabulary.dataset("toy_jets").tokenizer[:12]
    assert f"toy_jets narrow, wide none one per point pt, eta_rel, phi_rel, charge jets {digest}" in " ".join(lines)


def test_show_of_one_dataset_or_of_ids(home: Home, tmp_path: Path, capsys) -> None:
    assert run(capsys, *grown(home, tmp_path / "v.json", "toy_showers", "showers"))[0] == 0
    code, out, _ = run(capsys, "show", tmp_path / "v.json", "--dataset", "toy_showers")
    assert code == 0 and "toy_showers.energy" in out and "jets.pt" not in out and "special" in out
    start = home.vocabulary.size
    code, out, _ = run(capsys, "show", tmp_path / "v.json", "--id", 2, 7, start + 2, start + 9)
    lines = [" ".join(line.split()) for line in out.splitlines()[2:]]
    assert code == 0 and lines[0] == "2 special eos: a sequence ends"
    assert lines[1] == "7 jets.pt code 0 of 0 to 7 of the codes of toy_jets"
    assert lines[2].startswith(f"{start + 2} condition.toy_showers.incident_energy condition 'incident_energy' of")
    assert lines[2].endswith("5 to 6.66761 GeV") and lines[3].endswith("37.4947 to 50 GeV")


def test_show_and_diff_start_without_torch(home: Home) -> None:
    code = "import sys; from foundation.cli import main\n" + "".join(
        f"main(['vocabulary', {', '.join(map(repr, words))}])\n"
        for words in (("show", str(home.path / "tokens")), ("diff", *[str(home.path / "tokens")] * 2))
    )
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True, capture_output=True)


# grow and diff


def test_grow_appends_a_dataset_and_diff_says_so(home: Home, tmp_path: Path, capsys) -> None:
    old, new = home.path / "tokens", tmp_path / "deep" / "v.json"
    code, out, _ = run(capsys, *grown(home, new, "toy_showers", "showers"))
    vocabulary = Vocabulary.load(new)
    assert code == 0 and vocabulary.digest == home.vocabulary.grow([home.addition(SHOWERS, "showers")]).digest
    size = home.vocabulary.size
    words = f"ids 0 to {size - 1} mean the same, {size} to {vocabulary.size - 1} are new"
    assert f"{new}: {words}; sha256 {vocabulary.digest}" in out and "condition.toy_showers.incident_energy" in out
    code, out, _ = run(capsys, "diff", old, new)
    assert code == 0 and f"{new} is a growth of {old}: {words}" in out and "tag.toy_jets" not in out
    code, out, _ = run(capsys, "diff", new, old)
    assert code == 2 and "dataset 'toy_showers' is gone" in out and f"; {new} is a growth of {old}" in out
    code, out, _ = run(capsys, "diff", old, old)
    assert code == 0 and out == f"equal: {size} ids, sha256 {home.vocabulary.digest}\n"


def test_grow_shares_a_tokenizer_that_is_there(home: Home, tmp_path: Path, capsys) -> None:
    code, out, _ = run(capsys, *grown(home, tmp_path / "v.json", "more_jets", "jets"))
    assert code == 0 and "note" not in out
    assert Vocabulary.load(tmp_path / "v.json").size == home.vocabulary.size + 2
    assert "jets.pt" not in out.split("added datasets")[0]
    assert "the codes of toy_jets, more_jets" in run(capsys, "show", tmp_path / "v.json")[1]


def test_grow_takes_the_conditions_that_are_named(home: Home, tmp_path: Path, capsys) -> None:
    assert run(capsys, *grown(home, tmp_path / "none.json", "toy_showers", "showers", "--conditions"))[0] == 0
    assert Vocabulary.load(tmp_path / "none.json").dataset("toy_showers").conditions == ()
    words = grown(home, tmp_path / "one.json", "toy_showers", "showers", "--conditions", "incident_energy")
    assert run(capsys, *words)[0] == 0
    assert Vocabulary.load(tmp_path / "one.json").dataset("toy_showers").conditions == SHOWERS.conditions


def test_grow_says_where_a_tokenizer_has_not_seen_the_dataset(home: Home, tmp_path: Path, capsys) -> None:
    words = grown(home, tmp_path / "v.json", "more_jets", "others")
    code, _, err = run(capsys, *words)
    assert code == 2 and err.startswith("error: two tokenizers are called 'jets'") and "another name" in err
    Vocabulary.build([home.addition(SHOWERS, "showers")]).save(tmp_path / "showers.json")
    words[1] = tmp_path / "showers.json"
    code, out, _ = run(capsys, *words)
    assert code == 0 and "note: tokenizer 'jets' was fitted on 'other', not on 'more_jets'" in out


def test_mistakes_are_one_sentence(home: Home, tmp_path: Path, capsys) -> None:
    tokens, out, last = home.path / "tokens", tmp_path / "v.json", home.vocabulary.size - 1
    cases = {
        "no vocabulary.json here": ["show", tmp_path],
        "no vocabulary.json": ["diff", tokens, tmp_path / "missing.json"],
        "not a vocabulary": ["show", home.path / "toy_jets.yaml"],
        "did you mean 'toy_jets'": ["show", tokens, "--dataset", "toy_jet"],
        f"there is no id 99 in this vocabulary: ids go from 0 to {last}": ["show", tokens, "--id", 99],
        "exists already, and is not overwritten": grown(home, tokens / "vocabulary.json", "more_jets", "jets"),
        "a tag names one dataset only": grown(home, out, "toy_jets", "jets"),
        "needs feature 'layer', which these point clouds do not have": grown(home, out, "more_jets", "showers"),
        "has no condition 'energy'": grown(home, out, "toy_showers", "showers", "--conditions", "energy"),
        "not a tokenizer, or a damaged one": grown(home, out, "more_jets", "tokens"),
    }  # fmt: skip
    for words, arguments in cases.items():
        code, _, err = run(capsys, *arguments)
        assert code == 2 and words in err and len(err.splitlines()) == 1, (words, err)
    assert not out.exists()


# A tokenize stage


class Silent:
    """A tracker of nothing."""

    def log_dataset(self, *_: object) -> None: ...


def artifact(folder: Path) -> Artifact:
    """A finished stage in a folder."""
    outputs = {p.relative_to(folder).as_posix(): (p.stat().st_size, "0" * 64) for p in folder.rglob("*.*")}
    return Artifact(folder, "kind", folder.name, "key", {}, 1, {}, {}, outputs, {}, "", "", 0.0)


def test_a_stage_with_one_tokenizer_for_two_datasets(home: Home, tmp_path: Path, capsys) -> None:
    outside = SHOWERS.conditions[0].model_copy(update={"range": (20.0, 50.0)})
    more = replace(toy_jets(40, 6), tag="more_jets", labels=np.zeros(40, np.int64))
    for card, clouds in ((JETS, toy_jets(40, 5)), (MORE, more), (SHOWERS, toy_showers(40, 7))):
        write_point_clouds(tmp_path / card.tag / "train" / "0.h5", clouds)
        (tmp_path / card.tag / "card.json").write_text(card.model_dump_json())
    for folder in ("jets", "showers"):
        shutil.copytree(home.path / folder, tmp_path / folder)
    spec = Tokenize.model_validate(
        {
            "kind": "tokenize", "name": "tokens", "datasets": [
                {"from": "toy_jets", "tokenizer": "jets"}, {"from": "more_jets", "tokenizer": "jets"},
                {"from": "toy_showers", "tokenizer": "showers", "conditions": [outside.model_dump()]},
            ],
        }
    )  # fmt: skip
    folder = tmp_path / "tokens"
    folder.mkdir()
    stages = {name: artifact(tmp_path / name) for name in (*home.cards, "jets", "showers")}
    tokenize(spec, StageContext(folder, folder, folder, None, 1, 0, 1, Silent(), stages))  # type: ignore[arg-type]
    low = int((toy_showers(40, 7).conditions < 20).sum())
    assert f"{low} objects have 'incident_energy' outside its range" in capsys.readouterr().out

    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    assert vocabulary.stream_ranges("toy_jets") == vocabulary.stream_ranges("more_jets")
    data = [ShardedDataset(folder / tag / "train", vocabulary.digest) for tag in home.cards]
    assert data[2].manifest["counted"]["outside_condition.incident_energy"] == low
    layout = Layout(vocabulary)
    batch = TokenStream(data, [1.0, 1.0, 1.0], layout, StreamConfig(128, 9, 1)).batches(0)[0]
    grammar, seen = Grammar(layout), set()
    for i, (a, b) in enumerate(zip(batch.offsets[:-1], batch.offsets[1:], strict=True)):
        tag = list(home.cards)[int(batch.dataset[i])]
        # the last step of a sequence is only ever a target
        last = np.where(batch.targets[b - 1 : b] < 0, NONE, batch.targets[b - 1 : b])
        grammar.check(tag, np.concatenate([batch.ids[a:b], last]))
        seen.add(tag)
    assert seen == set(home.cards)
    config = TransformerConfig(width=16, layers=1, heads=2)
    assert new_backbone(config, vocabulary, artifact(folder), 1).embedding.weight.shape[0] == vocabulary.size
