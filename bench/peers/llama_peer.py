# SPDX-License-Identifier: Apache-2.0
"""llama.cpp through the low-level interface of llama-cpp-python: many sequences in one batch, F32 weights.

With --convert IN OUT: writes the GGUF file IN with all its tensors as F32.
"""
import ctypes
import os
import sys
import time

from worker import serve


def convert(source, target):
    import gguf
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = gguf.LlamaFileType.ALL_F32 if name == "general.file_type" else field.contents()
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(name, value, field.types[0], field.types[-1] if is_array else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Peer:
    def __init__(self, path, max_sequences, max_tokens):
        from llama_cpp import llama_cpp
        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        assert self.model, f"llama.cpp cannot load {path}"
        self.num_tokens = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_seq_max = max_sequences
        parameters.n_ctx = max_sequences * max_tokens
        parameters.n_batch = 2048
        parameters.n_threads = parameters.n_threads_batch = len(os.sched_getaffinity(0))
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        assert self.context, "llama.cpp cannot make a context"
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_temp(1.0))
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_dist(1))
        self.sampler = chain

    def decode(self, rows):
        """rows: (token, position, sequence, wants logits)."""
        batch = self.api.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wants_logits) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wants_logits
        assert self.api.llama_decode(self.context, batch) == 0
        self.api.llama_batch_free(batch)

    def generate(self, ids, new_tokens, has_sampler=True):
        """Without a sampler the tokens are made up; what is left is the model alone."""
        def pick(index, step):
            if has_sampler:
                return self.api.llama_sampler_sample(self.sampler, self.context, index)
            return 1000 + 37 * step + index
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        start = time.perf_counter()
        tokens = []
        per_batch = max(1, 2048 // len(ids[0]))  # whole prompts in one batch
        for first in range(0, len(ids), per_batch):
            some = ids[first:first + per_batch]
            self.decode([(token, position, first + s, position + 1 == len(prompt))
                         for s, prompt in enumerate(some) for position, token in enumerate(prompt)])
            # A logit's index is that of its row in the batch.
            tokens += [pick((s + 1) * len(some[s]) - 1, 0) for s in range(len(some))]
        prefill_end = time.perf_counter()
        for step in range(1, new_tokens):
            self.decode([(token, len(ids[0]) + step - 1, s, True) for s, token in enumerate(tokens)])
            tokens = [pick(s, step) for s in range(len(tokens))]
        assert all(0 <= token < self.num_tokens for token in tokens)
        end = time.perf_counter()
        return {"seconds": end - start, "prefill_seconds": prefill_end - start, "decode_seconds": end - prefill_end}


def main():
    if sys.argv[1] == "--convert":
        convert(sys.argv[2], sys.argv[3])
        return
    serve({"generate": Peer(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])).generate})


if __name__ == "__main__":
    main()
