"""The tessera program from outside: every command, exit statuses, messages, files. Usage: program_test.py TESSERA"""

import json
import math
import os
import pathlib
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

PROGRAM = ""
THREADS = ("--threads", "1")


def tessera(*arguments, **options):
    command = [PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def safetensors(tensors, metadata=None):
    """A file with tensors {name: (dtype, shape, bytes)}."""
    header = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read_safetensors(path):
    content = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = (entry["dtype"], entry["shape"], data[begin:end])
    return tensors, metadata


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


class ProgramTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tessera"))
        self.addCleanup(shutil.rmtree, self.folder)

    def succeeds(self, *arguments, **options):
        done = tessera(*arguments, **options)
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        self.assertEqual(done.stderr, "")
        return done.stdout

    def fails(self, status, parts, *arguments, **options):
        """Exit status and one line on stderr that holds every part; nothing on stdout."""
        done = tessera(*arguments, **options)
        self.assertEqual(done.returncode, status, done.stderr + done.stdout)
        self.assertRegex(done.stderr, r"\Atessera[^\n]*: [^\n]+\n\Z")
        for part in parts:
            self.assertIn(part, done.stderr)
        return done


class BadFlags(ProgramTest):
    def test_one_line_and_status_2(self):
        cases = {
            (): ["no command", "bench", "verify"],
            ("benhc",): ["unknown command 'benhc'", "did you mean bench"],
            ("conquer",): ["unknown command 'conquer'", "info, bench, verify, run, explain"],
            ("--bogus",): ["unknown flag '--bogus'"],
            ("bench", "--sqes", "5"): ["tessera bench", "unknown flag '--sqes'", "--seqs"],
            ("verify", "stray"): ["unexpected argument 'stray'"],
            ("verify", "--heads"): ["--heads", "no value"],
            ("verify", "--dtype", "float8"): ["--dtype", "'float8'", "float32, bfloat16, float16"],
            ("bench", "--seqs", "512,x"): ["--seqs", "'512,x'", "integers of 1 or more"],
            ("bench", "--impls", "flash,magic"): ["--impls", "'flash,magic'", "reference"],
            ("explain", "--isa", "mmx"): ["--isa", "'mmx'"],
            ("verify", "--device", "gpu"): ["--device", "'gpu'", "cpu, cuda, cuda:0"],
            ("verify", "--space", "h100"): ["--space", "'h100'", "all, sm90"],
            ("verify", "--distributed", "ring", "--transport", "pigeon"): ["--transport", "'pigeon'", "nccl, host"],
            ("explain", "--impl", "magic"): ["--impl", "'magic'", "flash, reference, standard"],
            ("verify", "--heads", "6", "--kv-heads", "4"): ["--kv-heads", "4", "divisors"],
            ("verify", "--lengths", "3", "--seq", "3"): ["--lengths", "--seq"],
            ("bench", "--seqs", "16", "--seq", "16"): ["--seqs"],
            ("bench", "--plot", "x.pdf"): ["--plot", "x.pdf", ".png or .svg"],
            ("verify", "--mask", "causal,butterfyl"): ["--mask", "'causal,butterfyl'", "butterfly[:DISTANCE]"],
            ("verify", "--seq", "40", "--blocks", "x./.x"): ["--blocks", "x./.x", "1 rows of 1 blocks"],
            ("verify", "--block-size", "20"): ["--block-size", "'20'", "multiples of 16"],
            ("bench", "--densities", "0.5,1.5"): ["--densities", "'0.5,1.5'", "0 to 1"],
            ("bench", "--densities", "0.5", "--seqs", "64"): ["--seqs", "--densities"],
            ("bench", "--densities", "0.5", "--mask", "local:1"): ["--densities", "block mask"],
            ("warm",): ["tessera warm", "--problems"],
            ("run",): ["tessera run", "IN"],
            ("run", "in.safetensors"): ["tessera run", "--out"],
            ("run", "a", "--out", "b", "--mask", "diagonal"): ["--mask", "'diagonal'", "causal"],
        }
        for arguments, parts in cases.items():
            with self.subTest(arguments=arguments):
                self.assertEqual(self.fails(2, parts, *arguments).stdout, "")

    def test_help_and_version(self):
        self.assertRegex(self.succeeds("--version"), r"\Atessera \d+\.\d+\.\d+\n\Z")
        for command in ("info", "bench", "verify", "run", "explain", "warm"):
            self.assertIn(command, self.succeeds("--help"))
            self.assertIn("tessera " + command, self.succeeds(command, "--help"))


class Info(ProgramTest):
    def test_names_what_there_is(self):
        text = self.succeeds("info", "--peak")
        for part in ("compiler", "build type", "ISAs", "threads", "cuda", "flash", "standard", "reference", "GFLOP/s"):
            self.assertIn(part, text)


class Explain(ProgramTest):
    def test_prints_the_plan(self):
        text = self.succeeds("explain", "--seq", "4096", "--window", "1024,0", *THREADS)
        for part in (
            "window(1024, 0)",
            "flash",
            "workspace",
            "skipped",
            "FLOP",
            "Theorem 2",
            "predicted",
            "128 x 64 pairs",
        ):
            self.assertIn(part, text)

    def test_draws_small_masks(self):
        arguments = ("explain", "--seq", "4", "--mask", "causal", *THREADS)
        drawn = self.succeeds(*arguments, env={**os.environ, "LC_ALL": "C"})
        self.assertTrue(drawn.endswith("\n  #...\n  ##..\n  ###.\n  ####\n"), drawn)
        self.assertNotIn("Mask", self.succeeds(*arguments, "--no-drawing"))

    def test_says_why_others_refused(self):
        text = self.succeeds("explain", "--seq", "64", "--impl", "reference", "--pass", "backward")
        self.assertIn("reference", text)
        self.assertIn("backward", text)


class Verify(ProgramTest):
    def test_prints_errors_beside_bounds(self):
        text = self.succeeds(
            "verify", "--seq-q", 33, "--seq-k", 70, "--mask", "causal", "--sinks", "--bias", "hqk", *THREADS
        )
        for output in ("O", "LSE", "dQ", "dK", "dV", "dbias", "dsinks"):
            self.assertRegex(text, rf"(?m)^  {output} +\d\.\d\de[-+]\d\d  (2\.00e-06|1\.00e-05)  ok")
        self.assertIn("passed", text)

    def test_forward_only(self):
        text = self.succeeds("verify", "--seq", 20, "--forward-only", *THREADS)
        self.assertNotIn("dQ", text)

    def test_random_problems(self):
        text = self.succeeds("verify", "--random", 40, "--seed", 1, *THREADS)
        self.assertIn("40 of 40 passed", text)
        self.assertIn("covered: ", text)
        again = self.succeeds("verify", "--random", 40, "--seed", 1, *THREADS)
        self.assertEqual(text, again)

    def test_failure_is_status_1(self):
        """Scores of 10^8 have no digits behind the point in float32: no softmax of them is within the bound."""
        done = tessera("verify", "--seq", 64, "--magnitude", 3000, "--scale", 1, *THREADS)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("FAIL", done.stdout)


class Bench(ProgramTest):
    def test_table_json_and_plot(self):
        figures = self.folder / "bench.json"
        plots = [self.folder / "bench.png", self.folder / "bench.svg"]
        arguments = ("bench", "--seqs", "64,128", "--heads", 2, "--dim", 32, "--min-time", 0.01, *THREADS)
        text = self.succeeds(*arguments, "--json", figures)
        for part in ("forward", "backward", "speed-up", "share of peak", "extra memory", "error", "GFLOP/s"):
            self.assertIn(part, text)
        self.assertEqual(len(re.findall(r"(?m)^  (64|128) .*\d\.\d\dx", text)), 4, text)
        points = json.loads(figures.read_text())["points"]
        self.assertEqual(
            [(p["pass"], p["seq_q"]) for p in points],
            [("forward", 64), ("forward", 128), ("backward", 64), ("backward", 128)],
        )
        for point in points:
            self.assertEqual([one["impl"] for one in point["results"]], ["standard", "flash"])
            for one in point["results"]:
                self.assertGreater(one["median_seconds"], 0)
                self.assertGreaterEqual(one["median_seconds"], one["fastest_seconds"])
                self.assertGreater(one["share_of_peak"], 0)
                self.assertGreater(one["runs"], 2)
                self.assertLess(one["error"]["value"], 2e-6)
        if shutil.which("gnuplot") is None:
            self.skipTest("gnuplot is not installed")
        for plot, start in zip(plots, (b"\x89PNG", b"<?xml"), strict=True):
            self.succeeds(*arguments, "--plot", plot)
            self.assertTrue(plot.read_bytes().startswith(start))
        self.assertEqual(sorted(self.folder.iterdir()), sorted([figures, *plots]))

    def test_density_sweep(self):
        figures = self.folder / "densities.json"
        arguments = ("bench", "--seq", 256, "--block-size", 32, "--densities", "0,0.5,1", "--heads", 1, "--dim", 16)
        text = self.succeeds(*arguments, "--min-time", 0.01, *THREADS, "--json", figures)
        for part in ("forward", "backward", "of dense rate", "R^2 = ", "blocks of 32 x 32"):
            self.assertIn(part, text)
        passes = json.loads(figures.read_text())["passes"]
        self.assertEqual([one["pass"] for one in passes], ["forward", "backward"])
        for one in passes:
            self.assertEqual([point["density"] for point in one["points"]], [0, 0.5, 1])
            self.assertEqual(one["points"][0]["visited_tiles"], 0)
            self.assertEqual(one["points"][2]["flops_in_tiles"], 2 * one["points"][1]["flops_in_tiles"])
        if shutil.which("gnuplot") is None:
            self.skipTest("gnuplot is not installed")
        plot = self.folder / "densities.svg"
        self.succeeds(*arguments, "--min-time", 0.01, "--pass", "forward", *THREADS, "--plot", plot)
        self.assertTrue(plot.read_bytes().startswith(b"<?xml"))

    def test_fixed_lengths_are_one_point(self):
        text = self.succeeds(
            "bench", "--lengths", "20,0,50", "--pass", "forward", "--impls", "flash", "--min-time", 0.01, *THREADS
        )
        self.assertIn("ragged 3", text)
        self.assertNotIn("speed-up", text)
        self.assertNotIn("backward", text)

    def test_an_impl_that_does_not_fit_into_memory_is_skipped(self):
        text = self.succeeds(
            "bench",
            "--seqs",
            400000,
            "--heads",
            1,
            "--dim",
            8,
            "--window",
            "1,1",
            "--pass",
            "forward",
            "--no-error",
            "--min-time",
            0.01,
            *THREADS,
        )
        self.assertRegex(text, r"(?m)^standard skipped at 400000, forward: .*workspace of .* half of the free memory")
        self.assertRegex(text, r"(?m)^  400000 +- +\d")

    def test_a_fixed_side_is_not_swept(self):
        text = self.succeeds("bench", "--seq-q", 1, "--seqs", 64, "--dropout", 0.5, "--min-time", 0.01, *THREADS)
        self.assertIn("1x64", text)

    def test_fails_before_the_work(self):
        self.fails(1, ["missing/bench.json", "No such file"], "bench", "--json", self.folder / "missing/bench.json")

    def test_without_gnuplot(self):
        plot = self.folder / "bench.png"
        self.fails(1, ["--plot", "gnuplot"], "bench", "--plot", plot, env={**os.environ, "PATH": "/nonexistent"})
        self.assertFalse(plot.exists())


class Ranks(ProgramTest):
    small = ("--mask", "causal", "--heads", 2, "--kv-heads", 1, "--dim", 16, *THREADS)

    def test_verify(self):
        for schedule, moves in (("ring", "K, V, dK and dV"), ("burst", "Q, dO, dQ, LSE and D")):
            output = self.succeeds("verify", "--distributed", schedule, "--ranks", 3, "--seq", 50, *self.small)
            self.assertIn("3 ranks (local), zigzag layout", output)
            self.assertIn(moves, output)
            self.assertEqual(len(re.findall(r"(?m) ok$", output)), 5)
        output = self.succeeds(
            "verify", "--distributed", "double_ring", "--ranks", 4, "--ranks-per-node", 2, "--seq", 50, *self.small
        )
        self.assertIn("double_ring", output)

    def test_bench(self):
        figures = self.folder / "figures.json"
        plot = self.folder / "timeline.svg"
        plots = ["--plot", plot] if shutil.which("gnuplot") else []
        output = self.succeeds(
            *("bench", "--distributed", "ring", "--ranks", 2, "--seqs", "64,96", "--min-time", 0.001),
            *(*self.small, "--json", figures, *plots),
        )
        self.assertIn("efficiency", output)
        document = json.loads(figures.read_text())
        self.assertEqual((document["ranks"], document["transport"], document["layout"]), (2, "local", "zigzag"))
        self.assertEqual([p["seq_q"] for p in document["points"]], [64, 96, 64, 96])
        # K and V of half the tokens, one hop.
        self.assertEqual(document["points"][0]["ranks"][1]["bytes_sent"], 32 * 2 * 16 * 4)
        self.assertGreater(document["points"][0]["efficiency"], 0)
        if plots:
            self.assertIn("rank 1", plot.read_text())
        output = self.succeeds("plan", "--gpus", 2, "--seq", 96, *self.small[:-2], "--measured", figures)
        self.assertIn("backward", output)

    def test_plan(self):
        figures = self.folder / "plan.json"
        flags = ("--gpus", 8, "--nodes", 2, "--seq", "16K", "--mask", "causal", "--rate", 500)
        output = self.succeeds("plan", *flags, "--json", figures)
        self.assertRegex(
            output, r"forward: \w+ with the (zigzag|striped) layout, .*; (compute|node link|network) binds"
        )
        rows = json.loads(figures.read_text())["predictions"]
        self.assertEqual({row["schedule"] for row in rows}, {"ring", "burst", "double_ring"})
        self.assertIn("network binds", self.succeeds("plan", *flags, "--network", 0.01))

    def test_bad_flags(self):
        self.fails(2, ["--rate", "absent", "--measured"], "plan", "--gpus", 8)
        self.fails(2, ["--nodes", "3", "divisors of --gpus, 8"], "plan", "--gpus", 8, "--nodes", 3, "--rate", 1)
        self.fails(2, ["--random"], "verify", "--distributed", "ring", "--random", 3)
        self.fails(2, ["--distributed", "rings", "burst"], "bench", "--distributed", "rings")
        self.fails(1, ["cu_seqlens_q", "Mask::segments"], "verify", "--distributed", "ring", "--lengths", "4,5")
        figures = self.folder / "other.json"
        figures.write_text("{}")
        self.fails(1, ["--measured", "other.json"], "plan", "--measured", figures)


class Devices(ProgramTest):
    """On a machine with a Hopper GPU the commands compute there; on any other each says why it does not."""

    def setUp(self):
        super().setUp()
        text = self.succeeds("info")
        missing = re.search(r"(?m)^  cuda +not available  (.+)$", text)
        self.reason = missing[1] if missing else None
        if not missing and "compute capability 9.0" not in text:
            self.skipTest("the GPU is not of compute capability 9.0")

    def write_inputs(self):
        path = self.folder / "in.safetensors"
        row = ("BF16", [1, 2, 1, 64], b"\x80\x3f" * 128)
        path.write_bytes(safetensors({"q": row, "k": row, "v": row, "dout": row}))
        return path

    def test_every_command(self):
        out = self.folder / "out.safetensors"
        figures = self.folder / "bench.json"
        small = ("--device", "cuda", "--seq", 200, "--dim", 64, "--mask", "causal")
        commands = {
            ("verify", *small): ["sm90 on cuda:0", "passed"],
            ("verify", "--device", "cuda", "--random", 3): ["of those that sm90 takes", "3 of 3 passed"],
            ("explain", *small, "--pass", "backward"): ["sm90 (cuda:0)", "kernel ", "measured matrix rate"],
            ("bench", *small, "--min-time", 0.01, "--json", figures): ["matrix rate", "TFLOP/s", "sm90"],
            ("run", self.write_inputs(), "--out", out, "--device", "cuda"): ["sm90 on cuda:0", "dq, dk, dv"],
        }
        for arguments, parts in commands.items():
            with self.subTest(command=arguments[0]):
                if self.reason:
                    self.fails(1, [self.reason], *arguments)
                    continue
                text = self.succeeds(*arguments)
                for part in parts:
                    self.assertIn(part, text)
        self.assertEqual(out.exists(), self.reason is None)
        if not self.reason:
            result = json.loads(figures.read_text())["points"][0]["results"][0]
            self.assertGreater(result["share_of_matrix_rate"], 0)
            self.assertLess(result["error"]["value"], 0.02)

    def test_warm(self):
        path = self.folder / "problems.txt"
        path.write_text("# a comment\n\n--seq 64 --dim 64 --mask causal\n  --seq 100 --dim 128 --heads 2\n")
        if self.reason:
            self.fails(1, [self.reason], "warm", "--problems", path)
        else:
            text = self.succeeds("warm", "--problems", path)
            self.assertIn("sm90_forward_64", text)
            self.assertIn("sm90_backward_128", text)
        path.write_text("--seq 64\n--seq x\n")
        self.fails(2, ["--problems", "problems.txt:2", "--seq"], "warm", "--problems", path)
        self.fails(1, ["missing.txt"], "warm", "--problems", self.folder / "missing.txt")

    def test_impls_of_the_cpu_refuse(self):
        problem = ("verify", "--device", "cuda", "--impl", "flash")
        self.fails(1, [self.reason or "flash: device: it runs on the CPU"], *problem)

    def test_random_problems_of_the_space_run_on_the_cpu(self):
        text = self.succeeds("verify", "--random", 5, "--seed", 3, "--space", "sm90", *THREADS)
        self.assertIn("5 of 5 passed", text)


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


class Terminal(ProgramTest):
    def test_progress_and_colours_on_terminals_alone(self):
        main, side = pty.openpty()
        self.addCleanup(os.close, main)
        arguments = [PROGRAM, "verify", "--random", "3", *THREADS]
        environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=side, text=True, check=True, env=environment)
        os.close(side)
        drawn = os.read(main, 1 << 16).decode()
        self.assertIn("2/3", drawn)
        self.assertTrue(drawn.endswith("\r\x1b[K"), "the bar is gone at the end")
        self.assertNotIn("\x1b", done.stdout)


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    unittest.main()
