"""Smoothing of learning curves."""

import numpy as np

from megalm.smoothing import smooth


def test_smoothing_keeps_lines_straight_and_leaves_out_gaps():
    line = np.linspace(5.0, 1.0, 301)
    np.testing.assert_allclose(smooth(line), line, rtol=1e-12)
    gap = np.array([2.0, np.nan, 2.0, np.nan, np.nan, np.nan, 4.0])
    np.testing.assert_array_equal(smooth(gap), [2.0, 2.0, 2.0, 2.0, np.nan, 4.0, 4.0])


def test_smoothing_averages_noise_away():
    noise = np.where(np.arange(1000) % 2, 1.0, -1.0)
    assert np.abs(smooth(noise)[10:-10]).max() < 0.1
