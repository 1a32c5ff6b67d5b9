"""Runs CTranslate2 as a program that answers JSON lines, like `nearshore bench engine`.

    python scripts/benches/ct2_peer.py FOLDER COMPUTE_TYPE REPLICAS THREADS

One line in, one line out: {"prefill": [[id, ...], ...]}, {"beam": {"prompts": [...], "shared": N, "width": W, "tokens": T}},
{"logits": {"after": [...], "of": [...]}}. REPLICAS share their weights; each has THREADS threads.
"""

import json
import pathlib
import sys
import time

import ctranslate2


def main(folder, compute, replicas, threads):
    replicas = int(replicas)
    start = time.perf_counter()
    generator = ctranslate2.Generator(
        folder, device="cpu", compute_type=compute, inter_threads=replicas, intra_threads=int(threads)
    )
    tokens = json.loads((pathlib.Path(folder) / "vocabulary.json").read_text())
    text = lambda ids: [tokens[i] for i in ids]

    def prefill(prompts):
        start = time.perf_counter()
        # A replica computes one batch at a time, so there are as many batches as replicas. With the prompt in the result,
        # max_length would count it, and only its first token would be computed.
        size = -(-len(prompts) // replicas)
        generator.generate_batch(
            [text(p) for p in prompts], max_length=1, max_batch_size=size, include_prompt_in_result=False
        )
        return {"tokens": sum(map(len, prompts)), "seconds": time.perf_counter() - start}

    def beam(prompts, shared, width, tokens):
        start = time.perf_counter()
        results = generator.generate_batch(
            [text(p[shared:]) for p in prompts],
            static_prompt=text(prompts[0][:shared]),
            beam_size=width,
            num_hypotheses=width,
            min_length=tokens,
            max_length=tokens,
            include_prompt_in_result=False,
            max_batch_size=1,
        )
        seconds = time.perf_counter() - start
        lengths = {len(ids) for result in results for ids in result.sequences_ids}
        assert lengths == {tokens}, f"hypotheses of {lengths} tokens"
        return {"users": len(prompts), "seconds": seconds}

    def logits(after, of):
        result = generator.generate_batch([text(after)], max_length=1, return_logits_vocab=True, include_prompt_in_result=False)[0]
        values = result.logits[0]
        values = values.to_device(ctranslate2.Device.cpu) if hasattr(values, "to_device") else values
        import numpy

        values = numpy.array(values).reshape(-1)
        return {"logits": [float(values[i]) for i in of]}

    ask = {"prefill": lambda q: prefill(q), "beam": lambda q: beam(**q), "logits": lambda q: logits(**q)}
    ready = {"name": "CTranslate2", "version": ctranslate2.__version__, "compute": generator.compute_type}
    print(json.dumps({"ready": ready, "seconds": time.perf_counter() - start}), flush=True)
    for line in sys.stdin:
        try:
            ((what, question),) = json.loads(line).items()
            answer = ask[what](question)
        except Exception as error:  # the error is the answer to this line
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
