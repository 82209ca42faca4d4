"""metarun: few-shot meta-learning from one command line."""

import os

__version__ = "0.1.0"

# OpenMP threads that wait for one another burn their core by default. Where the machine has other work too, that core
# is then missing for the thread they wait for, and a step takes several times as long. A short spin is about as fast as
# a long one on a quiet machine; with a still shorter one they fall asleep wherever a step has many small operations in
# a row. It has to be said before torch starts its threads.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
