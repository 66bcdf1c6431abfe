"""What the alert rules and the dashboard ask Prometheus."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from compose_project import ROOT

FILES = ROOT / "deploy" / "helm" / "tiny-sd" / "files"
RULES = FILES / "alerts.yaml"
DASHBOARD = FILES / "dashboard.json"

_NOT_METRICS = re.compile(
    r"""
    "[^"]*"                                             # texts
    | \[[^]]*\]                                         # durations
    | \b(?:by|on|without|ignoring|group_left)\s*\([^)]*\)   # lists of labels
    | \w+\s*(?==~|!~|!=|=(?!=))                         # labels in selectors
    | \w+\s*(?=\(|(?:by|without)\b)                     # functions
    | \b(?:and|or|unless|by|on|group_left)\b
    | \b\d[\w.]*                                        # numbers
    """,
    re.VERBOSE,
)


def alerts() -> dict[str, dict[str, Any]]:
    """The alert rules by name."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules), "each name once"
    return {rule["alert"]: rule for rule in rules}


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels that show something."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def questions() -> list[tuple[str, str]]:
    """Panel's title and PromQL, with Grafana's variables as it fills them in."""
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "1h").replace("$namespace", ".*"))
        for panel in panels()
        for target in panel["targets"]
    ]


def metrics(expression: str) -> set[str]:
    """The names of the series that a PromQL expression reads."""
    return set(re.findall(r"[a-zA-Z_:][\w:]*", _NOT_METRICS.sub(" ", expression)))
