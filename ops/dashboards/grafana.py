"""Boards as Grafana's dashboards, made with Grafana's own foundation SDK.

Owns how a graph looks and where it stands; what it shows is the board's.
"""

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    GridPos,
    VariableRefresh,
)

from ops.dashboards.board import Board, Graph, Unit, Variable

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH, HEIGHT, COLUMNS = 12, 8, 2


def dashboard_json(board: Board) -> str:
    """The dashboard as Grafana imports or provisions it."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.text)
        .tags(["fastswitch"])
        .refresh("10s")
        .time("now-30m", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
    )
    for variable in board.variables:
        made = made.with_variable(_variable(variable))
    for number, graph in enumerate(board.graphs):
        made = made.with_panel(_panel(graph).id(number + 1).grid_pos(_place(number)))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def _variable(variable: Variable) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(variable.name)
        .datasource(SOURCE)
        .query(f"label_values({variable.metric}, {variable.name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)  # noqa: FBT003  (the SDK's own form)
        .include_all(True)  # noqa: FBT003
        .all_value(".*")
    )


def _panel(graph: Graph) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .title(graph.title)
        .description(graph.text)
        .datasource(SOURCE)
        .unit(graph.unit.value)
        .min(0)
        .draw_style(GraphDrawStyle.LINE)
        .show_points(VisibilityMode.NEVER)
        .fill_opacity(30 if graph.is_stacked else 5)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)  # noqa: FBT003
        )
    )
    if graph.unit is Unit.SHARE and graph.is_stacked:
        panel = panel.max(1)
    if graph.is_stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    for number, curve in enumerate(graph.curves):
        query = prometheus.Dataquery().expr(curve.query).legend_format(curve.legend).range()
        panel = panel.with_target(query.ref_id(chr(ord("A") + number)))
    return panel


def _place(number: int) -> GridPos:
    row, column = divmod(number, COLUMNS)
    return GridPos(h=HEIGHT, w=WIDTH, x=column * WIDTH, y=row * HEIGHT)
