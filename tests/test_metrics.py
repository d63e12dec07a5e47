"""The metric table: complete entries, names of one form, undeclared names refused."""

import re

import pytest

from alignment.errors import DataError
from alignment.metrics import METRICS, check_names


def test_every_name_is_a_stage_and_a_lower_case_quantity():
    for name, metric in METRICS.items():
        assert re.fullmatch(r"(sft|reward_model|ppo|dpo|time)/[a-z][a-z_]*", name), name
        assert metric.name == name
        assert metric.description, name


def test_a_unit_in_the_name_is_the_unit_of_the_table():
    for name, metric in METRICS.items():
        for suffix, unit in (("_nats", "nats"), ("_s", "s"), ("_per_s", "tokens a second")):
            if name.endswith(suffix) and not (suffix == "_s" and name.endswith("_per_s")):
                assert metric.unit.startswith(unit), name


def test_declared_names_pass():
    check_names(METRICS)
    check_names([])


def test_every_undeclared_name_is_named():
    with pytest.raises(DataError, match=r"'ppo/kl'.*'ppo/klx_nats'"):
        check_names(["ppo/kl_nats", "ppo/klx_nats", "ppo/kl"])
