"""Program that compiles JSON schemas. It reads one from each line of stdin, and answers each with a line of JSON.

It is a process of its own because compiling cannot be interrupted: the server kills the process when it takes too long.
The process ends with its parent. Its stderr is discarded, because the compiler quotes schemas there.
"""

import json
import os
import sys

from infalign.lifetime import end_with_parent


def main(model: str, server: str) -> None:
    """Compile schemas until stdin ends.

    Args:
        model: Directory of the model with the tokenizer.
        server: Process id of the server, as text.
    """
    end_with_parent(int(server))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import xgrammar
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    vocabulary = AutoConfig.from_pretrained(model, trust_remote_code=False).vocab_size
    # The cache is enabled as in vLLM's engines, because computing the cache key fails for some grammars.
    compiler = xgrammar.GrammarCompiler(
        xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary), max_threads=1, cache_enabled=True
    )
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            xgrammar.GrammarMatcher(compiler.compile_json_schema(json.loads(line)))
            failure = None
        except Exception as error:  # the compiler has error types of its own
            failure = str(error) or type(error).__name__
        compiler.clear_cache()
        print(json.dumps(failure), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
