"""python -m benchmarks.false_alarms: how often the detector fires in pure noise, beside the rate that was stated."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.report import markdown
from sortcore.ephys import detect
from sortcore.ephys.config import DetectConfig
from sortcore.types import Probe
from sortcore.workers import in_order

FS, SECONDS, SEEDS = 30000.0, 2.0, 4


def measured(probe: Probe, rates: tuple[float, ...], channel_seconds: float = 24000.0) -> list[list[float]]:
    """Measured over stated rate: one row a rate, one value a seed of the threshold."""
    n = probe.n_channels
    noise = np.random.default_rng(0).standard_normal((n, int(FS)), dtype=np.float32)
    config = DetectConfig()
    bank = detect.make_bank(*detect.learn_prototypes(noise, int(0.0006 * FS), int(0.001 * FS), 0), probe, config.radius_um)
    thresholds = [[detect.false_alarm_threshold(bank, DetectConfig(false_alarm_hz=rate), FS, probe.positions_um, seed)
                   for seed in range(SEEDS)] for rate in rates]
    lowest, parts = min(min(row) for row in thresholds), int(channel_seconds / n / SECONDS)

    def look(part: int) -> np.ndarray:
        x = np.random.default_rng(1000 + part).standard_normal((n, int(SECONDS * FS)), dtype=np.float32)
        return detect.detect(torch.from_numpy(x), bank, lowest, config, FS, probe.positions_um).scores

    scores = np.concatenate(list(in_order(look, range(parts))))
    return [[float((scores > t).sum() / (parts * SECONDS * n) / rate) for t in row] for row, rate in zip(thresholds, rates, strict=True)]


def main() -> None:
    rates = (0.01, 0.1, 1.0)
    places = np.stack([np.tile([43.0, 11.0, 59.0, 27.0], 4), 20.0 * (np.arange(16) // 2)], axis=1)
    rows = [["probe", "stated, per channel and second", *(f"measured over stated, seed {s}" for s in range(SEEDS))]]
    probes = {"16 contacts of Neuropixels 1.0": Probe(places, np.zeros(16, int)), "4 contacts far apart": Probe.independent(4)}
    for name, probe in probes.items():
        for rate, ratios in zip(rates, measured(probe, rates), strict=True):
            rows.append([name, f"{rate:g}", *(f"{ratio:.2f}" for ratio in ratios)])
    print(markdown(rows))


if __name__ == "__main__":
    main()
