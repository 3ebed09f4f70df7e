import subprocess
import sys
from subprocess import CompletedProcess

import pytest

from tests.commands import run_here


@pytest.mark.parametrize("command", ["", "train", "serve", "frontier", "probe", "report", "decode"])
def test_help_needs_no_heavy_import(command: str) -> None:
    program = (
        "import sys\nfrom infalign.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'torch','vllm','transformers','fastapi','scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, *command.split(), "--help"], capture_output=True, text=True)
    assert done.stdout.startswith("Usage: ")
    heavy = done.stdout.rsplit("\n", 2)[-2]
    assert heavy in ("[]", "['scipy']")


def test_the_library_imports_neither_torch_nor_a_server() -> None:
    program = (
        "import sys, infalign\nfor name in infalign.__all__: getattr(infalign, name)\n"
        "print({'torch','vllm','transformers','fastapi','matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serv"], "No such command 'serv'"),
        (
            ["train", "demmo"],
            "CONFIG: got 'demmo', accepted: a YAML file, or a shipped config: adapter, alpaca-pool, demo",
        ),
        (["train", "demo", "--set", "ctrl.targetkl=1"], "no such key; did you mean target_kl?"),
        (["train", "demo", "--set", "ctrl.target_kl"], "--set: got 'ctrl.target_kl', accepted: key=value"),
        (["train", "demo", "--set", "transformation=sqrt"], "transformation: got 'sqrt', accepted: identity, log"),
        (["serve", "--max-n", "0"], "--max-n: got '0'"),
        (["serve", "--port", "70000"], "--port: got '70000'"),
        (["frontier", "-t", "exp(0)"], "'--transformation': t: got 0.0"),
        (
            ["frontier", "--transformation", "sqrt"],
            "'--transformation': transformation: got 'sqrt', accepted: identity",
        ),
        (["frontier", "-p", "best-of-0"], "'--procedure': procedure: got 'best-of-0', accepted: standard"),
        (["frontier", "-p", "best-of-poisson(0)"], "'--procedure': mu: got 0.0"),
        (["frontier", "--kl", "11"], "'--kl': 11.0 is not in the range 0<x<=10"),
        (["frontier", "--kl", "1", "--beta", "1"], "--kl and --beta: accepted: one of the two"),
        (["frontier", "--anchors", "0"], "'--anchors': 0 is not in the range"),
        (["frontier", "-t", "log", "--anchors", "8", "--kl", "3"], "kl: got 3.0, accepted: below 2."),
        (["frontier", "-t", "optimal", "-p", "worst-of-64", "--kl", "9"], "worst-of-64 at 9 nats"),
        (["frontier", "--plot", "x.pdf"], "--plot: got 'x.pdf', accepted: a file that ends in .png or .svg"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    check_mistake(run_here(*arguments), message)


def test_a_mistake_of_the_server_is_one_line_and_exit_code_2() -> None:
    command = [sys.executable, "-m", "infalign", "serve", "/nowhere", "--port", "0"]
    check_mistake(subprocess.run(command, capture_output=True, text=True), "/nowhere: no bundle here")


def check_mistake(done: "CompletedProcess[str]", message: str) -> None:
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("infalign: ")
