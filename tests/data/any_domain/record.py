"""Record what scikit-learn and the code of the C_T test say about small samples; see README.md here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import sklearn
from sklearn import metrics
from sklearn.calibration import calibration_curve

HERE = Path(__file__).parent
CLASSES, OBJECTS = 4, 600


def classifier(seed: int, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of classes of unlike size, and probabilities rounded to these digits, so that there are ties."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, OBJECTS, p=[0.4, 0.3, 0.2, 0.1])
    logits = rng.normal(size=(OBJECTS, CLASSES)) + 1.2 * (np.arange(CLASSES) == labels[:, None])
    p = np.round(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), digits)
    return labels, p / p.sum(1, keepdims=True)


def scores(labels: np.ndarray, p: np.ndarray) -> dict[str, object]:
    """scikit-learn's numbers."""
    guessed = p.argmax(1)
    right, confidence = (guessed == labels).astype(int), p.max(1)
    shares, means = calibration_curve(right, confidence, n_bins=15)
    background, signal, _ = metrics.roc_curve(labels == 2, p[:, 2], drop_intermediate=False)
    return {
        "accuracy": metrics.accuracy_score(labels, guessed),
        "confusion": metrics.confusion_matrix(labels, guessed).tolist(),
        "auc_ovr": metrics.roc_auc_score(labels, p, multi_class="ovr", average="macro"),
        "auc_ovo": metrics.roc_auc_score(labels, p, multi_class="ovo", average="macro"),
        "auc_rest": [metrics.roc_auc_score(labels == k, p[:, k]) for k in range(CLASSES)],
        "brier": metrics.brier_score_loss(labels, p),
        "nll": metrics.log_loss(labels, p),
        "reliability_accuracy": shares.tolist(),
        "reliability_confidence": means.tolist(),
        "roc_of_class_2": [background.tolist(), signal.tolist()],
    }


def copying(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Samples in three features and two cells, and Z_U and C_T of the authors' code."""
    sys.path.insert(0, str(folder))
    import data_copying_tests as authors

    rng = np.random.default_rng(5)
    training, held_out = rng.normal(size=(120, 3)), rng.normal(size=(90, 3))
    copies = training[rng.integers(0, 120, 40)] + rng.normal(0, 0.05, (40, 3))
    generated = np.concatenate([copies, rng.normal(size=(60, 3))])
    samples = {"training": training, "held_out": held_out, "generated": generated}
    cells = {name: (x[:, 0] > 0).astype(int) for name, x in samples.items()}
    numbers = {"z": float(np.squeeze(authors.Zu(held_out, generated, training)))}
    pairs = [x for name in ("held_out", "generated", "training") for x in (samples[name], cells[name])]
    for least in (0.02, 0.5):
        numbers[f"c_t_{least}"] = float(authors.C_T(*pairs, least))
    return samples, numbers


def main(folder: Path) -> None:
    arrays: dict[str, np.ndarray] = {}
    numbers: dict[str, object] = {"versions": {"scikit-learn": sklearn.__version__, "numpy": np.__version__}}
    for name, seed, digits in (("smooth", 1, 12), ("ties", 2, 1)):
        labels, p = classifier(seed, digits)
        arrays[f"{name}_labels"], arrays[f"{name}_probabilities"] = labels, p
        numbers[name] = scores(labels, p)
    samples, numbers["copying"] = copying(folder)
    np.savez_compressed(HERE / "samples.npz", **arrays, **samples)
    (HERE / "references.json").write_text(json.dumps(numbers, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
