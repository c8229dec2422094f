"""Tools that a task offers its model: what may be asked for, in OpenAI's shape, and the check."""

import json
import re
from typing import Any, TypedDict

from rest_framework.exceptions import ValidationError

from inference import structured_output
from inference.engine.errors import SchemaError
from inference.engine.schema_policy import compile_schema
from inference.engine.schema_policy.document import check_document, check_keywords
from inference.engine.tool_forms import Tool, ToolChoice, ToolsOffered

MAX_TOOLS = 128
MAX_BYTES = 256 * 1024
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FUNCTION_KEYS = {"name", "description", "parameters", "strict"}
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


class ToolRequest(TypedDict):
    """The tools of a task, as its row keeps them.

    `tools` is JSON text in OpenAI's shape: PostgreSQL does not keep the order of an object's
    members. `name`: the only one that may be called, and is.
    """

    tools: str
    choice: str
    name: str | None
    parallel: bool


def normalize(tools: Any, tool_choice: Any, parallel: bool | None) -> ToolRequest | None:
    """The tools that a submission offers; None without any.

    Raises ValidationError naming the field, with a JSON pointer to what has to be corrected.
    """
    if tools is None:
        for field, value in (("tool_choice", tool_choice), ("parallel_tool_calls", parallel)):
            if value not in (None, "none"):
                raise ValidationError({field: ["It says how tools are called: give tools."]})
        return None
    if not isinstance(tools, list) or not 1 <= len(tools) <= MAX_TOOLS:
        raise _refusal("#", f"Give a list of 1 to {MAX_TOOLS} tools.")
    try:
        text = json.dumps(tools, ensure_ascii=False)
    except RecursionError as error:
        raise _refusal("#", "It is nested too deep.") from error
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise _refusal(
            "#", f"They are larger than {MAX_BYTES} bytes: describe them in fewer words."
        )
    names: list[str] = []
    for index, tool in enumerate(tools):
        names.append(_checked_name(tool, f"#/{index}"))
        if names[-1] in names[:-1]:
            raise _refusal(f"#/{index}/function/name", f"{names[-1]} is there twice: rename one.")
    choice, name = _checked_choice(tool_choice, names)
    # Who names a tool means one call of it.
    parallel = name is None if parallel is None else parallel
    return ToolRequest(tools=text, choice=choice, name=name, parallel=parallel)


def check_constrained(asked: ToolRequest) -> None:
    """Raises ValidationError where calls are constrained to a schema that cannot be."""
    is_forced = asked["choice"] == ToolChoice.REQUIRED
    for index, tool in enumerate(offered(asked).tools):
        if is_forced or tool.is_strict:
            try:
                compile_schema(tool.parameters)
            except (SchemaError, RecursionError) as error:
                raise _schema_refusal(index, error) from error


def offered(asked: ToolRequest) -> ToolsOffered:
    """What the engine knows of them."""
    tools = [tool["function"] for tool in json.loads(asked["tools"])]
    return ToolsOffered(
        tuple(
            Tool(
                name=function["name"],
                parameters=function.get("parameters") or _NO_PARAMETERS,
                description=function.get("description") or "",
                is_strict=bool(function.get("strict")),
            )
            for function in tools
        ),
        choice=ToolChoice(asked["choice"]),
        name=asked["name"],
        is_parallel=asked["parallel"],
    )


def check_strict(asked: ToolRequest, calls: list[Any]) -> None:
    """Raises InferenceError for a call of a strict tool whose arguments do not fit its schema."""
    strict = {tool.name: tool.parameters for tool in offered(asked).tools if tool.is_strict}
    for call in calls:
        function = call["function"]
        if function["name"] in strict:
            structured_output.check_arguments(function["arguments"], strict[function["name"]])


def _checked_name(tool: Any, where: str) -> str:
    """The name of a tool that has the right shape."""
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise _refusal(where, 'A tool is {"type": "function", "function": {"name", "parameters"}}.')
    function = tool.get("function")
    if not isinstance(function, dict):
        raise _refusal(f"{where}/function", "Give an object with name and parameters.")
    unknown = [*(tool.keys() - {"type", "function"}), *(function.keys() - _FUNCTION_KEYS)]
    if unknown:
        raise _refusal(where, f"Unknown field {str(unknown[0])[:100]}: leave it out.")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = "A name is made of 1 to 64 letters, digits, _ and -."
        raise _refusal(f"{where}/function/name", message)
    if not isinstance(function.get("description"), str | None):
        raise _refusal(f"{where}/function/description", "Describe it in a text.")
    if not isinstance(function.get("strict"), bool | None):
        raise _refusal(f"{where}/function/strict", "Give true or false.")
    parameters = function.get("parameters")
    if parameters is None:
        return name
    index = int(where.rpartition("/")[2])
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise _refusal(f"{where}/function/parameters", "Give the JSON Schema of an object.")
    try:
        check_document(parameters)
        check_keywords(parameters)
    except (SchemaError, RecursionError) as error:
        raise _schema_refusal(index, error) from error
    return name


def _checked_choice(tool_choice: Any, names: list[str]) -> tuple[str, str | None]:
    """How tools are called, and the name of the only one that may be."""
    match tool_choice:
        case None:
            return ToolChoice.AUTO, None
        case "none" | "auto" | "required":
            return tool_choice, None
        case {"type": "function", "function": {"name": str() as name}} if name in names:
            return ToolChoice.REQUIRED, name
        case {"type": "function", "function": {"name": str()}}:
            message = "It names none of the tools: check its spelling."
        case _:
            message = (
                'Give none, auto, required, or {"type": "function", "function": {"name": "…"}}.'
            )
    raise ValidationError({"tool_choice": [message]})


def _schema_refusal(index: int, error: Exception) -> ValidationError:
    where = f"#/{index}/function/parameters"
    pointer, _, reason = str(error).partition(": ")
    if not isinstance(error, SchemaError) or not pointer.startswith("#"):
        pointer, reason = "#", "It is nested too deep."
    return _refusal(f"{where}{pointer[1:]}", f"The schema cannot be used. {reason}")


def _refusal(where: str, message: str) -> ValidationError:
    return ValidationError({"tools": [f"{where}: {message}"]})
