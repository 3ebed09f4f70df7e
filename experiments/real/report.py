"""The figures that compare the methods, and their tables."""

from typing import Any

from experiments.real.tasks import CLAIMS, METHODS, PROCEDURES, TASKS, Task
from infalign import Estimate, estimators, over_prompts, point
from infalign.parsing import parse_procedure


def compare(task: Task, drawn: dict[str, dict[str, Any]], anchors: int) -> dict[str, Any]:
    """Compute the figures of the methods of a task.

    Args:
        task: The task.
        drawn: What :func:`measure` returned for each method that is measured, and for the reference by the name ''.
        anchors: K, rewards per prompt in the calibration.
    """
    theirs = drawn[""]
    each: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        if method.name not in drawn:
            continue
        ours = drawn[method.name]
        each[method.name] = {
            "kl": ours["kl"],
            "wins": {str(p): estimators.win_rate(ours["rewards"], theirs["rewards"], p) for p in PROCEDURES},
            "judged": {
                str(p): estimators.judged_win_rate(
                    ours["rewards"], ours["judged"], theirs["rewards"], theirs["judged"], p
                )
                for p in PROCEDURES
            },
        }
    methods = {
        name: {
            "kl": over_prompts(values["kl"]),
            "tokens": float(drawn[name]["tokens"]),
            "solved": drawn[name]["solved"],
            **{
                what: {procedure: over_prompts(wins) for procedure, wins in values[what].items()}
                for what in ("wins", "judged")
            },
        }
        for name, values in each.items()
    }
    gains = []
    for better, worse in CLAIMS:
        if {better, worse} <= each.keys():
            gain, judged = (
                over_prompts(each[better][what][task.procedure] - each[worse][what][task.procedure])
                for what in ("wins", "judged")
            )
            theory = [_theory(task, name, methods[name]["kl"].value, anchors) for name in (better, worse)]
            gains.append(
                {"better": better, "worse": worse, "gain": gain, "judged": judged, "room": theory[0] - theory[1]}
            )
    return {"methods": methods, "gains": gains}


def _theory(task: Task, name: str, kl: float, anchors: int) -> float:
    """Compute the win rate of the optimal policy of a method under the procedure of a task."""
    if kl <= 0:
        return 0.5
    method = next(method for method in METHODS if method.name == name)
    trained_for = parse_procedure(task.procedure if method.aligned else "standard")
    procedure = parse_procedure(task.procedure)
    return point(method.transformation, procedure, kl=kl, anchors=anchors, training_procedure=trained_for).win_rate


def write_tables(results: dict[str, Any]) -> str:
    """Write the tables of docs/results/real.md, from the contents of real.json."""
    tasks = [task for task in TASKS if "accuracy" in results.get(task.name, {})]
    lines = [
        "| task | prompts: train, validation, test | comparisons: reward, judge | accuracy of the reward model "
        "| accuracy of the judge | the judge agrees with the reward |",
        "|---" * 6 + "|",
    ]
    for task in tasks:
        row = results[task.name]
        counts, accuracy = row["counts"], row["accuracy"]
        lines.append(
            f"| {task.name} | {counts['train']}, {counts['validation']}, {counts['test']} "
            f"| {counts['reward']}, {counts['judge']} | {_text(accuracy['reward'])} | {_text(accuracy['judge'])} "
            f"| {_text(row['agreement']) if 'agreement' in row else ''} |"
        )
    tasks = [task for task in tasks if "methods" in results[task.name]]
    if not tasks:
        return "\n".join(lines) + "\n"
    for what, title in (("wins", "win rate by the reward model"), ("judged", "the same by the judge")):
        lines += ["", f"| task | {title} | KL | standard | best-of-4 | worst-of-4 |", "|---" * 6 + "|"]
        for task in tasks:
            for name, method in results[task.name]["methods"].items():
                cells = [_text(method["kl"]), *(_text(method[what][str(procedure)]) for procedure in PROCEDURES)]
                lines.append(f"| {task.name} | {name} | {' | '.join(cells)} |")
    lines += ["", "| under | better | than | gain | theory's room | gain by the judge |", "|---" * 6 + "|"]
    for task in tasks:
        for gain in results[task.name]["gains"]:
            lines.append(
                f"| {task.procedure} | {gain['better']} | {gain['worse']} | {_text(gain['gain'])} | {gain['room']:.3f} "
                f"| {_text(gain['judged'])} |"
            )
    return "\n".join(lines) + "\n"


def _text(estimate: dict[str, float] | Estimate) -> str:
    return str(estimate if isinstance(estimate, Estimate) else Estimate(**estimate))
