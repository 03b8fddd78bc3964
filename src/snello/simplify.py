"""Former name of [`snello.simplification`][]; the function `snello.simplify` is unchanged."""

raise ImportError("the package snello.simplify is called snello.simplification now")
