"""Write the small demo model: Llama-shaped, seeded weights, so that all runs without a download."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from app.demo_model import write_demo_model
from app.errors import ModelFolderError

EXAMPLE = "fastswitch demo-model ./demo --size tiny --seed 1"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="made if it is not there yet")
    parser.add_argument(
        "--size", choices=("tiny", "small"), default="tiny", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the weights (default: %(default)s)"
    )


def run(options: Namespace) -> int:
    try:
        write_demo_model(options.folder, options.size, options.seed)
    except OSError as error:
        raise ModelFolderError(options.folder, f"cannot be written: {error.strerror}") from error
    print(options.folder)
    return 0
