"""``infalign frontier`` as its users call it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from infalign import InvalidValue
from infalign.commands import frontier
from tests.commands import run_here


def run(*arguments: str) -> str:
    result = CliRunner(catch_exceptions=False).invoke(frontier, arguments)
    if result.exit_code:
        raise AssertionError(result.output)
    return result.stdout


def test_one_point_is_three_lines() -> None:
    lines = dict(line.split() for line in run("-t", "exp(10)", "-p", "best-of-4", "--kl", "0.5").splitlines())
    assert {name: float(value) for name, value in lines.items()} == {
        "win_rate": pytest.approx(0.871513, abs=1e-6),
        "beta": pytest.approx(0.31834, abs=1e-5),
        "kl": pytest.approx(0.5),
    }


def test_json_is_an_object_for_one_point_and_a_list_for_several() -> None:
    one = json.loads(run("-t", "optimal", "-p", "worst-of-2", "--beta", "0.2", "--json"))
    assert one["procedure"] == "worst-of-2"
    assert one["beta"] == 0.2
    many = json.loads(run("-t", "log", "-t", "identity", "-p", "standard", "--kl", "1", "--kl", "2", "--json"))
    assert [(row["transformation"], round(row["kl"], 6)) for row in many] == [
        ("log", 1),
        ("identity", 1),
        ("log", 2),
        ("identity", 2),
    ]


def test_the_default_table_ends_with_the_best() -> None:
    rows = [line.split() for line in run().splitlines()]
    assert rows[0] == ["procedure", "transformation", "kl", "win_rate", "beta"]
    assert rows[-1][1] == "optimal"
    assert max(rows[1:], key=lambda row: float(row[3])) == rows[-1]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "figure.svg").symlink_to("/dev/full")
    done = run_here("frontier", "--plot", str(tmp_path / "figure.svg"))
    assert (done.returncode, done.stderr) == (2, "infalign: output: no space left on the disk\n")


def test_anchors_lower_the_win_rate() -> None:
    def win_rate(*more: str) -> float:
        return float(json.loads(run("-t", "exp(10)", "--kl", "1", "--json", *more))["win_rate"])

    assert win_rate("--anchors", "8") < win_rate("--anchors", "64") < win_rate()
    assert "win_rate_error" in run("-t", "log", "--anchors", "8")
    table = run("-t", "log", "-t", "gaussian", "--anchors", "8").splitlines()
    assert table[0].endswith("win_rate_error")
    assert float(table[1].split()[-1]) > float(table[2].split()[-1]) == 0  # an uncalibrated reward needs no anchors


def test_a_mixture_is_shown_under_each_procedure_beside_its_own_optimum() -> None:
    mixture = "standard+best-of-4+worst-of-4"
    wanted = ["-t", "identity", "-t", "optimal", "-p", "worst-of-4+best-of-4+standard", "--kl", "0.5"]
    rows = json.loads(run(*wanted, "--json"))
    each = ["standard", "best-of-4", "worst-of-4"]
    assert [(row["procedure"], row["transformation"], row["aligned_for"]) for row in rows] == [
        (mixture, "identity", None),
        (mixture, "optimal", mixture),
        *(
            (procedure, *line)
            for procedure in each
            for line in (("identity", None), ("optimal", mixture), ("optimal", procedure))
        ),
    ]
    wins = {(row["procedure"], row["aligned_for"]): row["win_rate"] for row in rows}
    assert all(row["kl"] == pytest.approx(0.5) for row in rows)
    for kind in (mixture, None):
        assert wins[mixture, kind] == pytest.approx(sum(wins[procedure, kind] for procedure in each) / 3)
    assert all(wins[procedure, mixture] < wins[procedure, procedure] for procedure in each)
    assert wins[mixture, mixture] > wins[mixture, None]
    table = [line.split() for line in run(*wanted).splitlines()]
    assert table[0][-1] == "aligned_for"
    assert [row[-1] for row in table[1:] if row[1] == "optimal"] == [mixture, *(x for p in each for x in (mixture, p))]


def test_the_figure_of_a_mixture_has_a_panel_for_each_procedure(tmp_path: Path) -> None:
    run("-t", "optimal", "-p", "best-of-2+worst-of-2", "--kl", "1", "--plot", str(tmp_path / "figure.svg"))
    curves = json.loads((tmp_path / "figure.json").read_text())["curves"]
    mixture = "best-of-2+worst-of-2"
    assert list(dict.fromkeys((p["procedure"], p["aligned_for"]) for p in curves)) == [
        (mixture, mixture),
        ("best-of-2", mixture),
        ("best-of-2", "best-of-2"),
        ("worst-of-2", mixture),
        ("worst-of-2", "worst-of-2"),
    ]
    assert f"optimal for {mixture}" in (tmp_path / "figure.svg").read_text()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_figure_has_its_numbers_beside_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"figure.{suffix}"
    run("-t", "log", "-t", "optimal", "-p", "best-of-4", "-p", "worst-of-2", "--kl", "1", "--plot", str(path))
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    curves = json.loads((tmp_path / "figure.json").read_text())["curves"]
    assert {(p["procedure"], p["transformation"]) for p in curves} == {
        (p, t) for p in ("best-of-4", "worst-of-2") for t in ("log", "optimal")
    }
    assert curves[0]["kl"] == 0
    assert curves[0]["beta"] is None
    assert curves[0]["win_rate"] == 0.5
    assert max(p["kl"] for p in curves) == pytest.approx(2)
    assert [p["win_rate"] for p in curves[:41]] == sorted(p["win_rate"] for p in curves[:41])
    if suffix == "svg":
        assert all(label in first.decode() for label in ("optimal", "KL from the reference"))
        run("-t", "log", "-t", "optimal", "-p", "best-of-4", "-p", "worst-of-2", "--kl", "1", "--plot", str(path))
        assert path.read_bytes() == first


def test_a_figure_with_anchors_ends_where_they_do(tmp_path: Path) -> None:
    run("-t", "log", "--anchors", "3", "--plot", str(tmp_path / "figure.svg"))
    curves = json.loads((tmp_path / "figure.json").read_text())["curves"]
    assert 1.5 < max(p["kl"] for p in curves) < 2


@pytest.mark.parametrize("path", ["figure.pdf", "figure", "nowhere/figure.png"])
def test_a_figure_that_cannot_be_saved_is_refused_first(path: str) -> None:
    with pytest.raises(InvalidValue, match="--plot: got"):
        run("--plot", path)
