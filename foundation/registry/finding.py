"""The folder of a trained model, by any of the names that a user has for it."""

from __future__ import annotations

from pathlib import Path

from foundation.errors import RegistryError
from foundation.registry.models import resolve_model
from foundation.registry.store import runs_base


def find_model(model: str | Path, runs_folder: Path | None = None) -> Path:
    """The folder with the model.json of `models:/NAME[@ALIAS]`, a model folder, or a training stage's folder.

    A stage may also be named from the folder of all runs on, as RUN/STAGE. Raises RegistryError where there is none.
    """
    if str(model).startswith("models:/"):
        return resolve_model(str(model), runs_base(runs_folder))
    for home in (Path(model), runs_base(runs_folder) / model):
        for folder in (home, home / "model"):
            if (folder / "model.json").is_file():
                return folder
    raise RegistryError(
        f"{model}: no model here: give a folder with a model.json, that of a pretrain stage, or models:/NAME@ALIAS"
    )
