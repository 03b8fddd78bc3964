"""The former name of :mod:`snello.simplification`; the function ``snello.simplify`` keeps its
name.
"""

raise ImportError("the package snello.simplify is called snello.simplification now")
