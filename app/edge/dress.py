"""The HTTP edge: everything around vLLM's app in a gateway.

Owns our own routes (health, fairness) and the order of what a request passes: the gateway's name,
body limit, identity, trace, intake, tool calls, route, admission, the app. Who a key belongs to is
`app.tenants`; what our routes say is the gateway's.
"""

from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp

from app.edge.admissions import AdmissionMiddleware
from app.edge.app_errors import AppErrorsMiddleware
from app.edge.identity import Identity, IdentityMiddleware, current_identity
from app.edge.intake import IntakeMiddleware
from app.edge.leaving import LeavingClientsMiddleware
from app.edge.limits import BodyLimitMiddleware
from app.edge.routes import KnownRoutesMiddleware
from app.edge.served_by import ServedByMiddleware
from app.edge.tool_calls import ToolCallsMiddleware
from app.tenants import TenantDirectory
from deployments.gateway import GatewayState

if TYPE_CHECKING:
    from ops.tracing.export import Tracing

RETRY_AFTER_S = 5


class HttpEdge:
    """Dresses vLLM's app. Made where the application is built, used in each gateway."""

    def __init__(self, new_directory: Callable[[], TenantDirectory], max_body_bytes: int) -> None:
        self._new_directory = new_directory
        self._max_body_bytes = max_body_bytes

    def dress(
        self, app: FastAPI, gateway: GatewayState, tracing: "Tracing | None" = None
    ) -> ASGIApp:
        """Add our routes, and what stands before all routes."""
        app.add_api_route("/health", _health(gateway), methods=["GET"])
        app.add_api_route("/v1/fairness", _fairness(gateway), methods=["GET"])
        # Around the app, not in it: vLLM has closed its own list of middlewares by now.
        leaving = LeavingClientsMiddleware(AdmissionMiddleware(AppErrorsMiddleware(app)))
        known = KnownRoutesMiddleware(leaving, app.router.routes)
        watched = ToolCallsMiddleware(known, gateway)
        taken_in: ASGIApp = IntakeMiddleware(watched)
        if tracing is not None:
            from app.edge.traces import TracesMiddleware

            taken_in = TracesMiddleware(taken_in, tracing.tracer)
        identified = IdentityMiddleware(taken_in, self._new_directory())
        bounded = BodyLimitMiddleware(identified, self._max_body_bytes)
        return ServedByMiddleware(bounded, gateway.name)

    def named_tenants(self) -> Collection[str]:
        """The tenants the settings name: they have metrics of their own whoever else comes."""
        return self._new_directory().shares.keys()

    def current_caller(self) -> Identity:
        """Who sent the request in whose context this runs."""
        return current_identity.get()


def _health(gateway: GatewayState) -> Callable[[], Awaitable[Response]]:
    async def health() -> Response:
        """200 while requests are served: engines step, the way to them works. Else 503 and why."""
        try:
            await gateway.check_ready()
        except Exception as error:  # noqa: BLE001  (whatever it is, it is why)
            return JSONResponse(
                {"status": "unavailable", "reason": str(error)},
                HTTPStatus.SERVICE_UNAVAILABLE,
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        return JSONResponse({"status": "ok"})

    return health


def _fairness(gateway: GatewayState) -> Callable[[], Awaitable[Response]]:
    async def fairness() -> Response:
        """Tenants, weights, service and current ranks; the engines and their load."""
        return Response(await gateway.fairness(), media_type="application/json")

    return fairness
