"""Which class a request is served in.

Owns what a request may choose for itself: less than its tenant is entitled to, never more. A
request of an interactive tenant may say that it is batch work; one of a batch tenant that
calls itself interactive stays batch work.
"""

from scheduler.shares import ServiceClass, TenantShares
from scheduler.tracking import TrackedRequest

BATCH, INTERACTIVE = ServiceClass.BATCH, ServiceClass.INTERACTIVE


def class_of(request: TrackedRequest, shares: TenantShares) -> ServiceClass:
    """The lower of its tenant's class and of the one it wishes for."""
    if request.wishes.service_class == BATCH.value:
        return BATCH
    return shares[request.tenant].service_class
