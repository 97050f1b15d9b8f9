"""The dashboards: what an operator looks at, from the whole fleet down to one engine."""

from ops.dashboards.board import Board, Curve, Graph, Unit, Variable
from ops.dashboards.promql import (
    engines_quantile,
    fleet,
    fleet_rate,
    gateways_quantile,
    gateways_rate,
    share,
    share_of_all,
)

TTFT = "fastswitch_time_to_first_token_seconds"
TBT = "fastswitch_time_between_tokens_seconds"
PLACE = "fastswitch_time_to_place_seconds"
OUTPUT = "fastswitch_output_tokens_total"
SERVICE = "fastswitch_tenant_service_total"
SWAPPED = "fastswitch_engine_swapped_blocks_total"
ENDED = gateways_rate("fastswitch_requests_total", "outcome")
ENDED_BY_ITSELF = gateways_rate('fastswitch_requests_total{outcome!="abort"}', "outcome")
THIS_ENGINE = '{engine=~"$engine"}'


def _quantiles(histogram: str) -> tuple[Curve, ...]:
    return tuple(
        Curve(gateways_quantile(quantile, histogram), f"p{round(quantile * 100)}")
        for quantile in (0.5, 0.95, 0.99)
    )


def _by_tenant(query: str) -> tuple[Curve, ...]:
    return (Curve(query, "{{tenant}}"),)


def _by_engine(query: str, legend: str = "{{engine}}") -> tuple[Curve, ...]:
    return (Curve(query, legend),)


def _engine_rate(counter: str, *by: str, where: str = "") -> str:
    return fleet_rate(f"fastswitch_engine_{counter}_total{where}", "engine", *by)


def _engine_now(gauge: str, *by: str, where: str = "") -> str:
    return fleet(f"fastswitch_engine_{gauge}{where}", "engine", *by)


FLEET = Board(
    uid="fastswitch-fleet",
    title="FastSwitch: fleet",
    text="Is everybody served, and how soon.",
    graphs=(
        Graph(
            "Requests ended",
            "By how they ended; errors and aborts should be rare.",
            Unit.PER_SECOND,
            (Curve(ENDED, "{{outcome}}"),),
            is_stacked=True,
        ),
        Graph(
            "Requests now",
            "In line: the router holds them until an engine has room.",
            Unit.COUNT,
            (Curve(fleet("fastswitch_fleet_requests", "state"), "{{state}}"),),
            is_stacked=True,
        ),
        Graph(
            "Tokens and goodput",
            "Goodput: tokens of requests that kept the goals of `metrics.good_ttft_s` and "
            "`good_tbt_s`.",
            Unit.TOKENS_PER_SECOND,
            (
                Curve(gateways_rate("fastswitch_prompt_tokens_total"), "prompt"),
                Curve(gateways_rate(OUTPUT), "output"),
                Curve(gateways_rate("fastswitch_good_output_tokens_total"), "goodput"),
            ),
        ),
        Graph(
            "Requests that kept their goals",
            "Of all that ended and were not aborted by their clients.",
            Unit.SHARE,
            (
                Curve(
                    share(
                        gateways_rate("fastswitch_good_requests_total"),
                        f"sum({ENDED_BY_ITSELF})",
                    ),
                    "good",
                ),
            ),
        ),
        Graph("Time to first token", "Measured at the gateways.", Unit.SECONDS, _quantiles(TTFT)),
        Graph("Time between tokens", "Measured at the gateways.", Unit.SECONDS, _quantiles(TBT)),
        Graph(
            "Time to place",
            "The router's call, and its line while no engine has room. Milliseconds unless the "
            "fleet is full.",
            Unit.SECONDS,
            _quantiles(PLACE),
        ),
        Graph(
            "Pressure",
            "What autoscaling goes by, beside the queueing delay: seats taken, and switches per "
            "engine and second.",
            Unit.COUNT,
            (
                Curve(fleet("fastswitch_fleet_busy_ratio"), "busy"),
                Curve(fleet("fastswitch_fleet_switches_per_second"), "switches"),
            ),
        ),
        Graph(
            "Queueing delay",
            "Of those who have not run yet, on average: what autoscaling goes by first.",
            Unit.SECONDS,
            (Curve(fleet("fastswitch_fleet_delay_seconds"), "delay"),),
        ),
        Graph(
            "Requests moved",
            "Sent to another engine, since theirs was lost or drained.",
            Unit.PER_SECOND,
            (Curve(gateways_rate("fastswitch_moved_requests_total", "way"), "{{way}}"),),
        ),
        Graph(
            "What is up",
            "Engines in the fleet, and those of them that drain; and whether the router answers "
            "every gateway.",
            Unit.COUNT,
            (
                Curve(f"count({_engine_now('max_requests')})", "engines"),
                Curve(f"sum({_engine_now('draining')})", "draining"),
                Curve("min(fastswitch_router_up)", "router"),
            ),
        ),
        Graph(
            "KV in use",
            "Of each engine's own memory and of its host memory.",
            Unit.SHARE,
            (
                Curve(
                    share(_engine_now("kv_blocks_used", "pool"), _engine_now("kv_blocks", "pool")),
                    "{{engine}} {{pool}}",
                ),
            ),
        ),
        Graph(
            "Requests per engine",
            "Running and waiting.",
            Unit.COUNT,
            (Curve(_engine_now("requests", "state"), "{{engine}} {{state}}"),),
        ),
    ),
)

FAIRNESS = Board(
    uid="fastswitch-fairness",
    title="FastSwitch: fairness",
    text="Who gets how much, who waits how long. `_other`: tenants without curves of their own.",
    graphs=(
        Graph(
            "Share of service",
            "Of what the fleet gave just now. Compare with the entitlement beside it.",
            Unit.SHARE,
            _by_tenant(share_of_all(fleet_rate(SERVICE, "tenant"))),
            is_stacked=True,
        ),
        Graph(
            "Entitlement",
            "A tenant's weight among those that have requests now.",
            Unit.SHARE,
            _by_tenant(fleet("fastswitch_tenant_entitled_share_ratio", "tenant")),
            is_stacked=True,
        ),
        Graph(
            "Service per weight",
            "Of tenants that always have requests, these curves lie together.",
            Unit.PER_SECOND,
            _by_tenant(
                f"{fleet_rate(SERVICE, 'tenant')} / on (tenant) "
                f"{fleet('fastswitch_tenant_weight', 'tenant')}"
            ),
        ),
        Graph(
            "Service gap",
            "Between two tenants with waiting requests, at most. It stays within a bound while "
            "the policy does its work.",
            Unit.COUNT,
            (Curve(fleet("fastswitch_fleet_service_gap"), "gap"),),
        ),
        Graph(
            "Time to first token, p99",
            "What a flood of one tenant must not move for the others.",
            Unit.SECONDS,
            _by_tenant(gateways_quantile(0.99, TTFT, "tenant")),
        ),
        Graph(
            "Time between tokens, p99",
            "The same, while answers run.",
            Unit.SECONDS,
            _by_tenant(gateways_quantile(0.99, TBT, "tenant")),
        ),
        Graph(
            "Requests waiting",
            "On engines and in the router's line.",
            Unit.COUNT,
            _by_tenant(fleet('fastswitch_tenant_requests{state="waiting"}', "tenant")),
        ),
        Graph(
            "Requests running",
            "On engines.",
            Unit.COUNT,
            _by_tenant(fleet('fastswitch_tenant_requests{state="running"}', "tenant")),
        ),
        Graph(
            "Goodput",
            "Tokens of requests that kept their goals.",
            Unit.TOKENS_PER_SECOND,
            _by_tenant(gateways_rate("fastswitch_good_output_tokens_total", "tenant")),
            is_stacked=True,
        ),
        Graph(
            "Output tokens",
            "Before the weights.",
            Unit.TOKENS_PER_SECOND,
            _by_tenant(gateways_rate(OUTPUT, "tenant")),
            is_stacked=True,
        ),
    ),
)

SWITCHING = Board(
    uid="fastswitch-switching",
    title="FastSwitch: switching",
    text="What it costs that requests make way for each other.",
    graphs=(
        Graph(
            "Preemptions",
            "Running requests that made way.",
            Unit.PER_SECOND,
            _by_engine(_engine_rate("preemptions")),
        ),
        Graph(
            "Bytes moved",
            "To host memory (out) and back (in).",
            Unit.BYTES_PER_SECOND,
            _by_engine(_engine_rate("swapped_bytes", "direction"), "{{engine}} {{direction}}"),
        ),
        Graph(
            "Run length",
            "Blocks per contiguous copy: the longer, the cheaper a switch.",
            Unit.COUNT,
            _by_engine(
                share(
                    _engine_rate("swapped_blocks", "direction"),
                    _engine_rate("swap_copies", "direction"),
                ),
                "{{engine}} {{direction}}",
            ),
        ),
        Graph(
            "Stall",
            "Of the time, what the engine's loop waited for copies. A percent is much.",
            Unit.SHARE,
            _by_engine(_engine_rate("swap_stall_seconds")),
        ),
        Graph(
            "Reuse",
            "Of the blocks that swaps out needed in host memory, those that were there already.",
            Unit.SHARE,
            _by_engine(
                share(
                    _engine_rate("reused_blocks"),
                    f"{_engine_rate('reused_blocks')} + "
                    + fleet_rate(f'{SWAPPED}{{direction="out"}}', "engine"),
                )
            ),
        ),
        Graph(
            "Blocks found for new turns",
            "Loaded from host memory instead of computed.",
            Unit.PER_SECOND,
            _by_engine(_engine_rate("found_blocks")),
        ),
        Graph(
            "Blocks from neighbours",
            "Copied from host memory of other engines on the node; missed: overwritten or gone "
            "before that.",
            Unit.PER_SECOND,
            _by_engine(_engine_rate("neighbour_blocks", "outcome"), "{{engine}} {{outcome}}"),
        ),
        Graph(
            "Evictions",
            "Blocks of host memory overwritten for others. Steady evictions and lost copies: more "
            "`host_kv_gib`.",
            Unit.PER_SECOND,
            (
                Curve(_engine_rate("evicted_host_blocks"), "{{engine}} blocks"),
                Curve(_engine_rate("lost_copies"), "{{engine}} requests that lost KV"),
            ),
        ),
        Graph(
            "KV thrown away",
            "Preemptions without a swap, by reason.",
            Unit.PER_SECOND,
            _by_engine(_engine_rate("swap_fallbacks", "reason"), "{{engine}} {{reason}}"),
        ),
        Graph(
            "Tokens computed again",
            "Because their KV was thrown away.",
            Unit.TOKENS_PER_SECOND,
            _by_engine(_engine_rate("recomputed_tokens")),
        ),
        Graph(
            "Wait for KV, p99",
            "From when a request's KV is wanted back until it is there.",
            Unit.SECONDS,
            _by_engine(engines_quantile(0.99, "fastswitch_engine_load_wait_seconds")),
        ),
    ),
)

ENGINE = Board(
    uid="fastswitch-engine",
    title="FastSwitch: one engine",
    text="Choose the engine above.",
    variables=(Variable("engine", "fastswitch_engine_max_requests"),),
    graphs=(
        Graph(
            "Requests",
            "Running and waiting, and how many can run at once.",
            Unit.COUNT,
            (
                Curve(_engine_now("requests", "state", where=THIS_ENGINE), "{{engine}} {{state}}"),
                Curve(_engine_now("max_requests", where=THIS_ENGINE), "{{engine}} seats"),
            ),
        ),
        Graph(
            "KV blocks",
            "In use, and there are, on the device and in host memory.",
            Unit.COUNT,
            (
                Curve(
                    _engine_now("kv_blocks_used", "pool", where=THIS_ENGINE),
                    "{{engine}} {{pool}} used",
                ),
                Curve(_engine_now("kv_blocks", "pool", where=THIS_ENGINE), "{{engine}} {{pool}}"),
            ),
        ),
        Graph(
            "Swaps",
            "Requests whose KV went out and came in; those in beside which the engine went on.",
            Unit.PER_SECOND,
            (
                Curve(
                    _engine_rate("swaps", "direction", where=THIS_ENGINE),
                    "{{engine}} {{direction}}",
                ),
                Curve(_engine_rate("async_swaps_in", where=THIS_ENGINE), "{{engine}} in, beside"),
            ),
        ),
        Graph(
            "Copies ahead",
            "Blocks that were copied before their request made way: what a preemption need not "
            "wait for.",
            Unit.PER_SECOND,
            (
                Curve(_engine_rate("copied_ahead_blocks", where=THIS_ENGINE), "{{engine}} ahead"),
                Curve(
                    fleet_rate(
                        f'{SWAPPED}{{engine=~"$engine", direction="out"}}',
                        "engine",
                    ),
                    "{{engine}} all",
                ),
            ),
        ),
        Graph(
            "Stall and conflicts",
            "Share of the time in which the loop waited for copies.",
            Unit.SHARE,
            _by_engine(_engine_rate("swap_stall_seconds", where=THIS_ENGINE)),
        ),
        Graph(
            "Steps that waited for a copy",
            "It still read a block that they write.",
            Unit.PER_SECOND,
            _by_engine(_engine_rate("swap_conflicts", where=THIS_ENGINE)),
        ),
        Graph(
            "Wait for KV",
            "From when it is wanted back until it is there.",
            Unit.SECONDS,
            tuple(
                Curve(
                    engines_quantile(
                        quantile, "fastswitch_engine_load_wait_seconds", where=THIS_ENGINE
                    ),
                    f"{{{{engine}}}} p{round(quantile * 100)}",
                )
                for quantile in (0.5, 0.99)
            ),
        ),
        Graph(
            "Copies that failed",
            "Should stay 0; their KV is computed again.",
            Unit.PER_SECOND,
            _by_engine(_engine_rate("failed_copy_blocks", where=THIS_ENGINE)),
        ),
        Graph(
            "Prefix cache",
            "Of the prompt tokens looked up, those whose KV was there: on the device (vLLM's), and "
            "in host memory. From the engine's own process: pushed, or scraped at its port.",
            Unit.SHARE,
            tuple(
                Curve(
                    share(
                        fleet_rate(f"vllm:{cache}_hits_total{THIS_ENGINE}", "engine"),
                        fleet_rate(f"vllm:{cache}_queries_total{THIS_ENGINE}", "engine"),
                    ),
                    f"{{{{engine}}}} {where}",
                )
                for cache, where in (
                    ("prefix_cache", "device"),
                    ("external_prefix_cache", "host"),
                )
            ),
        ),
        Graph(
            "The engine's answers to its replica",
            "How long one takes is about a step; and how long ago the last step was. From the "
            "replica's own process.",
            Unit.SECONDS,
            (
                Curve(
                    engines_quantile(
                        0.99, "fastswitch_replica_exchange_seconds", where=THIS_ENGINE
                    ),
                    "{{engine}} answer p99",
                ),
                Curve(
                    fleet(f"fastswitch_replica_engine_silence_seconds{THIS_ENGINE}", "engine"),
                    "{{engine}} since the last step",
                ),
            ),
        ),
    ),
)

BOARDS = (FLEET, FAIRNESS, SWITCHING, ENGINE)
