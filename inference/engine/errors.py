"""What can go wrong in the engine, in sentences that say what to do next."""


class EngineError(Exception):
    """Base class of all errors of the engine."""


class ModelLoadError(EngineError):
    """The model file exists or not, but could not be turned into a usable model."""


class InvalidGGUFError(EngineError):
    """The file is no GGUF, is cut short, or is of a version that is not supported."""


class InvalidRequestError(EngineError):
    """The request itself is at fault: the same request would fail again."""


class PromptTooLongError(InvalidRequestError):
    """The prompt leaves no room for a single new token.

    `num_prompt_tokens` is a lower bound when the text was refused before it was tokenized.
    """

    def __init__(self, num_prompt_tokens: int, max_prompt_tokens: int) -> None:
        super().__init__(
            f"The prompt has at least {num_prompt_tokens} tokens, and {max_prompt_tokens} fit into"
            " the context window: shorten it, or load the model with a larger context_window."
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.max_prompt_tokens = max_prompt_tokens


class GrammarError(InvalidRequestError):
    """The grammar is not valid."""


class SchemaError(InvalidRequestError):
    """The JSON Schema cannot be made into a grammar; the message starts with a pointer to where."""


class ChatTemplateError(EngineError):
    """The model's chat template does not compile, or refuses these messages."""


class ConstraintError(EngineError):
    """The answer cannot be kept to its format: that takes too much work, or nothing may follow."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The answer cannot be kept to the format asked for: {reason}. Make the format simpler."
        )


class DecodeError(EngineError):
    """The model could not compute a batch, or no token could be chosen from its result."""
