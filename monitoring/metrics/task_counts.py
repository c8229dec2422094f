"""What the end of a task adds to the counters of its model."""

from monitoring.events.events import TaskEnded
from monitoring.metrics.counters import E2E, QUEUE_TIME, TPOT, TTFT, Increments, observe
from monitoring.models import EndedTask

PROMPT_TOKENS = "prompt_tokens"
GENERATION_TOKENS = "generation_tokens"
CACHED_TOKENS = "cached_tokens"
DRAFTED_TOKENS = "drafted_tokens"
ACCEPTED_TOKENS = "accepted_tokens"
KEPT_CACHE_HITS = "kept_cache_hits"
KEPT_CACHE_TOKENS = "kept_cache_tokens"
KEPT_CACHE_BYTES = "kept_cache_bytes"
# Followed by the reason: SUCCESS by finish_reason, FAILURE by error_code.
SUCCESS = "request_success:"
FAILURE = "request_failure:"
CANCELLED = "request_cancelled"


def of_end(outcome: str, end: TaskEnded) -> Increments:
    """What the end of a task adds."""
    model = end["model"]
    fields = {
        EndedTask.Outcome.COMPLETED: f"{SUCCESS}{end['finish_reason']}",
        EndedTask.Outcome.FAILED: f"{FAILURE}{end['error_code']}",
        EndedTask.Outcome.CANCELLED: CANCELLED,
    }
    counts: Increments = {
        (model, fields[EndedTask.Outcome(outcome)]): 1,
        (model, PROMPT_TOKENS): end["prompt_tokens"],
        (model, GENERATION_TOKENS): end["completion_tokens"],
        (model, CACHED_TOKENS): end["cached_tokens"],
    }
    if accepted := end.get("accepted_prediction_tokens", 0):
        counts[model, ACCEPTED_TOKENS] = accepted
    if drafted := accepted + end.get("rejected_prediction_tokens", 0):
        counts[model, DRAFTED_TOKENS] = drafted
    times = {
        QUEUE_TIME: end["queue_wait_ms"],
        TTFT: end["ttft_ms"],
        TPOT: _per_token_ms(end),
        E2E: end["total_ms"],
    }
    for histogram, milliseconds in times.items():
        if milliseconds is not None:
            observe(counts, model, histogram, milliseconds / 1000)
    return counts


def _per_token_ms(end: TaskEnded) -> float | None:
    """Of the tokens after the first; None when there are none."""
    total, wait, first = end["total_ms"], end["queue_wait_ms"], end["ttft_ms"]
    if total is None or wait is None or first is None or end["completion_tokens"] < 2:
        return None
    return max(0.0, total - wait - first) / (end["completion_tokens"] - 1)
