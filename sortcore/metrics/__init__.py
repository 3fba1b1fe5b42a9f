"""How good spikes are, where the truth is known: of probes and of optics alike.

    sorting     a sorting against the true units: `compare`
    trains      one train or trace against the truth: counts within a tolerance, curves over thresholds, correlation
    distances   between spike trains: van Rossum, Victor and Purpura
    intervals   of shares and rates, where events are few
"""

from sortcore.metrics.distances import van_rossum, victor_purpura
from sortcore.metrics.intervals import poisson_interval, share_interval
from sortcore.metrics.sorting import Comparison, compare, match_counts, match_spikes, pair_units, spike_trains
from sortcore.metrics.trains import (
    PrecisionRecall,
    Roc,
    SpikeScore,
    correlation,
    precision_recall,
    roc,
    score_events,
    score_spikes,
)

__all__ = ["Comparison", "PrecisionRecall", "Roc", "SpikeScore", "compare", "correlation", "match_counts", "match_spikes", "pair_units",
           "poisson_interval", "precision_recall", "roc", "score_events", "score_spikes", "share_interval", "spike_trains", "van_rossum",
           "victor_purpura"]
