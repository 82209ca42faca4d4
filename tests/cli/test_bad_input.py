"""What a person can get wrong: exit 2, a line that says what, why and what instead, and nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest_cli import TINY, Said, files

Metarun = Callable[..., Said]
