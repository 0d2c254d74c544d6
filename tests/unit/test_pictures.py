"""The pictures of the dashboards: from an answer to what a reader sees."""

import xml.etree.ElementTree as ET
from typing import Any

from tests import pictures, watching
from tests.watching import Query

N_SECONDS = 20


def ask(query: Query) -> list[dict[str, Any]]:
    """Return two drawn series for any query, with every label that a legend may name."""
    labels = dict.fromkeys(("outcome", "stage", "reason", "list", "feature", "champion", "candidate", "slo"), "some")
    return [
        {
            "metric": labels | {"le": le, "partition": le},
            "values": [(1_000 + i, str(value + i)) for i in range(N_SECONDS)],
        }
        for le, value in (("0.5", 1.0), ("+Inf", 4.0))
    ]


def test_every_dashboard_can_be_drawn() -> None:
    """Each panel's title stands on the picture, as text that can be read aloud."""
    for name, dashboard in watching.dashboards().items():
        if name == "runbooks":
            continue
        svg = ET.fromstring(pictures.draw(dashboard, ask, started_s=1_000.0, ended_s=1_020.0))
        texts = {"".join(each.itertext()).strip() for each in svg.iter() if each.tag.endswith("}text")}

        titles = {panel["title"] for panel in dashboard["panels"]}
        assert {title for title in titles if not any(text.startswith(title) for text in texts)} == set()


YOUNGER_MAX = 4
"""Panels of one dashboard that may be younger than its picture."""


def test_pictures_of_the_docs_show_the_dashboards_as_they_are() -> None:
    """Few panels were added or renamed since the pictures were drawn; `python -m tests.pictures` draws them anew."""
    for name, dashboard in watching.dashboards().items():
        if name == "runbooks":
            continue
        path = watching.generate.DEPLOY.parent / "docs" / "figures" / f"watching-{name}.svg"
        texts = ["".join(each.itertext()).strip() for each in ET.parse(path).iter() if each.tag.endswith("}text")]

        titles = [panel["title"] for panel in dashboard["panels"]]
        younger = [title for title in titles if not any(text.startswith(title) for text in texts)]
        assert len(younger) <= YOUNGER_MAX, younger


def test_values_are_told_in_their_unit() -> None:
    """Seconds, bytes, shares and rates read as on Grafana."""
    told = [pictures.told(*each) for each in ((2.1e-6, "s"), (0, "s"), (3e-10, "s"), (27_816, "bytes"), (5, "bytes"))]
    more = [
        pictures.told(*each) for each in ((0.031, "percentunit"), (1500, "cps"), (2e6, "short"), (float("nan"), "s"))
    ]
    on_edges = [pictures.told(*each) for each in ((999.7, "cps"), (0.9996, "s"), (1_048_000, "bytes"))]

    assert told == ["2.1 µs", "0 s", "0.3 ns", "27.2 KiB", "5 B"]
    assert more == ["3.1 %", "1.5 k/s", "2 M", "–"]
    assert on_edges == ["1 k/s", "1 s", "0.999 MiB"]
