"""How much of the prompts one step may compute."""

TARGET_STEP_SECONDS = 0.2
MIN_PREFILL_TOKENS = 16


class PrefillBudget:
    """Prompt tokens that fit into a step of about TARGET_STEP_SECONDS, on whatever machine.

    A step is how long a cancellation and the running answers can wait, so it must not last
    longer where the machine is slow. It starts with few tokens and follows what is measured.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self.num_tokens = min(MIN_PREFILL_TOKENS, max_tokens)

    def measure(self, num_tokens: int, seconds: float) -> None:
        """Learn from a step that has computed this many prompt tokens beside its answers' tokens.

        Fewer tokens than the minimum say little: most of their time is the step's own.
        """
        if num_tokens < min(MIN_PREFILL_TOKENS, self._max_tokens):
            return
        affordable = int(TARGET_STEP_SECONDS * num_tokens / max(seconds, 1e-6))
        self.num_tokens = min(max(affordable, MIN_PREFILL_TOKENS), self._max_tokens)
