"""Differential privacy: descent of which no single example can be read off (Abadi et al. 2016), and what it spends.

DPSGD        the estimator: gradients cut per example to one norm, and noise on their sum
epsilon      what so many steps of it spend
noise_for    the noise with which so many steps spend no more than that
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain import tree
from functrain.autodiff import directions as along
from functrain.config import ConfigError, NonNegative, Positive, Size, configclass, off
from functrain.metrics import Mean

Sampling = Literal["shuffled", "poisson"]
Accountant = Literal["rdp", "pld"]


@configclass
class DPSGD:
    """DP-SGD: each example's gradient scaled down to norm `clip` at most; of these the sum, noise on it, over n.

    (sum_i g_i / max(1, |g_i| / clip) + N(0, (noise clip)^2)) / n, n the batch's rows whether a mask counts them or not
    (Abadi et al. 2016, algorithm 1); the noise is drawn once a step, for each number of the trained parameters. It
    goes with any optimizer: what is made of private gradients is private. `epsilon` says what a run spends.

    What is private is the row of a batch, as it comes to the loss: a row made of several examples (mixup, packed text)
    is outside of it. So are the loss and all metrics, `clipped` (the share of examples that were scaled down) too,
    and numbers that were chosen by looking at results. Whoever knows the run's seed knows the noise: keep it secret.

    Raises:
      ConfigError: the loss changes its state, as batch norm does.

    >>> from functrain.metrics import mean_of
    >>> from functrain.optim import objective
    >>> def loss(w, state, batch, *, key):
    ...     return mean_of(batch["x"] @ w), state, {}
    >>> goal = objective(loss, {}, {"x": jnp.array([[3.0, 4.0], [0.0, 0.5]])}, None)
    >>> DPSGD(clip=1.0, noise=0.0)(goal, jnp.zeros(2), jax.random.key(0))[0].round(3).tolist()   # (0.6, 0.8), (0, 0.5)
    [0.3..., 0.6...]
    """

    kind: Literal["dp_sgd"] = "dp_sgd"
    clip: Positive = 1.0
    """The largest norm that an example's gradient keeps."""
    noise: NonNegative = 1.0
    """The noise multiplier: the noise's standard deviation, over `clip`; 0 is off, and then nothing is private."""
    block: Size = 32
    """So many examples' gradients are held side by side."""

    def __call__(self, objective, params, key):
        """The noisy mean; value, state and metrics of the same pass."""
        zeros = jax.tree.map(lambda p: jnp.zeros_like(tree.wide(p)), params)
        none = jnp.zeros((), jnp.result_type(*jax.tree.leaves(zeros)))

        def consume(carry, gradients):
            total, clipped, rows = carry
            norms = jax.vmap(tree.norm)(gradients)
            kept = 1 / jnp.maximum(1, norms / self.clip).astype(none.dtype)
            total = jax.tree.map(lambda t, g: t + jnp.tensordot(kept.astype(g.dtype), g, 1), total, gradients)
            return total, clipped + (norms > self.clip).sum(), rows + norms.size

        (total, clipped, rows), value, (state, metrics) = objective.each(
            params, consume, (zeros, none, none), self.block
        )
        if not off(self.noise):
            drawn = along.draw(along.keys_of(key, 1)[0], params, "normal")
            total = jax.tree.map(lambda t, v: t + jnp.asarray(self.noise * self.clip, t.dtype) * v, total, drawn)
        gradients = jax.tree.map(lambda t: t / rows.astype(t.dtype), total)
        return gradients, value, (state, metrics | {"clipped": Mean(clipped, rows)})

    def evaluations(self, parameters: int) -> float:
        """Of the loss, a step: those of a gradient, by example."""
        del parameters
        return 3.0


# -- accounting -----------------------------------------------------------------------------------

_ASSUMED: dict[Sampling, str] = {
    "shuffled": "each example at most once in an epoch, in any order; an example's gradient against none in its place",
    "poisson": "each batch drawn anew, each example in it by itself with that probability; an example more or less",
}


@dataclass(frozen=True)
class Spent:
    """(epsilon, delta): what a run of `DPSGD` spends of privacy, and what that takes for granted."""

    epsilon: float
    delta: float
    noise: float
    steps: int
    sampling_rate: float
    sampling: Sampling
    accountant: str  # "exact", "pld" or "rdp"

    @property
    def assumed(self) -> str:
        """How batches are drawn, and which two sets of examples are not told apart, in words."""
        return _ASSUMED[self.sampling]

    def __str__(self) -> str:
        """`epsilon 1.2 at delta 1e-05 (...); assumes ...`."""
        how = f"{self.accountant}, {self.steps:,} steps, noise {self.noise:g}, sampling rate {self.sampling_rate:g}"
        spent = f"epsilon {self.epsilon:.4g} at delta {self.delta:g} ({how})"
        return f"{spent}; assumes {self.sampling} batches: {self.assumed}"


def epsilon(
    *,
    steps: int,
    sampling_rate: float,
    noise: float,
    delta: float,
    sampling: Sampling = "shuffled",
    accountant: Accountant = "pld",
) -> Spent:
    """The epsilon that steps of `DPSGD` spend at a delta, by the library dp-accounting (extra `privacy`).

    It holds where batches are drawn as it assumes:

    - "shuffled": what functrain's feeds do. An example is in one batch of an epoch at most, so it meets the noise once
      an epoch and no more is claimed: as many Gaussian mechanisms as epochs, one that has begun counted whole. That
      holds of each order, so of a random one; their epsilon is exact (Balle and Wang 2018, theorem 8).
    - "poisson": each example is in each batch with probability `sampling_rate`, by itself, and most steps do not see it
      (privacy amplification): epsilon is far smaller. No feed of functrain draws so. To train on shuffled batches and
      report this is common practice since Abadi et al. 2016, and no proof: shuffled batches can spend more (Chua et
      al. 2024, "How Private are DP-SGD Implementations?").

    Args:
      steps: how many updates, over the whole run.
      sampling_rate: batch size over the number of examples.
      noise: the multiplier, `DPSGD.noise`.
      delta: the probability with which more may be given away: well below 1 / examples.
      sampling: see above.
      accountant: of "poisson" alone; both are upper bounds. "pld": privacy loss distributions, the lower one (Koskela
        et al. 2020; Doroshenko et al. 2022); "rdp": Renyi differential privacy, the quicker (Mironov et al. 2019).

    Raises:
      ConfigError: dp-accounting is not installed.
      ValueError: an argument outside of its range.

    >>> print(epsilon(steps=1000, sampling_rate=0.01, noise=1.1, delta=1e-5))
    epsilon 15.7... at delta 1e-05 (exact, 1,000 steps, noise 1.1, sampling rate 0.01); assumes shuffled batches: ...
    >>> print(epsilon(steps=1000, sampling_rate=0.01, noise=1.1, delta=1e-5, sampling="poisson", accountant="rdp"))
    epsilon 1.71... at delta 1e-05 (rdp, 1,000 steps, noise 1.1, sampling rate 0.01); assumes poisson batches: ...
    """
    _check(steps, sampling_rate, delta, sampling, accountant)
    if not noise >= 0:
        raise ValueError(f"noise {noise}; expected 0 or more")
    how = "exact" if sampling == "shuffled" else accountant
    if noise == 0:
        found = math.inf
    elif sampling == "shuffled":
        found = _library().get_epsilon_gaussian(noise / math.sqrt(_epochs(steps, sampling_rate)), delta)
    else:
        found = _by_rdp(steps, sampling_rate, noise, delta)
        if accountant == "pld":
            found = _by_pld(steps, sampling_rate, noise, delta, found)
    return Spent(float(found), delta, noise, steps, sampling_rate, sampling, how)


def noise_for(
    *,
    epsilon: float,
    steps: int,
    sampling_rate: float,
    delta: float,
    sampling: Sampling = "shuffled",
    accountant: Accountant = "pld",
) -> float:
    """The least noise multiplier with which steps of `DPSGD` spend `epsilon` at most, or up to a thousandth above it.

    Arguments and errors are those of the function `epsilon`.

    >>> round(noise_for(epsilon=2.0, steps=1000, sampling_rate=0.01, delta=1e-5, accountant="rdp"), 1)
    6.3
    """
    _check(steps, sampling_rate, delta, sampling, accountant)
    if not epsilon > 0:
        raise ValueError(f"epsilon {epsilon}; expected more than 0")
    if sampling == "shuffled":
        return float(_library().get_sigma_gaussian(epsilon, delta) * math.sqrt(_epochs(steps, sampling_rate)))
    found = _least(lambda noise: _by_rdp(steps, sampling_rate, noise, delta) <= epsilon, 1.0)
    if accountant == "pld":  # looked for near by: far off, it takes gigabytes
        found = _least(lambda noise: _by_pld(steps, sampling_rate, noise, delta, epsilon) <= epsilon, found)
    return found


def _least(enough, start):
    """The least number that is enough, or up to a thousandth above it; what is above one that is, is too."""
    high = start
    while not enough(high):
        high *= 2
    low = high / 1.25
    while enough(low):
        high, low = low, low / 1.25
    while high > 1.001 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _check(steps, sampling_rate, delta, sampling, accountant):
    """Raises a ValueError for what no run has."""
    if steps < 1:
        raise ValueError(f"steps {steps}; expected at least 1")
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"sampling_rate {sampling_rate}; expected above 0 and up to 1: batch size over examples")
    if not 0 < delta < 1:
        raise ValueError(f"delta {delta}; expected between 0 and 1")
    if sampling not in _ASSUMED:
        raise ValueError(f'sampling {sampling!r}; expected "shuffled" or "poisson"')
    if accountant not in ("rdp", "pld"):
        raise ValueError(f'accountant {accountant!r}; expected "rdp" or "pld"')


def _epochs(steps, sampling_rate):
    """How many times an example is met at most: an epoch is n // size steps (see functrain.data.order)."""
    return math.ceil(steps / math.floor(1 / sampling_rate * (1 + 1e-12)))  # 1 / (1 / 99) is a little below 99


def _library() -> Any:
    """The module dp_accounting.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import dp_accounting  # late: an extra
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError:
        raise ConfigError("privacy accounting needs dp-accounting: pip install 'functrain[privacy]'") from None
    return dp_accounting


def _poisson(library, steps, sampling_rate, noise):
    """So many steps, as dp-accounting says it."""
    step = library.PoissonSampledDpEvent(sampling_rate, library.GaussianDpEvent(noise))
    return library.SelfComposedDpEvent(step, steps)


def _by_rdp(steps, sampling_rate, noise, delta):
    library = _library()
    accountant = library.rdp.RdpAccountant()
    return accountant.compose(_poisson(library, steps, sampling_rate, noise)).get_epsilon(delta)


def _by_pld(steps, sampling_rate, noise, delta, about):
    """By privacy loss distributions, held at a resolution for an epsilon `about` so large; coarser bounds still."""
    library = _library()
    accountant = library.pld.PLDAccountant(value_discretization_interval=1e-4 * max(1, about))
    return accountant.compose(_poisson(library, steps, sampling_rate, noise)).get_epsilon(delta)
