"""Names of attributes: OpenTelemetry's where it has one."""

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes import error_attributes, http_attributes

from app.edge.traces import OPERATIONS
from ops.tracing import names


def test_names_are_the_conventions_own() -> None:
    """Dashboards made for them find ours."""
    assert names.HTTP_METHOD == http_attributes.HTTP_REQUEST_METHOD
    assert names.HTTP_ROUTE == http_attributes.HTTP_ROUTE
    assert names.HTTP_STATUS == http_attributes.HTTP_RESPONSE_STATUS_CODE
    assert names.ERROR_TYPE == error_attributes.ERROR_TYPE
    assert names.OPERATION == gen_ai.GEN_AI_OPERATION_NAME
    assert names.MODEL == gen_ai.GEN_AI_REQUEST_MODEL
    assert names.MAX_TOKENS == gen_ai.GEN_AI_REQUEST_MAX_TOKENS
    assert names.TEMPERATURE == gen_ai.GEN_AI_REQUEST_TEMPERATURE
    assert names.TOP_P == gen_ai.GEN_AI_REQUEST_TOP_P
    assert names.CONVERSATION == gen_ai.GEN_AI_CONVERSATION_ID
    assert names.INPUT_TOKENS == gen_ai.GEN_AI_USAGE_INPUT_TOKENS
    assert names.OUTPUT_TOKENS == gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS
    assert names.FINISH_REASONS == gen_ai.GEN_AI_RESPONSE_FINISH_REASONS


def test_operations_are_the_conventions_own() -> None:
    """Every route's is one of those that are foreseen."""
    known = {operation.value for operation in gen_ai.GenAiOperationNameValues}
    assert set(OPERATIONS.values()) <= known
