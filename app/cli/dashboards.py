"""Write Grafana dashboards, Prometheus alert rules and a sample prometheus.yml into a folder.

In Grafana, import the JSON files or let it provision the folder; the data source is a Prometheus
server that reads the rules and the metrics as the sample says.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from app.errors import DashboardFolderError

EXAMPLE = "fastswitch dashboards ./monitoring"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="made if it is not there yet")


def run(options: Namespace) -> int:
    from ops.dashboards.files import write_files

    try:
        written = write_files(options.folder)
    except OSError as error:
        raise DashboardFolderError(options.folder, error.strerror or str(error)) from error
    for path in written:
        print(path)
    return 0
