"""Draws the picture of each page in docs/concepts and of docs/get-started.md, and saves the numbers of each beside it.

python experiments/concepts.py docs/figures/concepts
python experiments/concepts.py docs/figures/concepts --bundle ~/.cache/infalign/bundles/demo

Three pictures show rewards of the demo. They are read from ``concepts.json`` beside this script. With ``--bundle`` they
are drawn anew from the models of a bundle first, which takes a minute; without it no model is needed.
"""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from demo_rewards import DRAWS, NEW_PROMPT, PROMPTS, SAMPLES, draw_samples, read_rewards
from diagrams import draw_bundle, draw_ctrl

from infalign import (
    BestOfN,
    BestOfPoisson,
    Calibration,
    Estimator,
    Policy,
    Procedure,
    Standard,
    WorstOfN,
    beta_for_kl,
    optimal,
    parse_transformation,
    point,
)
from infalign.plots import COLOURS, panels, save
from infalign.quadrature import graded_mesh

BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY, _ = COLOURS


def draw_get_started(folder: Path) -> None:
    """The same eight candidates, measured by the rewards of all prompts and by those of their own prompt."""
    pooled = json.loads(SAMPLES.read_text(encoding="utf-8"))["pooled"]
    own, candidates = read_rewards("bicycle, unusual", "reference"), read_rewards("bicycle, unusual", "policy")
    calibrations = {
        "global": Calibration(np.array(pooled["percentiles"]), "global", Estimator.RANK),
        "prompt": Calibration(np.array(own)),
    }
    count = f"{pooled['samples']:,}"
    figure, axes = panels(
        [f"scope global: {count} rewards, all prompts", f"scope prompt: {len(own)} rewards, this one"]
    )
    best = int(np.argmax(candidates))
    numbers: dict[str, Any] = {"prompt": NEW_PROMPT, "rewards": candidates}
    for axis, (scope, calibration) in zip(axes, calibrations.items(), strict=True):
        grid = np.linspace(-28, 6, 1500)
        quantiles = calibration.quantile(candidates)
        axis.plot(grid, calibration.quantile(grid), color=GREY, linewidth=1.4, label="calibration")
        axis.plot(candidates, quantiles, "o", color=BLUE, markersize=6, label="candidates")
        axis.plot(candidates[best], quantiles[best], "o", color=RED, markersize=8, label="the selected one")
        axis.annotate(
            f"{quantiles[best]:.2f}",
            (candidates[best], quantiles[best]),
            (14, -12 if scope == "prompt" else 8),
            textcoords="offset points",
            color=RED,
        )
        axis.set_xlabel("reward")
        axis.set_ylim(-0.03, 1.05)
        numbers[scope] = quantiles.round(4).tolist()
    axes[0].set_ylabel("quantile")
    axes[0].legend(fontsize=8, frameon=False, loc="upper left")
    save(figure, folder / "get-started.svg", numbers)


def draw_reference(folder: Path) -> None:
    """The rewards of 64 responses of the reference to one prompt, and where eight responses of the policy stand."""
    anchors, candidates = read_rewards("bicycle", "reference"), sorted(read_rewards("bicycle", "policy"))
    quantiles = Calibration(np.array(anchors)).quantile(candidates)
    figure, axes = panels(
        ["by reward: the scale is the reward model's", "by quantile: the scale is the reference's"], 2.6
    )
    places = Calibration(np.array(anchors)).quantile(anchors)
    for axis, reference, policy in ((axes[0], anchors, candidates), (axes[1], places, quantiles)):
        axis.plot(reference, np.zeros(len(anchors)), "|", color=GREY, markersize=16)
        axis.plot(policy, np.ones(len(candidates)), "o", color=BLUE, markersize=7, alpha=0.8)
        axis.set_yticks([0, 1], ["reference", "policy"])
        axis.set_ylim(-0.7, 1.6)
    axes[0].set_xlabel("reward")
    axes[1].set_xlabel("quantile")
    axes[1].set_xlim(-0.03, 1.03)
    numbers = {"prompt": PROMPTS["bicycle"], "reference": anchors, "policy": candidates}
    save(figure, folder / "reference.svg", {**numbers, "quantiles": quantiles.round(4).tolist()})


def draw_reward(folder: Path) -> None:
    """Reference rewards of four prompts, and what one reward is worth under each."""
    figure, axes = panels(["raw rewards of 64 reference responses", "a response of reward −8, by quantile"], 2.9)
    shift = np.random.default_rng(0).uniform(-0.22, 0.22, DRAWS)
    numbers: dict[str, Any] = {"reward": -8}
    for row, label in enumerate(PROMPTS):
        rewards = np.array(read_rewards(label, "reference"))
        calibration = Calibration(rewards)
        quantile = float(calibration.quantile(-8.0))
        low, high = (float(end) for end in calibration.interval(-8.0))
        axes[0].plot(rewards, row + shift, "o", color=COLOURS[row], markersize=3, alpha=0.6)
        axes[1].barh(row, quantile, height=0.5, color=COLOURS[row], alpha=0.75)
        axes[1].plot([low, high], [row, row], color="black", linewidth=1)
        axes[1].text(min(high, 1.0) + 0.03, row, f"{quantile:.2f}", va="center", fontsize=9)
        numbers[label] = {"median": round(float(np.median(rewards)), 3), "quantile": round(quantile, 4)}
    axes[0].axvline(-8, color="black", linestyle="--", linewidth=1)
    axes[0].set_yticks(range(len(PROMPTS)), list(PROMPTS))
    axes[1].set_yticks([])
    axes[0].set_xlabel("reward (dashed: −8)")
    axes[1].set_xlabel("quantile (line: 95% credible interval)")
    axes[1].set_xlim(0, 1.18)
    axes[1].set_xticks([0, 0.25, 0.5, 0.75, 1])
    save(figure, folder / "reward.svg", numbers)


def draw_calibration(folder: Path) -> None:
    """The step from reward to quantile with 8 and with 64 anchors, and how the uncertainty falls with K."""
    anchors = np.array(read_rewards("bicycle", "reference"))
    figure, axes = panels(["a calibration is a staircase", "how sure a quantile is"])
    grid = np.linspace(-18, 3, 1200)
    numbers: dict[str, Any] = {"prompt": PROMPTS["bicycle"]}
    for colour, kept in ((ORANGE, anchors[:8]), (BLUE, anchors)):
        calibration = Calibration(kept)
        low, high = calibration.interval(grid)
        axes[0].fill_between(grid, low, high, color=colour, alpha=0.18, linewidth=0)
        axes[0].plot(grid, calibration.quantile(grid), color=colour, label=f"K = {kept.size}")
        numbers[f"K = {kept.size}"] = np.sort(kept).tolist()
    axes[0].set_xlabel("reward (shaded: 95% credible interval)")
    axes[0].set_ylabel("quantile")
    axes[0].legend(fontsize=8, frameon=False, loc="upper left")
    sizes = np.array([4, 8, 16, 32, 64, 128, 256])
    for colour, where, label in ((BLUE, 0.5, "in the middle"), (RED, 1.0, "above all anchors")):
        widths = []
        for size in sizes:
            low, high = Calibration(np.arange(size, dtype=np.float64)).interval(where * size - 0.5)
            widths.append(float(high - low))
        axes[1].plot(sizes, widths, "o-", color=colour, markersize=4, label=label)
        numbers[label] = dict(zip(sizes.tolist(), np.round(widths, 4).tolist(), strict=True))
    axes[1].set_xscale("log", base=2)
    axes[1].set_xticks(sizes, [str(size) for size in sizes])
    axes[1].set_ylim(bottom=0)
    axes[1].set_xlabel("K, reference rewards of the prompt")
    axes[1].set_ylabel("width of the 95% interval")
    axes[1].legend(fontsize=8, frameon=False)
    save(figure, folder / "calibration.svg", numbers)


def draw_transformation(folder: Path) -> None:
    """Transformations, the policies that they make at 0.5 nats, and their win rates under three procedures."""
    figure, axes = panels(["what is maximised", "what the policy then says", "what it wins, by procedure"])
    names = {"identity": ORANGE, "exp(10)": BLUE, "exp(-10)": RED}
    u, mesh = np.linspace(0, 1, 201), graded_mesh()
    procedures: dict[str, Procedure] = {"standard": Standard(), "best-of-4": BestOfN(4), "worst-of-4": WorstOfN(4)}
    numbers: dict[str, Any] = {"kl": 0.5}
    for offset, (name, colour) in enumerate(names.items()):
        phi = parse_transformation(name, Standard(), kl=0.5)
        low, high = float(phi(0.0)), float(phi(1.0))
        density = np.interp(1 - u, mesh.nodes, Policy.of(phi, beta_for_kl(phi, 0.5)).density)
        wins = {written: point(name, rule, kl=0.5).win_rate for written, rule in procedures.items()}
        axes[0].plot(u, (phi(u) - low) / (high - low), color=colour)
        axes[1].plot(u, density, color=colour, label=name)
        axes[2].bar(np.arange(3) + 0.26 * (offset - 1), list(wins.values()), 0.24, color=colour)
        numbers[name] = {written: round(win, 4) for written, win in wins.items()}
    best = [point("optimal", rule, kl=0.5).win_rate for rule in procedures.values()]
    axes[2].hlines(best, np.arange(3) - 0.42, np.arange(3) + 0.42, color="black", linestyle="--", linewidth=1.2)
    numbers["optimal"] = dict(zip(procedures, np.round(best, 4).tolist(), strict=True))
    axes[1].axhline(1, color=GREY, linewidth=1, linestyle=":")
    axes[1].text(0.03, 1.12, "reference", fontsize=8, color="#666666")
    axes[0].set_ylabel("Φ(u), scaled to [0, 1]")
    axes[1].set_ylabel("density of the quantile")
    axes[1].set_ylim(0, 6)
    axes[2].set_ylabel("win rate over the reference")
    axes[2].set_ylim(0.5, 1)
    axes[2].set_xticks(range(3), list(procedures))
    for axis in axes[:2]:
        axis.set_xlabel("quantile u")
    axes[2].set_xlabel("both decoded by (dashed: the optimum)")
    axes[1].legend(fontsize=8, frameon=False, loc="upper left")
    save(figure, folder / "transformation.svg", numbers)


def draw_procedure(folder: Path) -> None:
    """Where the selected response of the reference stands, by procedure and by N."""
    figure, axes = panels(["the selected response of the reference", "its mean quantile"])
    rules: dict[Procedure, tuple[str, str]] = {
        Standard(): (GREY, "-"),
        BestOfN(4): (BLUE, "-"),
        BestOfPoisson(3): (GREEN, "--"),
        WorstOfN(4): (RED, "-"),
    }
    u, numbers = np.linspace(0, 1, 201), {}
    for rule, (colour, style) in rules.items():
        axes[0].plot(u, rule.density(u), style, color=colour, label=str(rule))
        numbers[str(rule)] = {
            "expected_quantile": round(rule.expected_quantile, 4),
            "kl_bound": round(rule.kl_bound, 4),
        }
    axes[0].set_xlabel("quantile u")
    axes[0].set_ylabel("density")
    axes[0].legend(fontsize=8, frameon=False, loc="upper center")
    n = [1, 2, 4, 8, 16, 32, 64]
    axes[1].plot(n, [BestOfN(k).expected_quantile for k in n], "o-", color=BLUE, markersize=4, label="best-of-n")
    axes[1].plot(n, [WorstOfN(k).expected_quantile for k in n], "o-", color=RED, markersize=4, label="worst-of-n")
    axes[1].set_xscale("log", base=2)
    axes[1].set_xticks(n, [str(k) for k in n])
    axes[1].set_ylim(0, 1.02)
    axes[1].set_xlabel("n, candidates drawn")
    axes[1].set_ylabel("mean quantile")
    axes[1].legend(fontsize=8, frameon=False, loc="center right")
    save(figure, folder / "procedure.svg", numbers)


def draw_kl(folder: Path) -> None:
    """Policies at three distances from the reference, and what each distance buys."""
    figure, axes = panels(["the best policy at a given KL", "what a KL buys"])
    u, mesh, numbers = np.linspace(0, 1, 201), graded_mesh(), {}
    axes[0].axhline(1, color=GREY, linewidth=1.2, label="reference, KL 0")
    for colour, kl in ((SKY, 0.1), (BLUE, 0.5), ("#003a5c", 2.0)):
        phi = optimal(Standard(), kl=kl)
        policy = Policy.of(phi, phi.beta)
        axes[0].plot(u, np.interp(1 - u, mesh.nodes, policy.density), color=colour, label=f"KL {kl:g}")
        tenth = float(np.interp(0.1, mesh.nodes, policy.survival))
        numbers[f"KL {kl:g}"] = {"share of the top tenth": round(tenth, 4)}
    axes[0].set_ylim(0, 10)
    axes[0].set_xlabel("quantile u")
    axes[0].set_ylabel("density of the quantile")
    axes[0].legend(fontsize=8, frameon=False, loc="upper left")
    kls = np.linspace(0.02, 2, 40)
    for colour, rule in ((GREY, Standard()), (BLUE, BestOfN(4)), (RED, WorstOfN(4))):
        wins = [point("optimal", rule, kl=float(kl)).win_rate for kl in kls]
        axes[1].plot([0, *kls], [0.5, *wins], color=colour, label=f"trained, both decoded by {rule}")
        numbers[str(rule)] = {f"{kl:.4g}": round(win, 4) for kl, win in zip(kls, wins, strict=True)}
    sizes = [2, 4, 8, 16]
    axes[1].plot(
        [BestOfN(n).kl_bound for n in sizes],
        [BestOfN(n).expected_quantile for n in sizes],
        "D",
        color="black",
        markersize=4,
        label="untrained, best of 2, 4, 8, 16",
    )
    axes[1].set_xlabel("KL from the reference (nats)")
    axes[1].set_ylabel("win rate over the reference")
    axes[1].set_xlim(0, 2)
    axes[1].legend(fontsize=8, frameon=False, loc="lower right")
    save(figure, folder / "kl.svg", numbers)


def draw_sampling_law(folder: Path) -> None:
    """A reference with three answers, at three temperatures, measured by a calibration at temperature 1."""
    figure, axes = panels(["three answers of a reference", "measured by the calibration at temperature 1"])
    answers, chances = ("poor", "fair", "good"), np.array([0.5, 0.3, 0.2])
    anchors = np.repeat([0.0, 1.0, 2.0], (chances * 100).round().astype(int))
    quantiles = Calibration(anchors, estimator=Estimator.RANK).quantile([0.0, 1.0, 2.0])

    def at(temperature: float) -> Any:
        tilted = chances ** (1 / temperature)
        return tilted / tilted.sum()

    numbers: dict[str, Any] = {"quantiles": dict(zip(answers, quantiles.round(4).tolist(), strict=True))}
    for offset, (colour, temperature) in enumerate(((BLUE, 0.5), (GREY, 1.0), (RED, 2.0))):
        axes[0].bar(np.arange(3) + 0.26 * (offset - 1), at(temperature), 0.24, color=colour, label=f"{temperature:g}")
        mean = float(at(temperature) @ quantiles)
        axes[1].plot(temperature, mean, "o", color=colour, markersize=6, zorder=3)
        numbers[f"temperature {temperature:g}"] = {
            "chances": at(temperature).round(4).tolist(),
            "mean quantile": round(mean, 4),
        }
    axes[0].set_xticks(range(3), answers)
    axes[0].set_ylabel("probability")
    axes[0].legend(title="temperature", fontsize=8, title_fontsize=8, frameon=False)
    line = np.linspace(0.3, 2.5, 100)
    axes[1].plot(line, [at(t) @ quantiles for t in line], color="black", linewidth=1.4)
    axes[1].axhline(0.5, color=GREY, linestyle=":", linewidth=1.2)
    axes[1].set_ylim(0.3, 0.6)
    axes[1].set_xlabel("temperature that is asked for")
    axes[1].set_ylabel("mean quantile of the reference")
    save(figure, folder / "sampling-law.svg", numbers)


PICTURES = (
    draw_get_started,
    draw_reference,
    draw_reward,
    draw_calibration,
    draw_transformation,
    draw_procedure,
    draw_kl,
    draw_bundle,
    draw_sampling_law,
    draw_ctrl,
)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--bundle", type=click.Path(exists=True, path_type=Path), help="Draw the samples of this bundle anew.")
def main(folder: Path, bundle: Path | None) -> None:
    """Draw every picture into FOLDER."""
    if bundle:
        draw_samples(bundle)
    for draw in PICTURES:
        draw(folder)
        click.echo(draw.__doc__)


if __name__ == "__main__":
    main()
