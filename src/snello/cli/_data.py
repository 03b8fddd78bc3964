"""Options for the location of a dataset and the size of its images."""

from __future__ import annotations

import argparse


def add_data_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the options for a dataset's folder, an image folder and the image size."""
    parser.add_argument(
        "--data-root", help="folder with the dataset; default: $SNELLO_DATA, else ./data"
    )
    parser.add_argument("--data-path", help="the image folder, for imagefolder")
    parser.add_argument(
        "--image-size", type=int, help="resize the images to this many pixels a side"
    )
