r"""The paper's claim on real text: does aligning for the decoding procedure win under that procedure?

    python -m experiments.real --model SmolLM2-135M-Instruct.Q4_1.gguf --transcripts hh-harmless.jsonl.gz \
        --pool alpaca-eval-pool.jsonl.gz --output docs/results

Two tasks, on one small pretrained model:

- harmlessness: prompts and comparisons of HH-RLHF, worst-of-4
- helpfulness: prompts of AlpacaEval, comparisons among the answers of many systems by a language model, best-of-4

For each, a reward model and a judge learn from disjoint comparisons of prompts that nothing is measured on. Three
policies are trained by the pipeline, with adapters and the same budget, and settled at the same KL on validation
prompts: CTRL with the optimal transformation for the procedure, the calibrated identity, and RLHF on the raw reward.
All are measured on test prompts.

An experiment that was interrupted goes on where it stopped: stages are cached as in any run, and measurements by the
policy that they are of. A GPU is used if there is one. docs/results/real.md says how long it takes.
"""
