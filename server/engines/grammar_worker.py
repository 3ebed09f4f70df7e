"""Compiles the schemas that it reads from stdin, a line of JSON each, and answers each with a line of JSON.

A process of its own, since compiling cannot be interrupted otherwise: who asks kills it when it takes too long. It ends
with its parent. What the compiler writes to stderr goes nowhere, for it quotes the schema.
"""

import json
import os
import sys

from server.engines.lifetime import end_with


def main(model: str, server: str) -> None:
    """Serve the tokenizer in the directory ``model`` to the process ``server`` until stdin ends."""
    end_with(int(server))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import xgrammar
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    vocabulary = AutoConfig.from_pretrained(model, trust_remote_code=False).vocab_size
    # With a cache as in vLLM's engines: keys of the cache are computed from a grammar, which fails for some.
    compiler = xgrammar.GrammarCompiler(
        xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary), max_threads=1, cache_enabled=True
    )
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            xgrammar.GrammarMatcher(compiler.compile_json_schema(json.loads(line)))
            failure = None
        except Exception as error:  # of the compiler's own types
            failure = str(error) or type(error).__name__
        compiler.clear_cache()
        print(json.dumps(failure), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
