"""Names of spans, of what happens in them and of their attributes.

Owns the words. Where OpenTelemetry's semantic conventions have one (HTTP, generative AI) it is
theirs, which ``tests/ops/tracing/test_names.py`` checks; the rest begins with ``fastswitch.``.
"""

from enum import StrEnum


class Phase(StrEnum):
    """Where a sequence is, as its gateway sees it; one follows the other."""

    PREPARE = "prepare"  # its turn to be read, chat template, tokens
    PLACE = "place"  # until an engine has room for it
    WAIT = "wait for first token"
    DECODE = "decode"


class EngineState(StrEnum):
    """What an engine does with a sequence, as the engine says it."""

    QUEUED = "engine queued"
    RUNNING = "engine running"
    SWITCHED_OUT = "engine switched out"


class PlacingNote(StrEnum):
    """What happened while a sequence looked for its place."""

    IN_LINE = "in line: no engine has room for it"
    ROUTER_AWAY = "placed by the gateway: the router does not answer"
    NO_CHOICE = "placed by the gateway: the router names no engine that can be reached"


GENERATE = "generate"
ENGINE_LOST = "engine lost"

HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
ERROR_TYPE = "error.type"

OPERATION = "gen_ai.operation.name"
MODEL = "gen_ai.request.model"
MAX_TOKENS = "gen_ai.request.max_tokens"
TEMPERATURE = "gen_ai.request.temperature"
TOP_P = "gen_ai.request.top_p"
CONVERSATION = "gen_ai.conversation.id"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
FINISH_REASONS = "gen_ai.response.finish_reasons"

TENANT = "fastswitch.tenant"
REQUEST = "fastswitch.request.id"
ENGINE = "fastswitch.engine.id"
PRIORITY = "fastswitch.priority"
NUM_SWITCHES = "fastswitch.switches"
SWITCHED_OUT_S = "fastswitch.switched_out.seconds"
