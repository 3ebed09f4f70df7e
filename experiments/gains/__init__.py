"""Does aligning for the decoding procedure win under that procedure, how much of what theory leaves, and why not all?

    python -m experiments.gains table --output docs/results
    python -m experiments.gains curves --output docs/results
    python -m experiments.gains reader --output docs/results

All methods start from the data and the reference of ``study.yaml``: the help desk of the demo, with more answers and
comparisons. Each trains one policy per seed, with the same solver, steps and samples, and settles at the same KL on
validation prompts. All are measured on test prompts that nothing was chosen by. Stages are cached as in any run, so an
interrupted experiment goes on where it stopped.
"""
