"""The tessera program from outside: commands, exit statuses, messages, files. Usage: program_test.py TESSERA"""

import json
import os
import pathlib
import pty
import re
import shutil
import subprocess
import unittest

from program import PROGRAM, THREADS, ProgramTest, safetensors, tessera


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


class Functions(ProgramTest):
    """Source text needs a C++ compiler on this machine."""

    EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples" / "functions"

    def run_with(self, *arguments):
        return tessera(*arguments, *THREADS, env={**os.environ, "TESSERA_CACHE_DIR": str(self.folder / "cache")})

    def setUp(self):
        super().setUp()
        if not any(map(shutil.which, (os.environ.get("CXX", "c++").split()[0], "g++", "clang++"))):
            self.skipTest("no C++ compiler")

    def test_verify_and_explain(self):
        functions = (
            "--score-function",
            f"{self.EXAMPLES / 'gated_distance.h'}:0.5",
            "--mask-function",
            f"{self.EXAMPLES / 'dilated.h'}:2,16",
        )
        verified = self.run_with("verify", "--seq", 60, "--heads", 2, "--dim", 16, *functions)
        self.assertEqual((verified.returncode, verified.stderr), (0, ""))
        self.assertIn("passed", verified.stdout)
        explained = self.run_with("explain", "--seq", 1024, *functions)
        self.assertEqual(explained.returncode, 0, explained.stderr)
        self.assertRegex(explained.stdout, r"score_function \S*gated_distance.h\(1 param, [0-9a-f]{8}\)")
        self.assertRegex(explained.stdout, r"[1-9][0-9]* skipped\)")

    def test_errors_name_the_file_and_its_line(self):
        wrong = self.folder / "wrong.h"
        wrong.write_text("bool keep(tessera::Index i) {\n  return i.position;\n}\n")
        result = self.run_with("explain", "--mask-function", wrong)
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertIn(f"mask_function: '{wrong}' does not compile", result.stderr)
        self.assertIn(f"{wrong}:2:", result.stderr)
        absent = self.run_with("explain", "--score-function", self.folder / "absent.h")
        self.assertEqual(absent.returncode, 1)
        self.assertIn("absent.h", absent.stderr)


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

    def test_script_of_a_plot_for_another_machine(self):
        arguments = ("bench", "--seq", 256, "--block-size", 32, "--densities", "0,0.5,1", "--heads", 1, "--dim", 16)
        script = self.folder / "densities.gp"
        there = {**os.environ, "PATH": "/nonexistent"}
        text = self.succeeds(*arguments, "--min-time", 0.01, "--pass", "forward", *THREADS, "--plot", script, env=there)
        self.assertIn(f"script of the plot written to {script}", text)
        if shutil.which("gnuplot") is None:
            self.skipTest("gnuplot is not installed")
        drawn = subprocess.run(["gnuplot", script], capture_output=True, check=True)
        self.assertTrue(drawn.stdout.startswith(b"\x89PNG"))


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
        self.assertGreater(document["points"][0]["predicted_seconds"], 0)
        self.assertEqual(len(document["rates"]["backward"]), 4)  # with and without a mask, of each length
        if plots:
            self.assertIn("rank 1", plot.read_text())
        output = self.succeeds("plan", "--gpus", 2, "--seq", 96, *self.small[:-2], "--measured", figures)
        self.assertIn("backward", output)
        bare = self.folder / "bare.json"
        self.succeeds(
            *("bench", "--distributed", "ring", "--ranks", 2, "--seq", 64, "--min-time", 0.001, "--no-baseline"),
            *(*self.small, "--json", bare),
        )
        self.fails(1, ["--measured", "--no-baseline"], "plan", "--gpus", 2, "--measured", bare)

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
        figures.write_text("rates")
        self.fails(1, ["--measured", "other.json", "not JSON", "byte 1"], "plan", "--measured", figures)


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
    unittest.main()
