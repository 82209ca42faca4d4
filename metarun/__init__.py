"""metarun: few-shot meta-learning from one command line."""

__version__ = "0.1.0"
