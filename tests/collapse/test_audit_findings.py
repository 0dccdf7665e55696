"""The report of an audit: its text line by line, its JSON, and what a finding hides."""

from __future__ import annotations

import json
import math

import pytest

from vae_astro.collapse.audit import AuditReport
from vae_astro.collapse.audit.faults import CATALOGUE
from vae_astro.collapse.audit.findings import Finding, Untested, root_causes


def report_of(*findings: Finding, latent_dim: int = 8, **facts: object) -> AuditReport:
    untested = (Untested("room in the code", "too few stamps"),)
    return AuditReport(
        "PlainVAE", "forward(stamps)", 64, latent_dim, findings, untested, facts, 1.234
    )


def test_a_finding_of_the_catalogue_brings_its_words():
    entry = CATALOGUE["noise-scale"]
    found = Finding.of("noise-scale", "a tenth")
    assert found == Finding("noise-scale", "a tenth", entry.why, entry.mend, entry.severity)


def test_a_report_without_findings_is_told_line_by_line():
    told = str(report_of(beta_s2=0.123456, weights=7, learned_scale=True)).split("\n")
    assert told == [
        "PlainVAE: 8 latent units, audited on 64 stamps in 1.2 s through forward(stamps)",
        "",
        "No fault found.",
        "",
        "beta_s2                       0.1235",
        "weights                       7",
        "learned_scale                 True",
        "not tested: room in the code (too few stamps)",
    ]
    assert str(report_of(latent_dim=0)).startswith("PlainVAE: latent units unknown, audited on")


def test_a_finding_is_told_in_lines_that_fit_under_their_titles():
    long = "word " * 40
    finding = Finding("noise-scale", long.strip(), "because", "mend it", "serious")
    told = str(report_of(finding)).split("\n")
    assert told[2] == "SERIOUS noise-scale"
    assert told[3].startswith("        measured  word word")
    assert told[4].startswith(" " * 18 + "word")
    assert told[5].startswith(" " * 18 + "word")
    assert 105 <= max(map(len, told[3:6])) <= 110
    assert told[6:9] == ["        why       because", "        mend      mend it", ""]
    assert "No fault found." not in told


def test_json_has_every_field_and_no_number_that_is_none():
    finding = Finding("noise-scale", "m", "w", "f", "serious")
    told = report_of(
        finding, a=math.inf, b=[math.nan, 1.5], c={"d": (-math.inf, 2)}, e=True, f="text"
    ).as_dict()
    assert told == {
        "model": "PlainVAE",
        "interface": "forward(stamps)",
        "n_stamps": 64,
        "latent_dim": 8,
        "findings": [
            {"name": "noise-scale", "measured": "m", "why": "w", "mend": "f", "severity": "serious"}
        ],
        "untested": [{"experiment": "room in the code", "reason": "too few stamps"}],
        "facts": {"a": None, "b": [None, 1.5], "c": {"d": [None, 2]}, "e": True, "f": "text"},
        "seconds": 1.234,
    }
    json.dumps(told, allow_nan=False)


def test_names_are_those_of_the_findings_in_order():
    names = ("kl-wrong-sign", "noise-scale")
    assert report_of(*(Finding.of(name, "") for name in names)).names == names


def test_the_last_of_two_findings_of_one_name_is_kept():
    (kept,) = root_causes([Finding.of("noise-scale", "first"), Finding.of("noise-scale", "second")])
    assert kept.measured == "second"


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_a_cause_hides_what_it_says_it_hides_and_nothing_else(name):
    for other in CATALOGUE:
        if other == name or name in CATALOGUE[other].hides:
            continue
        kept = {each.name for each in root_causes([Finding.of(name, ""), Finding.of(other, "")])}
        assert kept == ({name} if other in CATALOGUE[name].hides else {name, other})
