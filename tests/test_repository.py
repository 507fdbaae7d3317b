"""The repository keeps its own rules: every YAML loads, imports run one way, the documents tell the truth."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from foundation.cli import main
from foundation.data.cards import Condition, load_card
from foundation.data.files import read_point_clouds
from foundation.generate.request_config import Distribution, FromFile, Reject
from foundation.model.config import TransformerConfig
from foundation.recipe import schema
from foundation.recipe.loading import load_recipe
from foundation.recipe.samples import Completion, Recalibration
from foundation.tokens.config import TokenizerConfig
from foundation.train.config import TrainConfig

ROOT = Path(__file__).parent.parent
# A package may import those before it; errors and console may be imported by all.
ORDER = """
    data tokens stream model tasks train generate evaluate registry recipe api
    data_cli shards_cli plan_cli checkpoint_cli vocabulary_cli evaluate_cli generate_cli likelihood_cli cli __main__
    __init__
""".split()
# What a recipe can set, typed where it belongs; it needs nothing of its package.
SETTINGS = {
    "foundation.model.config", "foundation.model.sizes", "foundation.train.config", "foundation.tokens.config",
}  # fmt: skip
MAXIMUM_LINES = 400
# Made by tools and by runs; all of it is in .gitignore.
MADE = {"build", "dist", "site", "runs", "__pycache__"}
TOPOLOGY = {
    "compute_environment", "distributed_type", "num_machines", "num_processes", "machine_rank", "main_process_ip",
    "main_process_port", "rdzv_backend", "use_cpu", "gpu_ids", "deepspeed_config",
}  # fmt: skip
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")])
FENCE = re.compile(r"^(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.S | re.M)


def relative(path: Path) -> str:
    """Path as it is written in the repository."""
    return path.relative_to(ROOT).as_posix()


@cache
def sources() -> dict[Path, ast.Module]:
    """Parsed modules of the package."""
    return {path: ast.parse(path.read_text()) for path in sorted((ROOT / "foundation").rglob("*.py"))}


def blocks(path: Path, language: str) -> Iterator[tuple[str | None, str]]:
    """File name (where a comment before the block gives one) and text of the fenced blocks of a document."""
    for match in FENCE.finditer(path.read_text()):
        if match["language"] == language:
            yield match["file"], match["text"]


# Data in the repository


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=relative)
def test_every_recipe_is_valid(path: Path) -> None:
    assert load_recipe(path).recipe.description


@pytest.mark.parametrize("path", sorted((ROOT / "datasets").glob("*.yaml")), ids=relative)
def test_every_card_loads_and_is_named_like_its_file(path: Path) -> None:
    card = load_card(str(path))
    assert card.name == path.stem
    assert card.citation and all(feature.description for feature in card.features)


def test_folders_of_data_are_no_packages() -> None:
    # An __init__.py in datasets/ would hide Hugging Face's package of that name.
    assert not [p for folder in ("datasets", "recipes", "launch") for p in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.yaml")), ids=relative)
def test_launch_files_hold_topology_only(path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    # accelerate refuses ZeRO stage, precision and the like here when the recipe gives them.
    assert set(settings) <= TOPOLOGY
    assert set(settings.get("deepspeed_config", {})) <= {"deepspeed_multinode_launcher"}
    # true would silently turn DeepSpeed off; an unquoted NO would be read as false.
    assert settings["use_cpu"] is False
    assert settings["distributed_type"] == ("NO" if settings["num_processes"] == 1 else "DEEPSPEED")
    if settings["num_machines"] > 1:
        assert settings["deepspeed_config"]["deepspeed_multinode_launcher"] == "standard"


def test_scripts_are_shell_that_parses_and_ci_calls_make_test_only() -> None:
    for script in (*(ROOT / "launch").glob("*.sbatch"), *(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"):
        subprocess.run(["bash", "-n", script], check=True)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and line[0] != "#"]
    assert commands == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]


def test_the_schema_file_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    now = json.loads(capsys.readouterr().out)
    remedy = "run: foundation schema > recipes/schema.json"
    assert json.loads((ROOT / "recipes" / "schema.json").read_text()) == now, remedy


# The code


def imported(path: Path, tree: ast.Module) -> Iterator[str]:
    """Modules of the package that a file imports, also inside functions."""
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{relative(path)}: relative import"
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "foundation":
            names = [f"foundation.{a.name}" for a in node.names if (ROOT / "foundation" / a.name).is_dir()]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (name for name in names if name.startswith("foundation."))


def test_imports_run_one_way() -> None:
    wrong = []
    for path, tree in sources().items():
        package = path.relative_to(ROOT / "foundation").parts[0].removesuffix(".py")
        own = ORDER.index(package) if package in ORDER else -1
        for module in imported(path, tree):
            other = module.split(".")[1]
            if other in ("errors", "console") or module in SETTINGS:
                continue
            if ORDER.index(other) > own:
                wrong.append(f"{relative(path)} imports {module}")
    assert not wrong


def test_settings_modules_import_nothing_of_the_package_but_settings() -> None:
    for name in SETTINGS:
        path = ROOT / (name.replace(".", "/") + ".py")
        assert set(imported(path, sources()[path])) <= SETTINGS


def test_no_file_is_too_long() -> None:
    lines = {relative(path): len(path.read_text().splitlines()) for path in sources()}
    assert not {name: n for name, n in lines.items() if n > MAXIMUM_LINES}


def forbidden(node: ast.AST) -> str | None:
    """What is wrong with a node: it could run code of a file, or of a user's text."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        bad = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"} & {n.split(".")[0] for n in names}
        return f"import {bad.pop()}" if bad else None
    if not isinstance(node, ast.Call):
        return None
    call = ast.unparse(node.func)
    given = {k.arg: ast.unparse(k.value) for k in node.keywords}
    if call in ("eval", "exec", "os.system", "yaml.unsafe_load", "yaml.full_load"):
        return call
    if call == "torch.load" and given.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    if call == "yaml.load" and not re.search("Safe|Strict", " ".join([*map(ast.unparse, node.args), *given.values()])):
        return "yaml.load without a safe loader"
    wanted = {"allow_pickle": "False", "shell": "False", "weights_only": "True"}
    return next((f"{key}={given[key]}" for key, value in wanted.items() if given.get(key, value) != value), None)


def test_nothing_loads_or_runs_foreign_code() -> None:
    found = [
        f"{relative(path)}:{node.lineno}: {forbidden(node)}"  # type: ignore[attr-defined]
        for path, tree in sources().items()
        for node in ast.walk(tree)
        if forbidden(node)
    ]
    assert not found


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from dill import load", "torch.load(p)", "torch.load(p, weights_only=False)", "eval(text)",
     "np.load(p, allow_pickle=True)", "subprocess.run(c, shell=True)", "yaml.load(t)", "yaml.load(t, yaml.Loader)"],
)  # fmt: skip
def test_the_rule_above_finds_what_it_looks_for(code: str) -> None:
    assert any(forbidden(node) for node in ast.walk(ast.parse(code)))


# The package


def test_every_package_is_named_for_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    real = {relative(path.parent).replace("/", ".") for path in sources()}
    shipped = {f"foundation.shipped.{folder}" for folder in ("datasets", "launch", "recipes")}
    assert set(settings["packages"]) == real | shipped
    assert set(settings["package-dir"]) == shipped


@pytest.mark.slow
def test_an_installed_wheel_finds_its_cards_and_recipes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("foundation", "datasets", "recipes", "launch"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run([*pip, *wheel], check=True)
    installed = tmp_path / "installed"
    built = str(next(tmp_path.glob("*.whl")))
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(installed), built], check=True)
    shutil.rmtree(source)

    def foundation(*arguments: str) -> str:
        # On PYTHONPATH it comes before the checkout that is installed here.
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout  # fmt: skip

    assert foundation("-c", "import foundation; print(foundation.__file__)").startswith(str(installed))
    listed = foundation("-m", "foundation", "list", "datasets").splitlines()
    assert {line.split()[0] for line in listed} == {p.stem for p in (ROOT / "datasets").glob("*.yaml")}
    assert foundation("-m", "foundation", "validate", "quickstart").startswith("quickstart: fine")
    ours = {relative(p) for p in (ROOT / "launch").rglob("*") if p.is_file()} | {"recipes/schema.json"}
    assert not {name for name in ours if not (installed / "foundation" / "shipped" / name).is_file()}


# The documents


def test_the_tree_of_the_readme_is_the_real_tree() -> None:
    text = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- tree -->\n```\n(.*?)```", text, re.S)
    assert found
    named, parent = set(), ""
    for line in found[1].splitlines():
        name, comment = re.fullmatch(r"((?:  )?\S+) +(\S.*)", line).groups()  # type: ignore[union-attr]
        parent = parent if name.startswith("  ") else name if name.endswith("/") else ""
        named.add((parent if name.startswith("  ") else "") + name.strip())
        assert comment
    real = {
        folder + path.name + ("/" if path.is_dir() else "")
        for folder in ("", "foundation/")
        for path in (ROOT / folder).iterdir()
        if path.name[0] not in "._" and path.name not in MADE and path.suffix not in (".egg-info", ".db")
    }
    assert named == real


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_point_to_files(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text())
    assert not [t for t in targets if "://" not in t and not (path.parent / t).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_code_in_documents_imports_what_there_is(path: Path) -> None:
    for _, text in blocks(path, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("foundation"):
                module = importlib.import_module(node.module or "")
                assert not [a.name for a in node.names if not hasattr(module, a.name)]


def test_the_readme_quotes_stages_as_the_quickstart_has_them() -> None:
    quoted = next(text for _, text in blocks(ROOT / "README.md", "yaml") if text.startswith("  - kind: pretrain"))
    recipe = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    stages = {stage["name"]: stage for stage in recipe["stages"]}
    for stage in yaml.safe_load(quoted):
        assert {**stages[stage["name"]], **stage} == stages[stage["name"]]


def test_the_tutorial_names_every_stage_of_the_quickstart() -> None:
    text = (ROOT / "docs" / "tutorials" / "quickstart.md").read_text()
    headings = " ".join(re.findall(r"^## (.*)$", text, re.M))
    for stage in load_recipe(ROOT / "recipes" / "quickstart.yaml").recipe.stages:
        assert stage.kind in headings and re.search(rf"\b{stage.name}\b", text), stage.name


def sections(path: Path) -> dict[str, str]:
    """Text below each heading of a document, up to the next one."""
    parts = re.split(r"^##+ (.*)$", path.read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_reference_names_every_kind_and_key() -> None:
    text = sections(ROOT / "docs" / "reference" / "recipes.md")
    tokenizers: tuple[type[BaseModel], ...] = get_args(get_args(TokenizerConfig)[0])
    models: dict[str, type[BaseModel]] = {
        "The file": schema.Recipe,
        **{f"method: {get_args(m.model_fields['type'].annotation)[0]}": m for m in tokenizers},
        "datasets of tokenize": schema.TokenizedDataset,
        "conditions of a dataset": Condition,
        "model": TransformerConfig,
        "train": TrainConfig,
        "samples of generate": schema.Sample,
        "conditions of samples": Distribution,
        "conditions of a file": FromFile,
        "complete of samples": Completion,
        "reject of samples": Reject,
        "calibrate of samples": Recalibration,
        "information of evaluate_tokenizers": schema.InformationSettings,
        "models of register": schema.RegisteredModel,
    }
    for stage in get_args(get_args(schema.Stage)[0]):
        models[get_args(stage.model_fields["kind"].annotation)[0]] = stage
    for heading, model in models.items():
        real = {field.alias or name for name, field in model.model_fields.items()}
        described = set(re.findall(r"^\| `(\w+)` \|", text[heading], re.M))
        shared = {"kind", "name"} if issubclass(model, schema.StageSpec) else set()
        keys = real - shared
        # simulate also lists the settings of the simulators
        assert keys <= described if heading == "simulate" else keys == described - {"extends"}, heading


@pytest.mark.slow
def test_the_example_with_own_data_runs_as_it_stands(tmp_path: Path) -> None:
    files = [*blocks(ROOT / "README.md", "python"), *blocks(ROOT / "README.md", "yaml")]
    for name, text in files:
        if name:
            (tmp_path / name).write_text(text)
    environment = {**os.environ, "FOUNDATION_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    for command in (["make_my_jets.py"], ["-m", "foundation", "run", "my_recipe.yaml"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "my_jets" / "report" / "report.html").is_file()
    generated = read_point_clouds(tmp_path / "runs" / "my_jets" / "generated" / "my_jets.h5")
    assert len(generated) == 200 and generated.features == ("pt", "eta_rel", "phi_rel")


def test_a_file_written_with_h5py_alone_is_read(tmp_path: Path) -> None:
    texts = {name: text for name, text in blocks(ROOT / "docs" / "how-to" / "own-data.md", "python") if name}
    (tmp_path / "with_h5py.py").write_text(texts["with_h5py.py"])
    subprocess.run([sys.executable, "with_h5py.py"], cwd=tmp_path, check=True)
    clouds = read_point_clouds(tmp_path / "my_showers.h5")
    assert clouds.counts.tolist() == [3, 2] and clouds.condition("incident_energy").tolist() == [50.0, 10.0]
