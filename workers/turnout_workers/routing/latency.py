"""What a call will take: time to first token, plus time per output token, with a lognormal spread.

Estimates are per endpoint and model, so that long answers don't make a fast endpoint look slow. They decay
towards the endpoint's prior when nothing is observed: that is how an endpoint which was slow gets another
chance. Stores update them with `step`; the router reads them through `predict`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from turnout_workers.routing.fleet import Endpoint, ProviderMetrics

MEMORY_S = 10.0
"""Time constant of the estimates."""
STEP_SLOWER = 0.15
STEP_FASTER = 0.08
"""The least weight of a new sample: a slow one counts for more, so that trouble shows early."""
STEP_RELIEF = 0.5
"""Weight of the second sample in a row below half the estimate: the endpoint has got fast again."""
QUIET_S = 5.0
"""Silence after which an estimate starts to drift towards its prior …"""
DRIFT_S = 15.0
"""… with this time constant."""
MIN_SIGMA = 0.25
PRIOR_TTFT_S, PRIOR_S_PER_TOKEN = 0.5, 0.01
"""What is expected of an endpoint that has neither configured expectations nor observations."""
SIGMA_STEP = 0.05
"""Weight of a new residual in the mean square of which `sigma` is the root …"""
MAX_RESIDUAL = 2.0
"""… after it was cut to this, so that one freak doesn't double it."""
CACHED_STEP = 0.05
"""Weight of a new answer in the share of input tokens that were cached."""
BUCKETS = 34
"""The last one holds all latencies from 655 s on."""
Z95, Z99 = 1.645, 2.326


def step(estimate: float | None, sample: float, elapsed_s: float, relieved: bool = False) -> float:
    """The estimate after one more sample, `elapsed_s` after the last one.

    `relieved`: this sample and the one before it were both below half the estimate.
    """
    if estimate is None:
        return sample
    least = STEP_RELIEF if relieved else STEP_SLOWER if sample > estimate else STEP_FASTER
    weight = max(least, 1 - math.exp(-max(0.0, elapsed_s) / MEMORY_S))
    return estimate + weight * (sample - estimate)


def predict(endpoint: Endpoint, metrics: ProviderMetrics, now: float) -> tuple[float, float]:
    """Time to first token, and seconds per output token, at time `now`."""
    ttft = PRIOR_TTFT_S if endpoint.expected_ttft_s is None else endpoint.expected_ttft_s
    pace = PRIOR_S_PER_TOKEN if endpoint.expected_s_per_token is None else endpoint.expected_s_per_token
    if metrics.latency_samples == 0:
        return ttft, pace
    idle = now - metrics.latency_at - QUIET_S
    known = math.exp(-idle / DRIFT_S) if idle > 0 else 1.0
    if metrics.ttft_s is not None:
        ttft += known * (metrics.ttft_s - ttft)
    if metrics.s_per_token is not None:
        pace += known * (metrics.s_per_token - pace)
    return ttft, pace


def first_token(latency_s: float, output_tokens: int, ttft_s: float, s_per_token: float) -> float:
    """The part of an unstreamed answer's time that is attributed to its first token: the share that was expected.

    So both estimates move until their sum is what answers take.
    """
    expected_s = ttft_s + output_tokens * s_per_token
    return latency_s * ttft_s / expected_s if expected_s > 0 else latency_s


def quantile(median_s: float, sigma: float, z: float) -> float:
    """The lognormal quantile at `z` standard deviations."""
    return median_s * math.exp(z * sigma)


def chance_of_exceeding(limit_s: float, median_s: float, sigma: float) -> float:
    """P(latency > limit) of a lognormal latency."""
    if limit_s <= 1e-9:  # nothing is done in a nanosecond, and nothing divides by less
        return 1.0
    return 0.5 * math.erfc(math.log(limit_s / median_s) / (sigma * math.sqrt(2)))


def bucket(latency_s: float) -> int:
    """The number of the bucket in which a latency is counted; number `i` ends at 0.01·2^(i/2) s."""
    return min(BUCKETS - 1, max(0, math.floor(2 * math.log2(max(latency_s, 1e-3) / 0.01)) + 1))


def observed_quantile(latencies: Sequence[int], share: float) -> float | None:
    """Upper bound of the latency (s) of this share of the calls counted by `bucket`; None: there were none."""
    rank = share * sum(latencies)
    for number, seen in enumerate(accumulate(latencies)):
        if seen > 0 and seen >= rank:
            return round(0.01 * 2 ** (number / 2), 3)
    return None
