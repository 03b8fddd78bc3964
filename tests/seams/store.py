"""Private names of `snello.store`: which arguments load a file is told without building models."""

from snello.store._libraries import loading_argument as loading_argument
