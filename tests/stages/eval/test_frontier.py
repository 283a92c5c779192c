from __future__ import annotations

from math import exp

import numpy as np
import pytest

from stages.eval.frontier import fit, overoptimisation, too_few

KLS = np.array([0.0, 0.4, 1.0, 2.5, 5.0, 9.0])


def gains(alpha: float, beta: float, form: str) -> np.ndarray:
    d = np.sqrt(KLS)
    if form == "best_of_n":
        return d * (alpha - beta * d)
    return d * (alpha - beta * np.log(np.maximum(d, 1e-9)))


def looks(alpha: float, beta: float, form: str, noise: float, prompts: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """(L, P) of KL and gain, whose means lie on the form, up to noise."""
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(len(KLS), prompts))
    spread -= spread.mean(1, keepdims=True)
    kl = np.repeat(KLS[:, None], prompts, axis=1)
    return kl, gains(alpha, beta, form)[:, None] + noise * spread


@pytest.mark.parametrize("form", ["rl", "best_of_n"])
def test_it_finds_the_coefficients_that_made_the_points(form: str) -> None:
    found = fit(KLS[None], gains(1.3, 0.4, form)[None], form)  # type: ignore[arg-type]
    assert float(found.alpha[0]) == pytest.approx(1.3)
    assert float(found.beta[0]) == pytest.approx(0.4)


def test_it_is_least_squares_as_numpy_solves_it() -> None:
    rng = np.random.default_rng(2)
    target = rng.normal(size=len(KLS))
    d = np.sqrt(KLS[1:])
    design = np.stack([d, -d * np.log(d)], axis=1)
    expected, *_ = np.linalg.lstsq(design, target[1:], rcond=None)
    found = fit(KLS[None], target[None], "rl")
    assert [float(found.alpha[0]), float(found.beta[0])] == pytest.approx(expected.tolist())


@pytest.mark.parametrize("form", ["rl", "best_of_n"])
def test_the_peak_is_where_the_curve_is_highest(form: str) -> None:
    made = fit(KLS[None], gains(1.3, 0.9, form)[None], form)  # type: ignore[arg-type]
    kls = np.linspace(0.001, 20, 200_001)
    highest = kls[made.gain(kls).argmax()]
    assert float(made.peak()[0]) == pytest.approx(highest, rel=1e-3)


def test_closed_forms_of_the_peak() -> None:
    rl = fit(KLS[None], gains(1.0, 0.5, "rl")[None], "rl")
    assert float(rl.peak()[0]) == pytest.approx(exp(2 * (1.0 / 0.5 - 1)))
    rising = fit(KLS[None], gains(1.0, -0.1, "rl")[None], "rl")
    assert np.isinf(rising.peak()[0])


def test_over_optimisation_that_is_there_is_found_with_its_place() -> None:
    kl, gain = looks(1.0, 0.8, "rl", noise=0.2)  # the peak is at exp(2 * 0.25) = 1.65
    found = overoptimisation(kl, gain, form="rl", resamples=400, seed=0)
    assert found["set_in"] is True
    assert found["share"] == 1.0
    assert found["peak_kl"]["value"] == pytest.approx(exp(0.5), rel=1e-3)
    assert found["peak_kl"]["low"] < exp(0.5) < found["peak_kl"]["high"]
    assert found["lost"] == pytest.approx(gains(1.0, 0.8, "rl").max() - gains(1.0, 0.8, "rl")[-1], abs=0.05)


def test_what_still_rises_or_cannot_be_told_is_not_over_optimised() -> None:
    kl, gain = looks(1.0, 0.05, "rl", noise=0.2)
    rising = overoptimisation(kl, gain, form="rl", resamples=400, seed=0)
    assert rising["set_in"] is False
    assert rising["lost"] == 0
    kl, gain = looks(0.3, 0.25, "rl", noise=8.0, prompts=16)
    noisy = overoptimisation(kl, gain, form="rl", resamples=400, seed=0)
    assert noisy["set_in"] is False
    assert 0 < noisy["share"] < 0.975
    assert noisy["peak_kl"]["high"] is None


def test_too_few_or_too_near_points_are_said_to_be() -> None:
    assert (
        too_few(np.array([0.0, 0.5, 1.0, 2.0]))
        == "3 evaluation points are away from the reference, and the form needs 4"
    )
    assert "between 1.00 and 1.30 nats" in str(too_few(np.array([0.0, 1.0, 1.1, 1.2, 1.3])))
    assert too_few(KLS) is None
    kl, gain = looks(1.0, 0.8, "rl", noise=0.2)
    assert overoptimisation(kl[:4], gain[:4], form="rl", resamples=10, seed=0).keys() == {"reason"}
