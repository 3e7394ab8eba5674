"""How long a call may take before it is given up: an answer that takes long is better than one paid for in vain."""

from __future__ import annotations

from turnout_workers.routing.latency import Z99, quantile
from turnout_workers.routing.strategies import Row

SEEN = 20
"""Answers after which a call can be judged late if nothing is configured of how long they take, and the job could go
elsewhere. Before, the model may be one that thinks for a minute, or jobs may have begun to ask for longer answers:
every call would be cut off, paid for, and made again …"""
PATIENT_S, PATIENT_SIGMA = 5.0, 1.5
"""… So a call gets the time in which nearly all models answer: it is late after 120 s, …"""
PATIENT_LONGEST_S = 150.0
"""… and cut after twice this."""
MAX_PROBE_S = 60.0


def call_limits(option: Row, output_tokens: int, longest_s: float, *, alone: bool) -> tuple[float, float]:
    """Of a call the age (s) at which it counts as hanging, and its total deadline (s).

    output_tokens: expected ones. longest_s: for the longest possible answer. alone: no other endpoint can take the job.
    """
    _, latency_s, _, probe, estimate = option
    view, sigma = estimate.view, estimate.odds.sigma
    endpoint, metrics = view.endpoint, view.metrics
    patient = not endpoint.is_timed and (alone or metrics.latency_samples < SEEN)
    # That an estimate drifts to its prior gives a slow endpoint another chance, but makes it no faster.
    seen_s = (metrics.ttft_s or 0.0) + output_tokens * (metrics.s_per_token or 0.0)
    usual_s, spread = max(latency_s, seen_s), sigma
    if patient:
        usual_s, spread = max(usual_s, PATIENT_S), max(spread, PATIENT_SIGMA)
        longest_s = max(longest_s, PATIENT_LONGEST_S)
    if not probe:
        timeout_s = _timeout(usual_s, spread, longest_s)
    else:
        timeout_s = MAX_PROBE_S if patient else _probe_timeout(latency_s, sigma, view.health.ejections)
    return overdue_after(usual_s, spread), timeout_s


def overdue_after(median_s: float, sigma: float) -> float:
    """Age from which a call in flight counts as hanging: 1.2 times its 98th percentile, at least 1.5 s.

    About one call in 300 is older without harm; it takes several at once to eject (`health.after_watch`).
    """
    return max(1.5, 1.2 * quantile(median_s, sigma, 2.0))


def _timeout(median_s: float, sigma: float, longest_s: float) -> float:
    """Four times its 99th percentile, between 8 and 60 s.

    `longest_s`, what the longest possible answer usually takes, raises the upper end to its double.
    """
    return min(max(8.0, 4 * quantile(median_s, sigma, Z99)), max(60.0, 2 * longest_s))


def _probe_timeout(median_s: float, sigma: float, ejections: int) -> float:
    """Shorter, for nobody else may call while it lasts: 6 to 12 s, unless such a call usually takes longer.

    ejections: how many in a row. From the fifth on each doubles it, up to a minute: perhaps nothing hangs, and answers
    just take longer than they did, which only waiting for one can show.
    """
    likely = quantile(median_s, sigma, Z99)
    usual = max(1.2 * likely, min(12.0, max(6.0, 2 * likely)))
    return max(usual, min(MAX_PROBE_S, usual * 2.0 ** max(0, ejections - 4)))
