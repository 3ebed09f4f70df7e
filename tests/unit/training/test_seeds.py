"""Seeds that are derived from one seed: stable, in range, and all different."""

from training.seeds import derive_seed

NAMES = ("data", "sft", "reward", "rollouts", "ctrl", "evaluate", *(f"shard {number}" for number in range(100)))


def test_a_seed_is_the_same_everywhere() -> None:
    assert derive_seed(0, "sft") == derive_seed(0, "sft") == 294072092


def test_seeds_are_in_range_and_differ_between_names_and_runs() -> None:
    seeds = [derive_seed(seed, name) for seed in range(50) for name in NAMES]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_seed_and_its_name_are_kept_apart() -> None:
    assert derive_seed(1, "2/3") != derive_seed(12, "3")
