"""Ranking captioners by pairwise comparisons (CapArena, arXiv:2503.12329)."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from big_mm.metrics.statistics import Statistic, Weights

_SCALE, _MEAN = 400 / np.log(10), 1000.0  # of Elo ratings
_PRIOR = 0.1
_ROUNDS, _TOLERANCE = 10_000, 1e-10


def bradley_terry(
    wins: Float[np.ndarray, "player player"], prior: float = _PRIOR
) -> Float[np.ndarray, " player"]:
    """Maximum-likelihood ratings on Elo's scale, of mean 1000.

    P(i beats j) = 1 / (1 + 10 ** ((rating j - rating i) / 400)). Found by minorisation-maximisation
    (Hunter 2004, equation 3).

    Args:
      wins: how often i beat j; a tie is half a win for both.
      prior: wins and losses that each player is given against each other one, so that whoever never
        lost has a finite rating.
    """
    wins = wins + prior * (1 - np.eye(len(wins)))
    games, total = wins + wins.T, wins.sum(axis=1)
    strength = np.ones(len(wins))
    for _ in range(_ROUNDS):
        expected = (games / np.add.outer(strength, strength)).sum(axis=1)
        new = total / expected
        new /= np.exp(np.log(new).mean())
        done = np.abs(np.log(new / strength)).max() < _TOLERANCE
        strength = new
        if done:
            break
    return _MEAN + _SCALE * np.log(strength)


@dataclasses.dataclass(frozen=True, eq=False)
class Rating(Statistic):
    """The Bradley-Terry rating of one player from the battles over each image.

    Attributes:
      wins: how often i beat j over the image.
      player: whose rating, the same for all images.
    """

    wins: Float[np.ndarray, "image player player"]
    player: Int[np.ndarray, " image"]

    def __call__(self, weights: Weights) -> float:
        wins = np.einsum("i,ijk->jk", weights.astype(np.float64), self.wins)
        return float(bradley_terry(wins)[self.player[0]])


def ratings(wins: Float[np.ndarray, "image player player"]) -> list[Rating]:
    """Of each player."""
    images, players, _ = wins.shape
    return [Rating(wins, np.full(images, player)) for player in range(players)]


def agreement(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two scores of the same things, as of a metric and of people's ratings;
    NaN if one of them is the same for all.
    """
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    left, right = np.triu_indices(len(one), 1)
    one, two = np.sign(one[left] - one[right]), np.sign(two[left] - two[right])
    scale = np.sqrt((one @ one) * (two @ two))
    return float(one @ two / scale) if scale else float("nan")
