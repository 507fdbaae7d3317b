"""What DeepSpeed is told: by the recipe, and by a file of the user's for what the recipe has no word for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foundation.errors import TrainingError
from foundation.train.config import TrainConfig
from foundation.train.optimizers import largest_norm

Settings = dict[str, Any]

RECIPE_KEYS = {
    "train_batch_size": "rows_per_step",
    "train_micro_batch_size_per_gpu": "rows_per_step",
    "gradient_accumulation_steps": "accumulation",
    "gradient_clipping": "clip",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "bf16.enabled": "precision",
    "fp16.enabled": "precision",
    "torch_autocast.enabled": "precision",
    "zero_optimization.stage": "zero_stage",
    "zero_optimization.offload_optimizer.device": "offload",
    "zero_optimization.offload_param.device": "offload",
}
"""The recipe's word for settings that belong to it: a file may repeat these, and not say anything else."""


def deepspeed_settings(config: TrainConfig) -> Settings:
    """All settings. Raises TrainingError where the file of `config.deepspeed` contradicts the recipe."""
    settings = _settings(config)
    if config.deepspeed is not None:
        path = Path(config.deepspeed)
        said = _what_recipe_says(config)
        for key, value in _flat(_read(path)).items():
            _add(settings, said, key, value, path)
    return settings


def _settings(config: TrainConfig) -> Settings:
    zero: Settings = {"stage": config.zero_stage, "stage3_gather_16bit_weights_on_model_save": True}
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    if config.optimizer == "muon":
        # DeepSpeed's Muon wants whole gradients at ZeRO 3, and refuses to start where they are scattered
        zero["reduce_scatter"] = False
    settings: Settings = {
        # no loader is prepared, so DeepSpeed must be told a size; it is used for its bookkeeping only
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": _clip(config),
        "zero_optimization": zero,
        # torch's fused AdamW updates weights in the host's memory well; DeepSpeed's would be compiled at the first use
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if config.precision == "bf16" and config.zero_stage == 0:
        # weights in bf16 beside gradients in fp32 are not to be had at ZeRO 0: fp32 weights, and matmuls in bf16
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    elif config.precision == "bf16":
        # without fp32 here the micro-batches of a step would be added up in bf16
        settings |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return settings


def _clip(config: TrainConfig) -> float:
    """0, which is never, where the engine clips by itself (ZeRO 0) or nobody does."""
    norm = largest_norm(config)
    return norm if config.zero_stage and norm < float("inf") else 0.0


def _what_recipe_says(config: TrainConfig) -> dict[str, object]:
    """By key, the values with which a file agrees with the recipe."""
    offload = {"none": (None, None), "optimizer": ("cpu", None), "parameters": ("cpu", "cpu")}[config.offload]
    return {
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip,
        "bf16.enabled": config.precision == "bf16",
        "fp16.enabled": False,
        "zero_optimization.stage": config.zero_stage,
        "zero_optimization.offload_optimizer.device": offload[0] or "none",
        "zero_optimization.offload_param.device": offload[1] or "none",
    }


def _add(settings: Settings, said: dict[str, object], key: str, value: Any, path: Path) -> None:
    """Add one setting of a file; `auto`, as files for other trainers have, leaves it to the recipe."""
    word = next((word for known, word in RECIPE_KEYS.items() if f"{key}.".startswith(f"{known}.")), None)
    if value == "auto" or (key in said and said[key] == value):
        return
    if word is not None:
        raise TrainingError(
            f"{path}: {key} {json.dumps(value)} contradicts {word} of the recipe: remove it here and set {word} there"
        )
    *sections, last = key.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
    if last in settings and settings[last] != value:
        raise TrainingError(f"{path}: {key} {json.dumps(value)} cannot be: training needs {json.dumps(settings[last])}")
    settings[last] = value


def _flat(settings: Settings, before: str = "") -> Settings:
    """Settings of all sections by their dotted key."""
    flat: Settings = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat


def _read(path: Path) -> Settings:
    try:
        settings = json.loads(path.read_text())
    except OSError as error:
        raise TrainingError(f"{path}: cannot read these DeepSpeed settings ({error.strerror})") from None
    except json.JSONDecodeError as error:
        raise TrainingError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(settings, dict):
        raise TrainingError(f"{path}: not a JSON object of DeepSpeed settings")
    return settings
