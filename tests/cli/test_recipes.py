"""`srattn recipes` from the command line."""

from __future__ import annotations

import json

import pytest
import yaml

from srattn import recipes
from srattn.cli.main import main


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    for name in recipes.names():
        line = next(line for line in out.splitlines() if line.strip().startswith(f"{name} "))
        about = recipes.describe(name)
        assert about.result in line and about.cost in line
        assert line.rstrip().endswith("yes" if about.run_here else "no")


def test_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "digits"]) == 0
    content = yaml.safe_load(capsys.readouterr().out)
    assert content["config"] == recipes.load("digits") and content["about"]["run_here"] is True
    assert main(["recipes", "digits", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"] == recipes.load("digits")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--format", "json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["name"] for record in records] == recipes.names()
    assert all(record["command"] and record["source"] for record in records)


def test_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "cifar"]) == 2
    assert capsys.readouterr().err == "srattn: error: no recipe 'cifar'; did you mean 'cifar10'?\n"
