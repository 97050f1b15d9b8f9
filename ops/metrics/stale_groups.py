"""Groups that crashed processes left at a Pushgateway, which keeps what it has for ever.

Owns which of them are stale and their removal. A group is stale when others of its application
have been pushed long after it. Nobody's clock is asked but the Pushgateway's own, so clocks that
disagree remove nothing; a process that was only held up is back with its next push.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.request import urlopen

from prometheus_client import delete_from_gateway
from prometheus_client.parser import text_string_to_metric_families

from ops.metrics.push import MAX_WAIT_S, TIMEOUT_S, Group, PushTarget

PUSH_TIME = b"push_time_seconds{"  # the Pushgateway's own, one of each group
MIN_STALE_S = 2 * MAX_WAIT_S  # a living process is back after its longest wait
SWEEP_EVERY_PUSHES = 6


@dataclass(frozen=True, slots=True)
class PushedGroup:
    """A group and when it was last pushed, by the Pushgateway's clock."""

    group: Group
    pushed_s: float


class StaleGroups:
    """The chore of one process per application, its router: ``sweep`` after each of its pushes."""

    def __init__(self, target: PushTarget, application: str) -> None:
        self._url = target.url
        self._application = application
        self._stale_s = max(MIN_STALE_S, SWEEP_EVERY_PUSHES * target.every_s)
        self._num_pushes = 0

    def sweep(self) -> None:
        """Every few pushes, remove the stale groups; the others of other applications stay."""
        self._num_pushes += 1
        if self._num_pushes % SWEEP_EVERY_PUSHES:
            return
        groups = groups_of(self._url, self._application)
        for group in stale(groups, self._stale_s):
            delete_from_gateway(self._url, group.job, group.key, timeout=TIMEOUT_S)


def remove_application(url: str, application: str) -> None:
    """Remove all groups of an application that has ended, whether or not it could say goodbye.

    Should another of that name live, its groups are back with its next pushes.

    Raises:
        OSError: the Pushgateway is away.
    """
    for pushed in groups_of(url, application):
        delete_from_gateway(url, pushed.group.job, pushed.group.key, timeout=TIMEOUT_S)


def groups_of(url: str, application: str) -> list[PushedGroup]:
    """The application's groups that the Pushgateway has.

    Raises:
        OSError: the Pushgateway is away.
    """
    address = f"{url.rstrip('/')}/metrics"
    with urlopen(address, timeout=TIMEOUT_S) as lines:  # noqa: S310  (the settings allow http only)
        return [
            pushed for pushed in pushed_groups(lines) if pushed.group.application == application
        ]


def stale(groups: Iterable[PushedGroup], stale_s: float) -> list[Group]:
    """Those last pushed more than ``stale_s`` before the newest of them."""
    groups = list(groups)
    newest_s = max((pushed.pushed_s for pushed in groups), default=0.0)
    return [pushed.group for pushed in groups if newest_s - pushed.pushed_s > stale_s]


def pushed_groups(lines: Iterable[bytes]) -> Iterator[PushedGroup]:
    """The groups of ours in a Pushgateway's exposition, of which most lines are none of this."""
    text = b"".join(line for line in lines if line.startswith(PUSH_TIME)).decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if Group.__annotations__.keys() <= sample.labels.keys():
                yield PushedGroup(_group(sample.labels), sample.value)


def _group(labels: Mapping[str, str]) -> Group:
    return Group(labels["job"], labels["instance"], labels["application"])
