"""The colours of runs can be told apart, by those who see all of them and by those who do not."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from growlm.report.style import DARK, LIGHT

# From linear RGB to what is left of it: Machado, Oliveira & Fernandes 2009, severity 1.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])


def linear(colour):
    values = np.array(to_rgb(colour))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE L*a*b* of linear RGB, where equal distances look about equal."""
    part = TO_XYZ @ np.clip(rgb, 0, 1) / WHITE
    part = np.where(part > 0.008856, np.cbrt(part), 7.787 * part + 16 / 116)
    return np.array([116 * part[1] - 16, 500 * (part[0] - part[1]), 200 * (part[1] - part[2])])


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_runs_and_baseline_have_colours_of_their_own(theme, sight):
    seen = [lab(np.array(SIGHT[sight]) @ linear(colour)) for colour in (*theme.runs, theme.baseline)]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 15


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read(theme):
    """Contrast of at least 4.5, as WCAG 2 asks of text."""
    for ground in (theme.paper, theme.box):
        for text in (theme.ink, theme.quiet, theme.mark):
            light, dark = sorted((float(linear(colour) @ TO_XYZ[1]) for colour in (ground, text)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ground, text)
