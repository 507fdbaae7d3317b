"""The commands `foundation shards ...` on real shards: what they find, what they write, what they refuse."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from foundation.cli import main
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError
from foundation.stream.folders import dataset_folders
from foundation.stream.merging import merge
from foundation.stream.mixture import MixtureSchedule
from foundation.stream.reading import ShardedDataset
from foundation.stream.token_stream import StreamConfig, TokenStream
from foundation.stream.verifying import verify
from foundation.stream.weighing import EpochSize, weights_for_epochs, weights_for_shares, weights_for_temperature
from foundation.stream.writing import write_shards
from foundation.tokens.config import PerFeatureConfig
from foundation.tokens.layout import Layout
from foundation.tokens.per_feature import PerFeatureTokenizer
from foundation.tokens.tokenizer import tokenizer_digest
from foundation.tokens.vocabulary import Addition, Vocabulary

from conftest import JETS, SHOWERS, inputs_of, toy_jets, toy_showers

ROOT = Path(__file__).parent.parent
STREAM_PAGE = ROOT / "docs" / "explanation" / "stream.md"


class Stage:
    """The folder of a tokenize stage with two datasets of several shards each, and a second run's jets beside it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        cards = {"toy_jets": JETS, "toy_showers": SHOWERS}
        self.clouds = {"toy_jets": toy_jets(300, 1), "toy_showers": toy_showers(150, 2)}
        bins = PerFeatureConfig(type="per_feature", bins=16)
        self.tokenizers = {
            tag: PerFeatureTokenizer.fit(inputs_of(cards[tag], clouds), clouds, bins)
            for tag, clouds in self.clouds.items()
        }
        for tag, tokenizer in self.tokenizers.items():
            tokenizer.save(home / tag / "tokenizer")
        self.digests = {tag: tokenizer_digest(home / tag / "tokenizer") for tag in cards}
        self.vocabulary = Vocabulary.build(
            [Addition.of(cards[tag], tokenizer, self.digests[tag]) for tag, tokenizer in self.tokenizers.items()]
        )
        self.vocabulary.save(home / "vocabulary.json")
        (home / "artifact.json").write_text(json.dumps({"summary": {"streams": "delayed"}}))
        for tag, clouds in self.clouds.items():
            self.write(home / tag / "train", tag, clouds, 5)
            self.write(home / tag / "validation", tag, clouds.select(slice(0, 20)), 6)
        self.write(home.parent / "more_jets", "toy_jets", toy_jets(100, 9), 7)

    def write(self, folder: Path, tag: str, clouds: PointClouds, seed: int, **identity: str) -> None:
        """Shards of these clouds, a few blocks in each."""
        write_shards(
            folder, tag, self.tokenizers[tag].encode(clouds).values, clouds.offsets, clouds.labels, clouds.conditions,
            largest_code=max(s.size for s in self.tokenizers[tag].streams) - 1,
            identity={"card": tag, "vocabulary": self.vocabulary.digest, "tokenizer": self.digests[tag], **identity},
            seed=seed, block_sequences=30, shard_bytes=8_000,
        )  # fmt: skip


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Read-only."""
    return Stage(tmp_path_factory.mktemp("shards") / "tokens")


@pytest.fixture
def jets(stage: Stage, tmp_path: Path) -> Path:
    """A copy of the jets of the train split, to be damaged."""
    return shutil.copytree(stage.home / "toy_jets" / "train", tmp_path / "jets")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    capsys.readouterr()
    code = main(["shards", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out, told.err


def contents(folder: Path, digest: str) -> list[bytes]:
    """Every sequence of a dataset as bytes, sorted."""
    data = ShardedDataset(folder, digest)
    blocks = [data.block(number) for number in range(data.n_blocks)]
    return sorted(
        block.codes[a:b].tobytes() + block.labels[i : i + 1].tobytes() + block.conditions[i].tobytes()
        for block in blocks
        for i, (a, b) in enumerate(zip(block.offsets[:-1], block.offsets[1:], strict=True))
    )


# Folders on the command line


def test_a_folder_is_a_dataset_or_a_stage(stage: Stage, tmp_path: Path) -> None:
    train = str(stage.home / "toy_jets" / "train")
    assert dataset_folders([train, train]) == [train]
    assert len(dataset_folders([str(stage.home)])) == 4
    assert dataset_folders([str(stage.home)], "train") == [train, str(stage.home / "toy_showers" / "train")]
    assert dataset_folders(["s3://bucket/x", "pipe:cat {name}"]) == ["s3://bucket/x", "pipe:cat {name}"]
    with pytest.raises(DataError, match="has no split 'trian' - did you mean 'train'"):
        dataset_folders([str(stage.home)], "trian")
    with pytest.raises(DataError, match=r"no manifest.json here or two folders below"):
        dataset_folders([str(tmp_path)])
    with pytest.raises(DataError, match="no such folder"):
        dataset_folders([str(tmp_path / "nothing")])


# info and head


def test_info_says_what_the_manifest_says_and_how_full_rows_are(stage: Stage, capsys) -> None:
    code, out, _ = run(capsys, "info", stage.home, "--split", "train")
    assert code == 0
    points = stage.clouds["toy_jets"].offsets[-1]
    for words in ("tag                   toy_jets", "sequences             300", f"{points:,}, of 4 codes each",
                  "rows of 2,048 tokens", "% full", "written with seed     5", stage.vocabulary.digest):  # fmt: skip
        assert words in out
    # prefix of 3 steps, 3 more for the delayed streams; the last step is only a target
    assert f"{points + 300 * (3 + 3 - 1):,} with streams delayed: 1 x points + 5" in out


def test_info_without_a_vocabulary_asks_for_it(stage: Stage, jets: Path, capsys) -> None:
    code, out, _ = run(capsys, "info", jets)
    assert code == 0 and "--vocabulary" in out and "rows of" not in out
    code, out, _ = run(capsys, "info", jets, "--vocabulary", stage.home / "vocabulary.json", "--streams", "interleaved")
    assert "with streams interleaved: 4 x points + 3" in out


def test_head_names_ids_and_decodes_points(stage: Stage, capsys) -> None:
    code, out, _ = run(capsys, "head", stage.home / "toy_showers" / "train", "-n", 2, "--points", 3)
    assert code == 0 and out.count("sequence ") == 2
    data = ShardedDataset(stage.home / "toy_showers" / "train", stage.vocabulary.digest)
    block = data.block(0)
    assert f"class photon, incident_energy {block.conditions[0, 0]:.6g} GeV; {block.offsets[1]} points" in out
    start = stage.vocabulary.ranges["toy_showers.layer"].start
    assert f"{start + block.codes[0, 0]} toy_showers.layer {block.codes[0, 0]}" in out
    assert re.search(r"2 +\d+ class.toy_showers photon", out) and "2 eos" in out and "energy [MeV]" in out
    # the shower that it comes from, by its number: hits are in whole cells, so they are exact
    truth = stage.clouds["toy_showers"].select(np.array([int(block.ids[0])])).points[0]
    assert re.search(rf"0 +{truth[0]:g} +{truth[1]:g} +{truth[2]:g} +", out)


def test_head_works_without_a_tokenizer_and_not_without_a_vocabulary(stage: Stage, jets: Path, capsys) -> None:
    code, out, _ = run(capsys, "head", jets, "--vocabulary", stage.home / "vocabulary.json")
    assert code == 0 and "toy_jets.pt" in out and "no tokenizer beside" in out
    code, _, error = run(capsys, "head", jets)
    assert code == 2 and "name it with --vocabulary" in error


# verify


def test_verify_of_an_intact_dataset_finds_nothing(stage: Stage, capsys) -> None:
    assert verify(stage.home / "toy_jets" / "train").findings == ()
    for options in ([], ["--quick"], ["--workers", "2"]):
        code, out, _ = run(capsys, "verify", stage.home, *options)
        assert code == 0 and out.count("nothing wrong") == 4


def flip(path: Path, at: int) -> None:
    """Another value for one byte."""
    with path.open("r+b") as f:
        f.seek(at)
        old = f.read(1)[0]
        f.seek(at)
        f.write(bytes([old ^ 0x55]))


def member(folder: Path, block: int, name: str) -> tuple[Path, int]:
    """The tar of a block, and where the .npy of a member begins in it."""
    index = np.load(folder / "index.npy")
    return folder / f"{index['shard'][block]:06d}.tar", int(index["offset"][block] + index[f"{name}_at"][block])


def in_codes(folder: Path) -> None:
    path, at = member(folder, 1, "codes")
    flip(path, at + 150)


def in_npy_magic(folder: Path) -> None:
    path, at = member(folder, 1, "labels")
    flip(path, at)


def in_tar_header(folder: Path) -> None:
    path, at = member(folder, 1, "codes")
    flip(path, at - 500)


def zeroed_header(folder: Path) -> None:
    path, at = member(folder, 1, "codes")
    with path.open("r+b") as f:
        f.seek(at - 512)
        f.write(bytes(512))


def cut_at_block(folder: Path) -> None:
    path, at = member(folder, 1, "codes")
    with path.open("r+b") as f:
        f.truncate(at - 512)


def cut_in_payload(folder: Path) -> None:
    path, at = member(folder, 1, "codes")
    with path.open("r+b") as f:
        f.truncate(at + 150)


def cut_in_header(folder: Path) -> None:
    path, at = member(folder, 1, "codes")
    with path.open("r+b") as f:
        f.truncate(at - 300)


def empty(folder: Path) -> None:
    (folder / "000001.tar").write_bytes(b"")


def error_page(folder: Path) -> None:
    (folder / "000001.tar").write_text("<html>404</html>")


def missing(folder: Path) -> None:
    (folder / "000001.tar").unlink()


def foreign(folder: Path) -> None:
    shutil.copy(folder / "000000.tar", folder / "000001.tar")


def unknown(folder: Path) -> None:
    shutil.copy(folder / "000000.tar", folder / "000099.tar")


def behind_the_end(folder: Path) -> None:
    flip(folder / "000000.tar", (folder / "000000.tar").stat().st_size - 10)


def in_index(folder: Path) -> None:
    flip(folder / "index.npy", 200)


def no_index(folder: Path) -> None:
    (folder / "index.npy").unlink()


def in_lengths(folder: Path) -> None:
    flip(folder / "lengths.npy", 140)


DAMAGES: dict[Callable[[Path], None], tuple[str, str, str]] = {
    in_codes: ("000000.tar", "000000-00001", "codes.npy: CRC differs"),
    in_npy_magic: ("000000.tar", "000000-00001", "labels.npy: CRC differs"),
    in_tar_header: ("000000.tar", "000000-00001", "a tar header: CRC differs"),
    zeroed_header: ("000000.tar", "000000-00001", "a tar header: CRC differs"),
    cut_at_block: ("000000.tar", "000000-00001", "behind the end"),
    cut_in_payload: ("000000.tar", "000000-00001", "cut off"),
    cut_in_header: ("000000.tar", "000000-00001", "cut off"),
    empty: ("000001.tar", "", "has 0 bytes"),
    error_page: ("000001.tar", "", "has 16 bytes"),
    missing: ("000001.tar", "", "missing"),
    foreign: ("000001.tar", "000001-00000", "CRC differs"),
    unknown: ("000099.tar", "", "not in the manifest"),
    behind_the_end: ("000000.tar", "", "end of the tar is changed"),
    in_index: ("index.npy", "", "sha256 differs"),
    no_index: ("index.npy", "", "missing"),
    in_lengths: ("lengths.npy", "", "sha256 differs"),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_verify_finds_and_names_every_damage(damage: Callable[[Path], None], jets: Path, capsys) -> None:
    damage(jets)
    file, block, what = DAMAGES[damage]
    found = verify(jets).findings
    assert any(f.file == file and f.block == block and what in f.what for f in found), found
    assert {f.file for f in found} == {file}
    code, out, _ = run(capsys, "verify", jets)
    assert code == 2 and "what is wrong" in out and file in out


@pytest.mark.parametrize("damage", [cut_at_block, cut_in_payload, empty, missing, unknown, in_index, no_index])
def test_a_quick_look_finds_wrong_sizes_and_a_wrong_index(damage: Callable[[Path], None], jets: Path) -> None:
    damage(jets)
    assert [f.file for f in verify(jets, quick=True).findings] == [DAMAGES[damage][0]]


def test_an_index_that_was_made_to_fit_the_manifest_must_still_fit_itself(jets: Path) -> None:
    index = np.load(jets / "index.npy")
    index["offset"][1] += 512
    np.save(jets / "index.npy", index)
    manifest = json.loads((jets / "manifest.json").read_text())
    about = manifest["files"]["index.npy"]
    about["sha256"] = hashlib.sha256((jets / "index.npy").read_bytes()).hexdigest()
    about["bytes"] = (jets / "index.npy").stat().st_size
    (jets / "manifest.json").write_text(json.dumps(manifest))
    assert "without gaps" in verify(jets).findings[0].what


def test_verify_needs_a_manifest(jets: Path, capsys) -> None:
    (jets / "manifest.json").write_text('{"format": "foundation/shards/1"}')
    code, _, error = run(capsys, "verify", jets)
    assert code == 2 and "format is foundation/shards/1" in error
    (jets / "manifest.json").write_text("{")
    assert run(capsys, "verify", jets)[0] == 2


# merge


def test_a_merged_dataset_holds_the_sequences_of_both(stage: Stage, tmp_path: Path, capsys) -> None:
    first, second, to = stage.home / "toy_jets" / "train", stage.home.parent / "more_jets", tmp_path / "both"
    code, out, _ = run(capsys, "merge", first, second, "--to", to)
    assert code == 0 and "400 sequences" in out
    digest = stage.vocabulary.digest
    assert contents(to, digest) == sorted(contents(first, digest) + contents(second, digest))
    assert verify(to).findings == ()
    manifest = json.loads((to / "manifest.json").read_text())
    assert [part["seed"] for part in manifest["merged"]] == [5, 7]
    assert sum(part["shards"] for part in manifest["merged"]) == len(manifest["shards"])
    assert (to / "000000.tar").samefile(first / "000000.tar")
    assert run(capsys, "info", to, "--vocabulary", stage.home / "vocabulary.json")[1].count("5, 7 (merged of 2") == 1


def test_a_merged_dataset_can_be_merged_again_and_is_read_by_webdataset(stage: Stage, tmp_path: Path) -> None:
    import webdataset

    first, second = stage.home / "toy_jets" / "train", stage.home.parent / "more_jets"
    merge([first, second], tmp_path / "both")
    stage.write(tmp_path / "third", "toy_jets", toy_jets(40, 11), 8)
    manifest = merge([tmp_path / "both", tmp_path / "third"], tmp_path / "all")
    assert [part["seed"] for part in manifest["merged"]] == [5, 7, 8]
    names = [str(tmp_path / "all" / shard["name"]) for shard in manifest["shards"]]
    blocks = list(webdataset.WebDataset(names, shardshuffle=False).decode())
    assert sum(len(block["labels.npy"]) for block in blocks) == 440


def test_shards_are_copied_where_links_are_impossible(stage: Stage, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    first, second = stage.home / "toy_jets" / "train", stage.home.parent / "more_jets"
    merge([first, second], tmp_path / "both")
    assert not (tmp_path / "both" / "000000.tar").samefile(first / "000000.tar")
    assert verify(tmp_path / "both").findings == ()


def test_a_damaged_shard_is_not_copied(stage: Stage, jets: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    in_codes(jets)
    with pytest.raises(DataError, match=r"000000.tar: sha256 differs"):
        merge([jets, stage.home.parent / "more_jets"], tmp_path / "both")
    assert not (tmp_path / "both").exists()
    cut_in_payload(jets)
    with pytest.raises(DataError, match=r"000000.tar: has \d+ bytes, the manifest says"):
        merge([jets, stage.home.parent / "more_jets"], tmp_path / "both")


def test_what_does_not_fit_together_is_not_merged(stage: Stage, tmp_path: Path, capsys) -> None:
    first = stage.home / "toy_jets" / "train"
    stage.write(tmp_path / "other", "toy_jets", toy_jets(40, 11), 8, tokenizer="f" * 64)
    shutil.copytree(first, tmp_path / "copy")
    wrong = {
        "cannot be merged: card": stage.home / "toy_showers" / "train",
        "cannot be merged: tokenizer is fffff": tmp_path / "other",
        r"copy/000000.tar is the same as": tmp_path / "copy",
    }
    for words, second in wrong.items():
        code, _, error = run(capsys, "merge", first, second, "--to", tmp_path / "both")
        assert code == 2 and re.search(words, error), error
    assert run(capsys, "merge", first, stage.home.parent / "more_jets", "--to", tmp_path)[0] == 2
    assert run(capsys, "merge", first, "--to", tmp_path / "both")[0] == 2
    assert not (tmp_path / "both").exists()


# reweigh


def sizes(*rows: int) -> list[EpochSize]:
    return [EpochSize(f"d{i}", n, 0, n * 100 - i, n, 100) for i, n in enumerate(rows)]


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0.1, 10)), min_size=1, max_size=5))
def test_weights_for_epochs_give_these_epochs_at_one_step(wanted: list[tuple[int, float]]) -> None:
    weights, rows = weights_for_epochs(sizes(*(n for n, _ in wanted)), [e for _, e in wanted])
    assert sum(Fraction(str(w)) for w in weights) == 1
    for weight, (n, epochs) in zip(weights, wanted, strict=True):
        assert abs(weight * rows - n * epochs) <= 1 + 1e-6 * rows


def test_weights_for_shares_and_temperature_count_tokens() -> None:
    half_full = [EpochSize("a", 1, 0, 500, 10, 100), EpochSize("b", 1, 0, 1000, 10, 100)]
    assert weights_for_shares(half_full, [0.5, 0.5]) == [0.666667, 0.333333]
    assert weights_for_temperature(half_full, 1.0) == [0.5, 0.5]  # by size is an epoch of each
    assert weights_for_temperature(half_full, 1e9) == weights_for_shares(half_full, [1, 1])
    for wrong in ([0.5], [-1, 2], [0, 0], [float("nan"), 1]):
        with pytest.raises(DataError, match="--shares"):
            weights_for_shares(half_full, wrong)


def test_reweigh_prints_yaml_that_holds_in_the_stream(stage: Stage, capsys) -> None:
    code, out, _ = run(capsys, "reweigh", stage.home, "--epochs", 1, 3, "--row-tokens", 64, "--rows-per-step", 8)
    assert code == 0
    mixture = yaml.safe_load(out)["mixture"]
    steps = int(re.search(r"in ([\d,]+) steps of 8 rows", out)[1].replace(",", ""))  # type: ignore[index]
    counts = MixtureSchedule(list(mixture.values())).counts(8 * steps)
    epochs = {line.split()[1]: int(line.split()[5].replace(",", "")) for line in out.splitlines() if "# toy" in line}
    assert abs(counts[0] - epochs["toy_jets"]) <= 8 and abs(counts[1] - 3 * epochs["toy_showers"]) <= 8
    code, out, _ = run(capsys, "reweigh", stage.home, "--temperature", 1, "--row-tokens", 64)
    assert code == 0 and all(line.endswith(" 1") for line in out.splitlines() if "# toy" in line)
    code, out, _ = run(capsys, "reweigh", stage.home, "--shares", 0.25, 0.75, "--row-tokens", 64, "--steps", 10)
    assert "25.00 %" in out and "in 10 steps of 4 rows" in out


@pytest.mark.parametrize(
    "arguments",
    [["--epochs", "1"], ["--shares", "-1", "2"], ["--temperature", "0"], ["--epochs", "1", "1", "--row-tokens", "4"]],
)
def test_wrong_wishes_are_refused(arguments: list[str], stage: Stage, capsys) -> None:
    code, _, error = run(capsys, "reweigh", stage.home, *arguments)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1


# plan

RECIPE = """\
name: planned
description: only looked at
seed: 9
stages:
  - {kind: simulate, name: jets, dataset: gflash_siw, objects: {train: 9}}
  - {kind: tokenizer, name: codes, from: jets, method: {type: per_feature}}
  - {kind: tokenize, name: tokens, datasets: [{from: jets, tokenizer: codes}]}
  - kind: pretrain
    name: pretrain
    data: tokens
    mixture: {toy_jets: 0.75, toy_showers: 0.25}
    train: {steps: 30, row_tokens: 64, rows_per_step: 8}
  - {kind: finetune, name: tagger, from: pretrain, data: tokens, dataset: toy_jets, labels: 100, train: {steps: 50}}
"""


@pytest.fixture
def short_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan of these tiny datasets needs no hundred thousand rows."""
    monkeypatch.setattr("foundation.stream.planning.LOOKED_AT", 2**10)


def test_plan_says_what_a_run_reads(stage: Stage, short_look: None, capsys) -> None:
    options = ["--weights", 0.75, 0.25, "--row-tokens", 64, "--rows-per-step", 8, "--steps", 30, "--seed", 9]
    code, out, _ = run(capsys, "plan", stage.home, *options, "--tokens-per-second", 1e6, "--ranks", 4)
    assert code == 0 and "a step: 8 rows of 64 over 4 ranks" in out and "MB/s a rank" in out
    layout = Layout(stage.vocabulary, "delayed")
    data = [ShardedDataset(stage.home / tag / "train", stage.vocabulary.digest) for tag in stage.clouds]
    stream = TokenStream(data, [0.75, 0.25], layout, StreamConfig(64, 8, 9))
    seen = np.zeros(2)
    for step in range(30):
        (batch,) = stream.batches(step)
        np.add.at(seen, batch.dataset, np.diff(batch.offsets))
    for tag, tokens, rows in zip(stage.clouds, seen, (stream.rows_per_epoch(0), stream.rows_per_epoch(1)), strict=True):
        assert f"{tag}: {len(stage.clouds[tag])} sequences; {rows} rows" in out
        planned = float(re.search(rf"  {tag}: ([\d,]+) tokens", out)[1].replace(",", ""))  # type: ignore[index]
        assert planned == pytest.approx(tokens, rel=0.05)


def test_plan_of_a_recipe_takes_its_numbers(
    stage: Stage, tmp_path: Path, short_look: None, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("FOUNDATION_RUNS", str(tmp_path / "runs"))
    (tmp_path / "planned.yaml").write_text(RECIPE)
    code, _, error = run(capsys, "plan", "--recipe", tmp_path / "planned.yaml")
    assert code == 2 and "planned/tokens: there is no vocabulary.json here" in error
    (tmp_path / "runs" / "planned").mkdir(parents=True)
    (tmp_path / "runs" / "planned" / "tokens").symlink_to(stage.home)
    code, out, _ = run(capsys, "plan", "--recipe", tmp_path / "planned.yaml")
    assert code == 0 and "8 rows of 64 over 1 ranks" in out and "75.00% of the rows" in out and "in 30 steps:" in out
    code, out, _ = run(capsys, "plan", "--recipe", tmp_path / "planned.yaml", "--stage", "tagger", "--row-tokens", 32)
    assert code == 0 and "toy_jets: 100 sequences" in out and "4 rows of 32" in out and "toy_showers" not in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give the folders of datasets, or --recipe"),
        (["HOME", "--recipe", "quickstart"], "give the folders of datasets, or --recipe"),
        (["--recipe", "quickstart", "--stage", "pretrian"], "did you mean 'pretrain'"),
        (["HOME", "--weights", "1"], "1 weights for 2 datasets"),
        (["HOME", "--temperature", "0"], "temperature of a mixture must be above 0"),
        (["HOME", "HOME/../more_jets"], "two folders have the same tag"),
    ],
)
def test_wrong_plans_are_refused(arguments: list[str], words: str, stage: Stage, capsys) -> None:
    code, _, error = run(capsys, "plan", *(word.replace("HOME", str(stage.home)) for word in arguments))
    assert code == 2 and words in error


# The page


def test_nothing_but_model_and_optimizer_is_handed_to_accelerate() -> None:
    # a loader that gives each rank its own part would be divided once more (docs/explanation/stream.md)
    handed, loaders = [], []
    for path in (ROOT / "foundation").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("accelerator.prepare"):
                handed.append([ast.unparse(argument) for argument in node.args])
            if isinstance(node, ast.Name) and node.id == "DataLoader":
                loaders.append(path)
    assert handed and all(arguments == ["task", "optimizer"] for arguments in handed) and not loaders


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", STREAM_PAGE.read_text()))
    assert len(named) > 10
    there = {
        (path.name, node.name)
        for path in (ROOT / "tests").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert not named - there
