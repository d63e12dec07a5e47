"""The metric table: complete entries, names of one form, undeclared names refused."""

import re

import pytest

from alignment.errors import DataError
from alignment.metrics import METRICS, check_names, metric


def test_every_name_is_a_stage_and_a_lower_case_quantity():
    for name, declared in METRICS.items():
        assert re.fullmatch(r"(sft|reward_model|ppo|dpo|time|memory)/[a-z][a-z_]*", name), name
        assert declared.name == name
        assert declared.description, name


def test_a_unit_in_the_name_is_the_unit_of_the_table():
    for name, declared in METRICS.items():
        for suffix, unit in (
            ("_nats", "nats"),
            ("_s", "s"),
            ("_per_s", "tokens a second"),
            ("_gib", "GiB"),
        ):
            if name.endswith(suffix) and not (suffix == "_s" and name.endswith("_per_s")):
                assert declared.unit.startswith(unit), name


def test_names_made_of_a_source_or_a_process_are_declared_from_it():
    assert metric("ppo/score_of_rules").unit == "score"
    assert metric("memory/gib_of_policy-0").unit == "GiB"
    assert "`policy-0`" in metric("memory/gib_of_policy-0").description
    with pytest.raises(DataError, match="'memory/gib_of_'"):
        metric("memory/gib_of_")


def test_declared_names_pass():
    check_names(METRICS)
    check_names([])


def test_every_undeclared_name_is_named():
    with pytest.raises(DataError, match=r"'ppo/kl'.*'ppo/klx_nats'"):
        check_names(["ppo/kl_nats", "ppo/klx_nats", "ppo/kl"])
