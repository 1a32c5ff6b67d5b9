"""Serves a GGUF file by llama.cpp (PyPI wheel xllamacpp) with its OpenAI-compatible API, for tests.

    llama-server.py MODEL.gguf

Prints the address of the API as the first line, and serves until its standard input is closed or it is killed.
"""

import os
import sys

# llama.cpp writes to the descriptor of standard output: only the address belongs there.
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import xllamacpp  # noqa: E402

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 4096
params.n_parallel = 2
params.cpuparams.n_threads = 2
params.cpuparams_batch.n_threads = 2
params.hostnames = ["127.0.0.1"]
params.port = 0
server = xllamacpp.Server(params)
print(f"{server.listening_address}/v1", file=out, flush=True)
sys.stdin.read()
os._exit(0)
