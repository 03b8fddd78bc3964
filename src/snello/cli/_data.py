"""Options that say where a dataset lies and how large its images shall be."""

from __future__ import annotations

import argparse


def add_data_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the folder of a dataset, the image folder and the size of the images."""
    parser.add_argument(
        "--data-root", help="folder that holds the dataset; default: $SNELLO_DATA, ./data"
    )
    parser.add_argument("--data-path", help="the image folder, for imagefolder")
    parser.add_argument(
        "--image-size", type=int, help="resize the images to this many pixels a side"
    )
