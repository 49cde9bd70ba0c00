"""What the fork server imports before it forks: what every worker would import, in a second of its own."""

import gc

import pyarrow as pa
import pyarrow.dataset

import mmdata.engine.align
import mmdata.engine.decide
import mmdata.engine.ingest
import mmdata.engine.measure
import mmdata.media.image_write  # noqa: F401 - see above

# With its first array pyarrow imports pandas, where it is installed.
pa.array(["x"])
# What is here stays: a collector that looks at it would write to every page of it, and so copy them.
gc.freeze()
