"""`srattn plan` and `srattn models` as typed."""

from __future__ import annotations

import json

import pytest

from srattn.cli.main import main


def test_plan_prints_every_stage_with_its_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["plan", "pvt_v2_b0", "--size", "512"]) == 0
    out = capsys.readouterr().out
    for word in ("pvt_v2_b0 at 512x512", "128x128", "16x16", "absorbed", "absorbed needs", "stage 4, feed-forward: "):
        assert word in out
    assert main(["plan", "pvt_v2_b0", "--size", "512", "--training"]) == 0
    out = capsys.readouterr().out
    for word in ("training", "sdpa", "8 heads x 256 keys are too many to absorb at 256 channels"):
        assert word in out


def test_a_plan_in_a_pipe_is_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plan", "mvitv2_tiny", "--size", "512x384"]) == 0
    table = capsys.readouterr().out
    assert main(["plan", "mvitv2_tiny", "--size", "512x384", "--format", "json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert "…" not in table
    for row in plan["rows"]:
        lines = [line for line in table.splitlines() if line.split()[:1] == [row["stage"]]]
        assert any(row["path"] in line and f"{row['macs'] / 1e6:,.1f}" in line for line in lines)
        assert f"stage {row['stage']}: {row['reason']}" in table.splitlines()


def test_plan_as_json_of_several_models_and_a_rectangle(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "pvt_tiny", "pvt_v2_b2_li", "--size", "64", "96", "--batch", "4", "--format", "json"]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert [p["model"] for p in plans] == ["pvt_tiny", "pvt_v2_b2_li"] and plans[0]["size"] == [64, 96]
    assert plans[0]["rows"][0]["tokens"] == [16, 24] and plans[1]["rows"][0]["keys"] == [7, 7]
    assert main(["plan", "pvt_tiny", "--size", "64x96", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["size"] == [64, 96]


def test_the_machine_and_the_type_count(capsys: pytest.CaptureFixture[str]) -> None:
    def plan(*options: str) -> list[dict[str, object]]:
        assert main(["plan", "pvt_v2_b2", "--format", "json", *options]) == 0
        return json.loads(capsys.readouterr().out)[0]["rows"]

    full, half = plan("--training"), plan("--dtype", "bfloat16", "--training")
    same = [(f, h) for f, h in zip(full, half, strict=True) if f["path"] == h["path"]]
    assert same and all(2 * h["bytes"] == f["bytes"] for f, h in same)
    # A machine on which bytes are dear chooses otherwise.
    on_gpu = plan("--device", "cuda", "--dtype", "bfloat16")
    assert [row["path"] for row in on_gpu] != [row["path"] for row in half]
    assert all("GELU in one pass" in str(row["feed_forward"]) for row in on_gpu)
    assert not any("in one pass" in str(row["feed_forward"]) for row in half)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "pvt_v2_b9"], "did you mean 'pvt_v2_b"),
        (["plan", "pvt_tiny", "--size", "16"], "below the minimum of 32x32"),
        (
            ["plan", "pvt_tiny", "--size", "64", "64", "64"],
            "--size is a side in pixels, or HEIGHTxWIDTH, got '64x64x64'",
        ),
        (["plan", "pvt_tiny", "--size", "64x64x64"], "--size is a side in pixels, or HEIGHTxWIDTH, got '64x64x64'"),
        (["plan", "pvt_tiny", "--size", "large"], "--size is a side in pixels, or HEIGHTxWIDTH, got 'large'"),
        (["plan", "pvt_tiny", "--batch", "0"], "--batch is at least 1"),
        (["models", "pvt_tiney"], "did you mean 'pvt_tiny'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("srattn: error: ") and error.count("\n") == 1


def test_models_lists_sizes_and_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pvt_v2_b2*"]) == 0
    out = capsys.readouterr().out
    assert "25,362,856" in out and "22,553,512" in out and "pvt_v2_b0" not in out
    assert main(["models", "pvt_tiny", "--format", "json"]) == 0
    record = json.loads(capsys.readouterr().out)[0]
    assert record["parameters"] == 13_229_288 and record["family"] == "pvt"


def test_models_are_whole_lines_with_family_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    from srattn.models.registry import build_model, count_parameters, list_models

    assert main(["models"]) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert set(list_models()) <= set(lines)
    assert lines["mit_b5"][1:3] == ["mit", "81,956,008"]
    assert " ".join(lines["mit_b5"]).endswith("nvidia/mit-b5 NVIDIA Source Code License for SegFormer")
    # Built without values, a model of each kind of parameter has as many as one built with them.
    for name in ("pvt_tiny", "cmt_ti", "mvitv2_tiny"):
        assert int(lines[name][2].replace(",", "")) == count_parameters(build_model(name, device="meta"))
