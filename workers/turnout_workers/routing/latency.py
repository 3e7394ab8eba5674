"""What a call will take: time to first token, plus time per output token, with a lognormal spread.

Estimates are per endpoint and model, so that long answers don't make a fast endpoint look slow. They decay
towards the endpoint's prior when nothing is observed: that gives an endpoint that was slow another
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
"""Least weight of a sample slower than the estimate."""
STEP_FASTER = 0.08
"""Least weight of a faster sample: less, so that trouble shows early."""
STEP_RELIEF = 0.5
"""Weight of the second sample in a row below half the estimate: the endpoint is fast again."""
QUIET_S = 5.0
"""Time without samples after which an estimate starts to drift towards its prior."""
DRIFT_S = 15.0
"""Time constant of that drift."""
MIN_SIGMA = 0.25
PRIOR_TTFT_S, PRIOR_S_PER_TOKEN = 0.5, 0.01
"""What is expected of an endpoint that has neither configured expectations nor observations."""
SIGMA_STEP = 0.05
"""Weight of a new residual in the mean square whose root is `sigma`."""
MAX_RESIDUAL = 2.0
"""Larger residuals are cut to this, so that one outlier doesn't double `sigma`."""
CACHED_STEP = 0.05
"""Weight of a new answer in the share of input tokens that were cached."""
BUCKETS = 34
"""The last bucket holds all latencies from 655 s."""
Z95, Z99 = 1.645, 2.326


def step(estimate: float | None, sample: float, elapsed_s: float, relieved: bool = False) -> float:
    """The estimate after one more sample, `elapsed_s` after the last one.

    `relieved`: this sample and the one before it were both below half the estimate.
    """
    if estimate is None:
        return sample
    min_weight = STEP_RELIEF if relieved else STEP_SLOWER if sample > estimate else STEP_FASTER
    weight = max(min_weight, 1 - math.exp(-max(0.0, elapsed_s) / MEMORY_S))
    return estimate + weight * (sample - estimate)


def predict(endpoint: Endpoint, metrics: ProviderMetrics, now: float) -> tuple[float, float]:
    """Time to first token, and seconds per output token, at time `now`."""
    ttft_s = PRIOR_TTFT_S if endpoint.expected_ttft_s is None else endpoint.expected_ttft_s
    s_per_token = PRIOR_S_PER_TOKEN if endpoint.expected_s_per_token is None else endpoint.expected_s_per_token
    if metrics.latency_samples == 0:
        return ttft_s, s_per_token
    drifting_s = now - metrics.latency_at - QUIET_S
    weight = math.exp(-drifting_s / DRIFT_S) if drifting_s > 0 else 1.0
    if metrics.ttft_s is not None:
        ttft_s += weight * (metrics.ttft_s - ttft_s)
    if metrics.s_per_token is not None:
        s_per_token += weight * (metrics.s_per_token - s_per_token)
    return ttft_s, s_per_token


def first_token(latency_s: float, output_tokens: int, ttft_s: float, s_per_token: float) -> float:
    """The part of an unstreamed answer's time that is attributed to its first token: the expected share.

    Both estimates move until their sum is what answers take.
    """
    expected_s = ttft_s + output_tokens * s_per_token
    return latency_s * ttft_s / expected_s if expected_s > 0 else latency_s


def quantile(median_s: float, sigma: float, z: float) -> float:
    """The lognormal quantile at `z` standard deviations."""
    return median_s * math.exp(z * sigma)


def chance_of_exceeding(limit_s: float, median_s: float, sigma: float) -> float:
    """P(latency > limit) of a lognormal latency."""
    if limit_s <= 1e-9:  # nothing takes less than a nanosecond, and log(0) is undefined
        return 1.0
    return 0.5 * math.erfc(math.log(limit_s / median_s) / (sigma * math.sqrt(2)))


def bucket(latency_s: float) -> int:
    """The number of the bucket in which a latency is counted; bucket `i` ends at 0.01·2^(i/2) s."""
    return min(BUCKETS - 1, max(0, math.floor(2 * math.log2(max(latency_s, 1e-3) / 0.01)) + 1))


def observed_quantile(latencies: Sequence[int], share: float) -> float | None:
    """Upper bound of the latency (s) of this share of the calls counted by `bucket`; None: there are none."""
    rank = share * sum(latencies)
    for number, calls in enumerate(accumulate(latencies)):
        if calls > 0 and calls >= rank:
            return round(0.01 * 2 ** (number / 2), 3)
    return None
