"""`tessera run` from outside: tensors in files, refusals, what stays on the disk. Usage: run_test.py TESSERA"""

import json
import math
import struct
import unittest

from program import THREADS, ProgramTest, read_safetensors, safetensors, tessera


def floats(values):
    return struct.pack(f"<{len(values)}f", *values)


def unpacked(tensor):
    dtype, _, content = tensor
    assert dtype == "F32", dtype
    return list(struct.unpack(f"<{len(content) // 4}f", content))


def wave(count, step):
    return [math.sin(step * (i + 1)) for i in range(count)]


def attention(q, k, v, dim, causal):
    """One head, textbook: rows of out, and lse."""
    queries, keys = len(q) // dim, len(k) // dim
    out, lse = [], []
    for i in range(queries):
        seen = [j for j in range(keys) if not causal or j <= i + keys - queries]
        scores = [sum(q[i * dim + c] * k[j * dim + c] for c in range(dim)) / math.sqrt(dim) for j in seen]
        total = sum(math.exp(s) for s in scores)
        lse.append(math.log(total))
        weights = [math.exp(s) / total for s in scores]
        out += [sum(w * v[j * dim + c] for w, j in zip(weights, seen, strict=True)) for c in range(dim)]
    return out, lse


class Run(ProgramTest):
    HEADS, DIM, QUERIES, KEYS = 2, 4, 3, 5

    def inputs(self, **more):
        """Batch 1: q [1, 3, 2, 4], k and v [1, 5, 2, 4]."""
        self.q = wave(self.QUERIES * self.HEADS * self.DIM, 0.7)
        self.k = wave(self.KEYS * self.HEADS * self.DIM, 1.3)
        self.v = wave(self.KEYS * self.HEADS * self.DIM, 2.1)
        tensors = {
            "q": ("F32", [1, self.QUERIES, self.HEADS, self.DIM], floats(self.q)),
            "k": ("F32", [1, self.KEYS, self.HEADS, self.DIM], floats(self.k)),
            "v": ("F32", [1, self.KEYS, self.HEADS, self.DIM], floats(self.v)),
        }
        tensors.update(more)
        return tensors

    def write(self, content, name="in.safetensors"):
        path = self.folder / name
        path.write_bytes(content)
        return path

    def head(self, values, head):
        rows = len(values) // (self.HEADS * self.DIM)
        start = [(r * self.HEADS + head) * self.DIM for r in range(rows)]
        return [x for s in start for x in values[s : s + self.DIM]]

    def run_file(self, tensors, *arguments):
        out = self.folder / "out.safetensors"
        self.succeeds("run", self.write(safetensors(tensors)), "--out", out, *arguments, *THREADS)
        return read_safetensors(out)

    def assert_close(self, found, expected, tolerance=1e-5):
        self.assertEqual(len(found), len(expected))
        for a, b in zip(found, expected, strict=True):
            self.assertAlmostEqual(a, b, delta=tolerance)

    def test_forward(self):
        for causal in (False, True):
            tensors, metadata = self.run_file(self.inputs(), *(("--mask", "causal") if causal else ()))
            self.assertEqual(sorted(tensors), ["lse", "out"])
            self.assertEqual(tensors["out"][:2], ("F32", [1, self.QUERIES, self.HEADS, self.DIM]))
            self.assertEqual(tensors["lse"][:2], ("F32", [1, self.HEADS, self.QUERIES]))
            self.assertIn("float32", metadata["problem"])
            for head in range(self.HEADS):
                parts = [self.head(x, head) for x in (self.q, self.k, self.v)]
                out, lse = attention(*parts, self.DIM, causal)
                self.assert_close(self.head(unpacked(tensors["out"]), head), out)
                found = unpacked(tensors["lse"])[head * self.QUERIES : (head + 1) * self.QUERIES]
                self.assert_close(found, lse)

    def test_gradients_by_finite_differences(self):
        weights = wave(self.QUERIES * self.HEADS * self.DIM, 0.3)
        dout = ("F32", [1, self.QUERIES, self.HEADS, self.DIM], floats(weights))
        tensors, _ = self.run_file(self.inputs(dout=dout))
        self.assertEqual(list(tensors), ["out", "lse", "dq", "dk", "dv"])

        def loss(q, k, v):
            total = 0
            for head in range(self.HEADS):
                out, _ = attention(self.head(q, head), self.head(k, head), self.head(v, head), self.DIM, False)
                total += sum(a * b for a, b in zip(out, self.head(weights, head), strict=True))
            return total

        step = 1e-5
        for name, index in (("dq", 0), ("dk", 1), ("dv", 2)):
            gradient = unpacked(tensors[name])
            for element in (0, 5, 17, 23):
                moved = []
                for sign in (1, -1):
                    inputs = [list(self.q), list(self.k), list(self.v)]
                    inputs[index][element] += sign * step
                    moved.append(loss(*inputs))
                self.assertAlmostEqual(gradient[element], (moved[0] - moved[1]) / (2 * step), delta=1e-5)

    def test_gradients_of_an_earlier_run(self):
        dout = ("F32", [1, self.QUERIES, self.HEADS, self.DIM], floats(wave(24, 0.3)))
        whole, _ = self.run_file(self.inputs(dout=dout))
        later, _ = self.run_file(self.inputs(dout=dout, out=whole["out"], lse=whole["lse"]))
        self.assertEqual(list(later), ["dq", "dk", "dv"])
        for name in later:
            self.assertEqual(later[name], whole[name])

    def test_score_tensors_and_their_gradients(self):
        more = {
            "bias": ("F32", [1, 1, self.QUERIES, self.KEYS], floats(wave(15, 0.9))),
            "sinks": ("F32", [self.HEADS], floats([0.5, -1.0])),
            "alibi_slopes": ("F32", [self.HEADS], floats([0.5, 0.25])),
            "dout": ("F32", [1, self.QUERIES, self.HEADS, self.DIM], floats(wave(24, 0.3))),
            "dlse": ("F32", [1, self.HEADS, self.QUERIES], floats(wave(6, 0.4))),
        }
        tensors, metadata = self.run_file(self.inputs(**more))
        self.assertEqual(list(tensors), ["out", "lse", "dq", "dk", "dv", "dbias", "dsinks"])
        for part in ("alibi", "sinks", "bias"):
            self.assertIn(part, metadata["problem"])

    def test_ragged(self):
        inputs = {name: (dtype, shape[1:], data) for name, (dtype, shape, data) in self.inputs().items()}
        tensors, _ = self.run_file(inputs, "--lengths", "1,2", "--lengths-k", "5,0")
        self.assertEqual(tensors["out"][1], [self.QUERIES, self.HEADS, self.DIM])
        self.assertEqual(tensors["lse"][1], [self.HEADS, self.QUERIES])
        found = unpacked(tensors["out"])
        for head in range(self.HEADS):
            parts = [self.head(x, head) for x in (self.q, self.k, self.v)]
            out, _ = attention(parts[0][: self.DIM], *parts[1:], self.DIM, False)
            self.assert_close(self.head(found, head)[: self.DIM], out)
        self.assertEqual(found[self.HEADS * self.DIM :], [0.0] * (2 * self.HEADS * self.DIM))

    def test_storage_in_sixteen_bits(self):
        half = {
            name: ("F16", shape, struct.pack(f"<{len(data) // 4}e", *struct.unpack(f"<{len(data) // 4}f", data)))
            for name, (_, shape, data) in self.inputs().items()
        }
        tensors, _ = self.run_file(half)
        self.assertEqual((tensors["out"][0], tensors["lse"][0]), ("F16", "F32"))
        tensors, _ = self.run_file(half, "--output-dtype", "float32")
        self.assertEqual(tensors["out"][0], "F32")

    def test_every_truncation_is_one_error_and_leaves_the_output_alone(self):
        content = safetensors(self.inputs())
        out = self.write(b"precious", "out.safetensors")
        for size in [*range(16), 100, len(content) // 2, len(content) - 1]:
            path = self.write(content[:size])
            self.fails(1, ["tessera run", "in.safetensors", "safetensors: "], "run", path, "--out", out)
        self.assertEqual(out.read_bytes(), b"precious")
        self.assertEqual(len(list(self.folder.iterdir())), 2)

    def test_corrupt_files(self):
        good = self.inputs()
        entries = {"q": [0, 4], "k": [2, 6]}
        header = json.dumps({n: {"dtype": "F32", "shape": [1], "data_offsets": o} for n, o in entries.items()}).encode()
        cases = {
            "oversized header": (struct.pack("<Q", 1 << 62) + b"{}", ["header", "100000000"]),
            "not JSON": (struct.pack("<Q", 4) + b"abcd", ["not JSON"]),
            "overlap": (struct.pack("<Q", len(header)) + header + bytes(6), ["overlap", "data_offsets"]),
            "trailing": (safetensors(good) + b"x", ["1 bytes follow"]),
            "no v": (safetensors({n: t for n, t in good.items() if n != "v"}), ["no tensor v"]),
            "wrong dtype": (safetensors({**good, "q": ("I32", [1, 3, 2, 4], bytes(96))}), ["q", "I32", "BF16"]),
            "unknown": (safetensors({**good, "w": ("F32", [1], bytes(4))}), ["tensor w", "unknown", "dout"]),
            "rank": (safetensors({**good, "q": ("F32", [24], bytes(96))}), ["tensor q", "[batch, seq, heads, dim]"]),
            "bias rank": (safetensors({**good, "bias": ("F32", [5], bytes(20))}), ["tensor bias", "4 dimensions"]),
            "lse alone": (safetensors({**good, "lse": ("F32", [1, 2, 3], bytes(24))}), ["lse without out"]),
            "dlse alone": (safetensors({**good, "dlse": ("F32", [1, 2, 3], bytes(24))}), ["dlse without dout"]),
        }
        for name, (content, parts) in cases.items():
            with self.subTest(name):
                out = self.folder / "out.safetensors"
                self.fails(1, ["in.safetensors", *parts], "run", self.write(content), "--out", out)
                self.assertFalse(out.exists())

    def test_shapes_that_contradict_each_other(self):
        wrong = self.inputs(v=("F32", [1, 4, 2, 4], bytes(128)))
        done = tessera("run", self.write(safetensors(wrong)), "--out", self.folder / "out")
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr, r"\Atessera run: .*v: .*shape \[1, 5, 2, 4\]\n\Z")
        self.assertFalse((self.folder / "out").exists())

    def test_files_that_cannot_be_read_or_written(self):
        self.fails(
            1,
            ["missing.safetensors", "No such file"],
            "run",
            self.folder / "missing.safetensors",
            "--out",
            self.folder / "out",
        )
        path = self.write(safetensors(self.inputs()))
        self.fails(1, ["nowhere", "No such file"], "run", path, "--out", self.folder / "nowhere/out")
        self.fails(1, ["directory"], "run", path, "--out", self.folder)

    def test_output_may_replace_the_input(self):
        path = self.write(safetensors(self.inputs()))
        self.succeeds("run", path, "--out", path, *THREADS)
        self.assertEqual(sorted(read_safetensors(path)[0]), ["lse", "out"])
        self.assertEqual(list(self.folder.iterdir()), [path])


if __name__ == "__main__":
    unittest.main()
