"""Traces of generations, sent to Langfuse by its SDK where its keys are set."""

from monitoring.tracing.generation import Generation, Level
from monitoring.tracing.recorder import flush, record
from monitoring.tracing.trace_ids import is_configured, trace_id_of

__all__ = ["Generation", "Level", "flush", "is_configured", "record", "trace_id_of"]
