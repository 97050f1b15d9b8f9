"""The alerts: what an operator is called for, and what to do then.

Owns the rules and their runbook. Queries are those of the dashboards with a window of their own:
an alert looks at the last minutes, whatever somebody has on the screen.
"""

from dataclasses import dataclass
from enum import Enum

from ops.dashboards.boards import ENDED, ENDED_BY_ITSELF, SERVICE
from ops.dashboards.promql import WINDOW, fleet, fleet_rate, gateways_rate, share_of_all

ALERT_WINDOW = "5m"


class Severity(Enum):
    CRITICAL = "critical"  # requests fail now
    WARNING = "warning"  # they will, or are served worse than they could be


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule. ``summary`` and ``runbook`` may use Prometheus' templates."""

    name: str
    query: str
    lasting: str  # how long it has to be so
    severity: Severity
    summary: str
    runbook: str

    @property
    def expression(self) -> str:
        return self.query.replace(WINDOW, ALERT_WINDOW)


_SHARE_OF_SERVICE = share_of_all(fleet_rate(SERVICE, "tenant"))
_WAITING = fleet('fastswitch_tenant_requests{state="waiting"}', "tenant")
_ENDED_BADLY = gateways_rate('fastswitch_requests_total{outcome="error"}', "outcome")
_ENGINE_RATE = "fastswitch_engine_{}_total"

ALERTS = (
    Alert(
        "FastSwitchNoMetrics",
        "absent(fastswitch_router_up)",
        "5m",
        Severity.CRITICAL,
        "No gateway can be scraped and none has pushed",
        "Ask /health of the service. If that answers, the way of the metrics is broken: look at "
        "Prometheus' page of targets, and with metrics.push_url at the Pushgateway and at the "
        "gateways' logs, which say once why a push fails. If it does not answer, `serve status` "
        "says which deployment is down.",
    ),
    Alert(
        "FastSwitchNoEngine",
        "max(fastswitch_router_up) unless on () count(fastswitch_engine_max_requests)",
        "1m",
        Severity.CRITICAL,
        "No engine is in the fleet: every request fails or waits",
        "Engines that start take a minute or two. If none comes, `serve status` and the Engine "
        "replicas' logs say why: most often too little memory, a GPU that is taken, or a model "
        "that is not on that node.",
    ),
    Alert(
        "FastSwitchRouterDown",
        "max(fastswitch_router_up) == 0",
        "1m",
        Severity.WARNING,
        "No gateway reaches the router",
        "Requests go on with the last priorities and are placed by the gateways' own load: service "
        "is up and no longer fair. Serve restarts the router within seconds; if it does not come "
        "back, its log and `serve status` say why.",
    ),
    Alert(
        "FastSwitchErrors",
        f"sum({_ENDED_BADLY}) / sum({ENDED}) > 0.01",
        "5m",
        Severity.CRITICAL,
        "{{ $value | humanizePercentage }} of the requests end with an error",
        "The gateways' logs have the errors. Requests of an engine that dies go on with another, "
        "so errors are those that cannot: no other engine came within continuation_timeout_s, or a "
        "replayed answer came out different. Then look for engines that restart (dashboard fleet, "
        "what is up) and into the Engine replicas' logs for the reason.",
    ),
    Alert(
        "FastSwitchGoodputLow",
        f"{gateways_rate('fastswitch_good_requests_total')} / sum({ENDED_BY_ITSELF}) < 0.9",
        "10m",
        Severity.WARNING,
        "Only {{ $value | humanizePercentage }} of the requests keep their latency goals",
        "Dashboard fleet: if requests wait in line, the fleet is too small for its load: add "
        "engines (replicas). If time to place is short and the time between tokens long, engines "
        "are too full: lower max_num_seqs. Dashboard switching: a stall of more than a percent "
        "means that copies are in the way.",
    ),
    Alert(
        "FastSwitchFleetFull",
        fleet('fastswitch_fleet_requests{state="in_line"}') + " > 0",
        "10m",
        Severity.WARNING,
        "{{ $value }} requests wait in the router's line: no engine has had room for ten minutes",
        "Who is behind it shows the dashboard fairness (requests waiting). Tenants within their "
        "share are served all the same; more engines (replicas) make the line shorter, a limit "
        "for the tenant that floods keeps it short.",
    ),
    Alert(
        "FastSwitchUnfairService",
        f"({_SHARE_OF_SERVICE}) < 0.5 * {fleet('fastswitch_tenant_entitled_share_ratio', 'tenant')}"
        f" and {_WAITING} > 0",
        "10m",
        Severity.WARNING,
        "{{ $labels.tenant }} waits and gets less than half of what it is entitled to",
        "Whether the router is up (dashboard fleet); without it nothing is fair. Then fairness: is "
        "the service gap bounded? If it grows, the engines do not follow the priorities: look for "
        "requests that cannot be switched (switching, KV thrown away: unswitchable) that hold all "
        "seats of an engine.",
    ),
    Alert(
        "FastSwitchSwapStall",
        fleet_rate(_ENGINE_RATE.format("swap_stall_seconds"), "engine") + " > 0.02",
        "10m",
        Severity.WARNING,
        "{{ $labels.engine }} spends {{ $value | humanizePercentage }} of its time on copies",
        "Dashboard switching: short runs (fewer than some blocks per copy) or many preemptions. A "
        "larger fairness.quantum switches less; more KV memory (kv_cache_gib) leaves requests "
        "where they are.",
    ),
    Alert(
        "FastSwitchLostCopies",
        fleet_rate(_ENGINE_RATE.format("lost_copies"), "engine") + " > 0",
        "15m",
        Severity.WARNING,
        "{{ $labels.engine }} overwrites KV that swapped-out requests still need",
        "Host memory is too small for the requests that are switched out; they are computed again, "
        "which costs time and no correctness. Raise host_kv_gib.",
    ),
    Alert(
        "FastSwitchFailedCopies",
        fleet_rate(_ENGINE_RATE.format("failed_copy_blocks"), "engine") + " > 0",
        "0m",
        Severity.WARNING,
        "Copies between device and host memory of {{ $labels.engine }} fail",
        "The KV is computed again and no output is wrong. The engine's log names the driver's "
        "error: memory or the GPU itself is at fault. Replace the engine (kill its replica; Serve "
        "starts another), on another node if it comes back.",
    ),
    Alert(
        "FastSwitchEngineSilent",
        fleet("fastswitch_replica_engine_silence_seconds", "engine") + " > 30",
        "0m",
        Severity.CRITICAL,
        "{{ $labels.engine }} has made no token for {{ $value | humanizeDuration }}",
        "After 60 s its replica is replaced, and its requests go on with other engines. A single "
        "step of a full batch of long prompts can take long on a CPU: then lower "
        "max_num_batched_tokens. Else the engine's log and the GPU's state (nvidia-smi) tell.",
    ),
    Alert(
        "FastSwitchRouterBusy",
        f"sum by (instance) (rate(fastswitch_router_busy_seconds_total[{WINDOW}])) > 0.7",
        "10m",
        Severity.WARNING,
        "The router computes {{ $value | humanizePercentage }} of the time",
        "There is one router: past this, placements take longer than admit_timeout_s and the "
        "gateways place requests alone. Raise fairness.update_s and exchange_s, which costs "
        "fairness at short times only.",
    ),
    Alert(
        "FastSwitchStoppedPushing",
        'time() - max by (job, instance, application) (push_time_seconds{application!=""}) > 90',
        "10m",  # what a crashed process leaves is removed within three minutes, by default
        Severity.WARNING,
        "{{ $labels.job }} {{ $labels.instance }} last pushed {{ $value | humanizeDuration }} ago",
        "It does not reach the Pushgateway, which its log says once. Or it has crashed and could "
        "not take its metrics away: the router removes those within minutes, so it does not push "
        "either.",
    ),
)
