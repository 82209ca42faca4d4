"""What the contract tests have held together, told in one line when they end."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Counts what passed, by the property `combination` ([algorithm, model]) of each test that checks one."""
    passed = [dict(report.user_properties).get("combination") for report in terminalreporter.getreports("passed")]
    pairs = [pair for pair in passed if isinstance(pair, list)]
    if pairs:
        algorithms, models = (len(set(names)) for names in zip(*pairs))
        terminalreporter.write_line(
            f"contract matrix: {algorithms} algorithms x {models} models: {len(pairs):,} combinations"
        )
