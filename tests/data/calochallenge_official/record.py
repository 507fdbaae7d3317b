"""Record outputs of the official CaloChallenge evaluation on small self-made showers; see README.md here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CARDS = {"1_photons": "photon", "1_pions": "pion", "2": "electron", "3": "electron"}
FEATURE_SHOWERS = 8
"""Of each sample, whose features are recorded one by one."""


def official(folder: Path, name: str, showers: np.ndarray, energy: np.ndarray):
    """The official features of dense showers."""
    import HighLevelFeatures as HLF

    os.chdir(folder)
    found = HLF.HighLevelFeatures(CARDS[name], filename=f"binning_dataset_{name}.xml")
    found.CalculateFeatures(showers)
    found.Einc = energy
    return found


def vector(evaluate, found, energy: np.ndarray) -> np.ndarray:
    """The official input vector of the high-level classifier, without the label."""

    def read(given_file: object, label: float) -> tuple[None, np.ndarray]:
        return None, energy

    evaluate.extract_shower_and_energy = read
    return evaluate.prepare_high_data_for_classifier(None, found, 0.0)[:, :-1]


def low_inputs(evaluate, found, showers: np.ndarray, energy: np.ndarray, normed: bool) -> np.ndarray:
    """The official inputs of the low-level classifiers, without the label."""
    evaluate.extract_shower_and_energy = lambda given_file, label: (showers, energy)
    return evaluate.prepare_low_data_for_classifier(None, found, 0.0, normed=normed)[:, :-1]


def scores(evaluate) -> dict[str, np.ndarray]:
    """What evaluate_cls makes of given logits: accuracy, AUC, JSD, before and after isotonic calibration."""
    import argparse

    import torch

    rng = np.random.default_rng(7)
    found: dict[str, np.ndarray] = {}
    for case, (shift, digits) in {"smooth": (0.6, 12), "ties": (1.0, 1), "sure": (40.0, 3)}.items():
        data = []
        for part in ("select", "test"):
            labels = rng.integers(0, 2, 400).astype(np.float64)
            logits = np.round(rng.normal(0, 1, 400) + shift * (labels - 0.5), digits)
            found[f"{case}_{part}_labels"], found[f"{case}_{part}_logits"] = labels, logits
            rows = torch.tensor(np.stack([logits, labels], axis=1))
            data.append([(rows,)])
        identity = torch.nn.Identity()
        arguments = argparse.Namespace(save_mem=False)
        plain = evaluate.evaluate_cls(identity, data[1], arguments)
        final = evaluate.evaluate_cls(identity, data[1], arguments, final_eval=True, calibration_data=data[0])
        found[f"{case}_plain"] = np.array([float(x) for x in plain])
        found[f"{case}_calibrated"] = np.array([float(x) for x in final])
    return found


def resnet_outputs() -> dict[str, np.ndarray]:
    """Logits of the official ResNet-18 with weights drawn parameter by parameter, as the test draws them."""
    import torch
    from resnet import generate_model

    model = generate_model(18, img_shape=(45, 16, 9))
    rng = np.random.default_rng(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(0, 0.1, tuple(parameter.shape))))
    images = torch.from_numpy(np.random.default_rng(4).exponential(1.0, (5, 1 + 6480)))
    train = model.train()(images).detach().numpy()
    return {
        "train": train,
        "eval": model.eval()(images).detach().numpy(),
        "parameters": np.array(sum(p.numel() for p in model.parameters())),
    }


def run(code: Path, work: Path, name: str, mode: str, *options: str) -> str:
    """One run of the unchanged evaluate.py on the two files in `work`; what it printed."""
    command = [
        sys.executable,
        str(code / "evaluate.py"),
        "-i",
        str(work / f"{name}_generated.hdf5"),
        "-r",
        str(work / f"{name}_truth.hdf5"),
        "-m",
        mode,
        "-d",
        name.replace("_", "-"),
        "--output_dir",
        str(work / f"out_{name}"),
        "--no_cuda",
        *options,
    ]
    done = subprocess.run(command, cwd=code, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def read_printed(text: str) -> dict[str, float | None]:
    """Separation powers and PRDC by the official names; None where it divided by zero."""
    pairs = re.findall(r"Separation power of (.+?)(?: histogram)?: ([-+.\deE]+|nan)\n", text)
    found: dict[str, float | None] = {name: None if value == "nan" else float(value) for name, value in pairs}
    for name in ("precision", "recall", "density", "coverage"):
        match = re.search(rf"'{name}': (?:np\.float64\()?([-+.\deE]+)", text)
        if match:
            found[name] = float(match[1])
    return found


def more_separations(evaluate, truth, generated, name: str) -> dict[str, float | None]:
    """Those that evaluate.py has functions for but does not call: sparsity, EC r and its width."""
    import argparse
    import contextlib
    import io
    import tempfile

    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed):
        arguments = argparse.Namespace(dataset=name.replace("_", "-"), mode="hist-chi", output_dir=folder)
        for plot in (evaluate.plot_sparsity, evaluate.plot_ECR, evaluate.plot_ECWidthR):
            plot(generated, truth, arguments)
    return read_printed(printed.getvalue())


def main(code: Path, work: Path) -> None:
    """Record everything; `work` has the files that write.py made."""
    import h5py

    sys.path.insert(0, str(code))
    sys.argv = sys.argv[:1]
    import evaluate
    import jetnet

    hgcal = os.environ.get("HGCAL_CODE")
    if hgcal:
        sys.path.insert(0, hgcal)
    numbers: dict[str, dict[str, object]] = {}
    arrays: dict[str, np.ndarray] = {}
    for name in CARDS:
        threshold = 1.0 if name.startswith("1") else 0.5e-3 / 0.033
        features = {}
        for sample in ("truth", "generated"):
            with h5py.File(work / f"{name}_{sample}.hdf5") as file:
                showers, energy = file["showers"][:].astype(np.float64), file["incident_energies"][:].astype(np.float64)
            showers = np.where(showers < threshold, 0.0, showers)
            features[sample] = official(code, name, showers, energy)
            vectors = vector(evaluate, features[sample], energy)
            arrays[f"{name}_{sample}_vector"] = vectors[:FEATURE_SHOWERS]
            if name in ("1_photons", "1_pions") and sample == "truth":
                for normed in (False, True):
                    inputs = low_inputs(evaluate, features[sample], showers, energy, normed)
                    arrays[f"{name}_low_{int(normed)}"] = inputs[:4]
            features[f"{sample}_vector"] = vectors
        numbers[name] = read_printed(run(code, work, name, "hist-chi"))
        numbers[name] |= more_separations(evaluate, features["truth"], features["generated"], name)
        numbers[name] |= read_printed(run(code, work, name, "prdc"))
        if name == "1_photons":
            text = run(code, work, name, "fpd")
            numbers[name]["printed_fpd_kpd"] = re.findall(r"[FK]PD \(x10\^3\): ([-.\d]+) ± ([-.\d]+)", text)
            pair = features["truth_vector"], features["generated_vector"]
            numbers[name]["fpd"] = [float(x) for x in jetnet.evaluation.fpd(*pair, min_samples=10000)]
            numbers[name]["kpd"] = [float(x) for x in jetnet.evaluation.kpd(*pair, batch_size=10000)]
            if hgcal:
                import fpd_trim

                small = {"min_samples": 500, "max_samples": 1000, "num_batches": 5, "num_points": 4}
                numbers[name]["fpd_trimmed"] = [float(x) for x in fpd_trim.fpd_trimmed_intercept(*pair, **small)]
                numbers[name]["fpd_untrimmed"] = [
                    float(x) for x in fpd_trim.fpd_trimmed_intercept(*pair, trim_pct=0.0, **small)
                ]
    arrays |= {f"scores_{k}": v for k, v in scores(evaluate).items()}
    arrays |= {f"resnet_{k}": v for k, v in resnet_outputs().items()}
    np.savez_compressed(HERE / "official.npz", **arrays)
    (HERE / "official.json").write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
