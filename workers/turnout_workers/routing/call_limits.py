"""How long a call may take before it is given up: a slow answer is better than paying for none."""

from __future__ import annotations

from turnout_workers.routing.latency import Z99, quantile
from turnout_workers.routing.strategies import Row

MIN_ANSWERS = 20
"""An endpoint is untimed until it has given this many answers, unless its speed is configured. The model may think for
a minute, or jobs may have begun to ask for longer answers: every call would be cut off, paid for, and made again. It
stays untimed for a job that can't go elsewhere."""
UNTIMED_S, UNTIMED_SIGMA = 5.0, 1.5
"""The least latency assumed of an untimed endpoint: a call is late after 120 s, when nearly all models answer."""
UNTIMED_LONGEST_S = 150.0
"""The least time assumed for an untimed endpoint's longest answer. A call is cut off after twice this."""
MAX_PROBE_S = 60.0


def call_limits(option: Row, output_tokens: int, longest_s: float, *, alone: bool) -> tuple[float, float]:
    """(overdue_s, timeout_s): the age at which a call counts as hanging, and its total deadline.

    output_tokens: expected. longest_s: for the longest possible answer. alone: no other endpoint can take the job.
    """
    _, latency_s, _, probe, estimate = option
    view, sigma = estimate.view, estimate.odds.sigma
    endpoint, metrics = view.endpoint, view.metrics
    untimed = not endpoint.is_timed and (alone or metrics.latency_samples < MIN_ANSWERS)
    # An estimate that drifts to its prior gives a slow endpoint another chance, but doesn't make it faster.
    observed_s = (metrics.ttft_s or 0.0) + output_tokens * (metrics.s_per_token or 0.0)
    usual_s, spread = max(latency_s, observed_s), sigma
    if untimed:
        usual_s, spread = max(usual_s, UNTIMED_S), max(spread, UNTIMED_SIGMA)
        longest_s = max(longest_s, UNTIMED_LONGEST_S)
    if not probe:
        timeout_s = _timeout(usual_s, spread, longest_s)
    else:
        timeout_s = MAX_PROBE_S if untimed else _probe_timeout(latency_s, sigma, view.health.ejections)
    return overdue_after(usual_s, spread), timeout_s


def overdue_after(median_s: float, sigma: float) -> float:
    """Age from which a call in flight counts as hanging: 1.2 times its 98th percentile, at least 1.5 s.

    About one healthy call in 300 is older; it takes several at once to eject (`health.after_watch`).
    """
    return max(1.5, 1.2 * quantile(median_s, sigma, 2.0))


def _timeout(median_s: float, sigma: float, longest_s: float) -> float:
    """Four times the 99th percentile, from 8 s to 60 s or twice `longest_s`, the usual time of the longest answer."""
    return min(max(8.0, 4 * quantile(median_s, sigma, Z99)), max(60.0, 2 * longest_s))


def _probe_timeout(median_s: float, sigma: float, ejections: int) -> float:
    """Shorter, because no other call may run meanwhile: 6 to 12 s, unless such a call usually takes longer.

    ejections: how many in a row. From the fifth on, each doubles the timeout, up to a minute: perhaps nothing hangs and
    answers have only become slower, which shows only if one is waited for.
    """
    likely = quantile(median_s, sigma, Z99)
    usual = max(1.2 * likely, min(12.0, max(6.0, 2 * likely)))
    return max(usual, min(MAX_PROBE_S, usual * 2.0 ** max(0, ejections - 4)))
