"""What a report says of selections that were compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from resprout.tasks.report.selection import cluster_sentences, compared_part, selection_sentence
from resprout.tasks.select.comparison import FILE


def test_compared_selections_in_a_table(tmp_path: Path) -> None:
    def arm(name: str, mean: float, deviation: float | None, **sizes: float) -> dict[str, Any]:
        spread = {"mean": mean, "deviation": deviation, "seeds": [mean]}
        return {"name": name, "seeds": 2, "divergence": spread, **sizes}

    sizes = {"rows": 12.5, "tokens": 1000.0, "answer tokens": 400.0, "cut answers": 3.0}
    gap = {"arm": "longest", "other": "random", "measure": "divergence", "differs": True}
    found = {
        "arms": [
            arm("no recovery", 0.9, None),
            arm("longest", 0.5, 0.01, **sizes),
            arm("random", 0.6, 0.02, **sizes),
        ],
        "differences": [{**gap, "mean": -0.1, "low": -0.15, "high": -0.05}],
        "sentences": ["longest is best"],
    }
    (tmp_path / FILE).write_text(json.dumps(found, sort_keys=True))
    part = compared_part(tmp_path)
    assert part is not None
    assert part["heads"] == [
        "selection", "seeds", "rows", "tokens", "answer tokens", "cut answers", "divergence", "to random",
    ]  # fmt: skip
    assert part["rows"] == [
        ["no recovery", "", "", "", "", "", "0.9000", ""],
        ["longest", "2", "12", "1,000", "400", "3", "0.5000 ± 0.0100", "-0.1000 (-0.1500 to -0.0500) *"],
        ["random", "2", "12", "1,000", "400", "3", "0.6000 ± 0.0200", ""],
    ]
    assert compared_part(None) is None


def test_the_log_says_why_so_many_clusters_and_what_became_of_each() -> None:
    cluster = {
        "cluster": 0, "rows": 900, "compared_rows": 300, "cds": 0.125, "cds_half_interval": 0.0125,
        "granted": 1000, "filled": 990, "selected_rows": 12, "reject_rate": 0.25, "readmitted_rows": 2,
    }  # fmt: skip
    path = {
        "mode": "auto", "clusters": 8, "clusters_by": "elbow, eigengap and stability", "embedder": "tfidf",
        "cluster_search": {"elbow": 8, "eigengap": 12, "stability_at_8": 0.91}, "clusterer": "diffusion_nmf",
        "sigma": 1.25, "divergence": "every row", "efficiency": "IES", "graph": "top3",
    }  # fmt: skip
    counts = {"requested_tokens": 1000, "granted_tokens": 1000, "filled_tokens": 990, "selected_rows": 12}
    summary = {"method": "paser", "path": path, "pool_rows": 900, "clusters": [cluster], **counts}
    said = selection_sentence(summary)
    assert "8 clusters by elbow, eigengap and stability (elbow 8, eigengap 12, stability at 8 0.91);" in said
    assert cluster_sentences(summary) == [
        "cluster 0: rows 900, compared 300, CDS 0.125 ± 0.013, tokens granted 1,000, filled 990, "
        "rows chosen 12, refused by the graph 25.0 %, re-admitted 2"
    ]
    assert cluster_sentences({"method": "random", **counts}) == []
