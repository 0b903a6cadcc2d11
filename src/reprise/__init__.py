"""Reprise: image classification that you can run again, compare and trust.

The library takes arguments and returns results; it never reads params.yaml, the working directory, the clock or the
environment, so every function can be called from a notebook. Import direction: `params` and `data` <- `model` <-
`training` <- `evaluation`.
"""

import reprise.code  # noqa: F401  first: it looks at the code before the rest is loaded
