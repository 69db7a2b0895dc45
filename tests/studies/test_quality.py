"""The quality of scores, against numbers by hand."""

import torch

from metasp_lite.studies.quality import quality


def test_quality_counts_signs_and_measures_size():
    true = torch.tensor([-2.0, -1.0, -1.0, 4.0], dtype=torch.float64)
    scores = torch.tensor([-1.0, -0.5, 0.5, 2.0], dtype=torch.float64)
    # by hand: one sign of four is wrong, 2 of 3 negatives and 1 of 1 positives are found; Σ true·scores = 10,
    # Σ true² = 22, and the scores less their mean 0.25 have the square sum 5.25
    assert quality(true, scores) == {
        "signs_right": 3,
        "constant_guess": 3,
        "balanced_accuracy": 0.833,
        "pearson": round(10 / (22 * 5.25) ** 0.5, 4),
        "slope": 0.455,
    }
