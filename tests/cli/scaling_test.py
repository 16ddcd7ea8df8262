"""bench/scaling.py on CPU ranks: every cell has its figures, and what goes wrong does not stop the rest."""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT, TESSERA = sys.argv[1:3]
LAYOUTS = ("zigzag", "striped", "contiguous")


class Scaling(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.figures = Path(folder.name) / "scaling.json"

    def run_script(self, ranks, *flags, status=0):
        words = [sys.executable, SCRIPT, "--tessera", TESSERA, "--ranks", str(ranks), "--preset", "small", *flags]
        done = subprocess.run(
            [*words, "--json", self.figures], capture_output=True, text=True, timeout=120, check=False
        )
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        return done.stdout, json.loads(self.figures.read_text())["cells"]

    def test_every_cell(self):
        for ranks, schedules in ((2, ("ring", "burst")), (4, ("ring", "burst", "double_ring"))):
            output, cells = self.run_script(ranks)
            names = {f"{schedule} {layout}" for schedule in schedules for layout in LAYOUTS}
            self.assertEqual({cell["name"] for cell in cells}, names)
            self.assertEqual(len(cells), len(names) * 2 * 2)
            for cell in cells:
                self.assertEqual(cell["problem"], "")
                for figures in ("seconds", "hidden", "bytes_sent", "held_bytes", "predicted"):
                    self.assertEqual(set(cell[figures]), {"forward", "backward"}, (figures, cell))
                self.assertGreater(cell["share"]["both"], 0)
                self.assertIn(f"| {cell['tokens']} | {cell['heads']} | {cell['name']} |", output)
            self.assertRegex(
                output, rf"\n\| 4:1 \| 128 \| [0-9./ ]+( \| [0-9./ ]+ \([0-9/ ]+ %\)){{{len(schedules)}}} \|"
            )
            # float32, dim 16: 2 b d Hkv a token forward, (2 b + 8) d Hkv and (2 b + 4) d Hq + 8 Hq backward.
            for name, heads, backward in (("ring zigzag", "4:4", 16 * 64), ("burst zigzag", "4:1", 12 * 64 + 32)):
                cell = next(c for c in cells if (c["name"], c["tokens"], c["heads"]) == (name, 128, heads))
                hops = 128 * (ranks - 1)
                self.assertEqual(cell["bytes_sent"]["forward"], hops * 8 * 16 * int(heads.split(":")[1]))
                self.assertEqual(cell["bytes_sent"]["backward"], hops * backward)

    def test_a_cell_that_fails_leaves_the_rest(self):
        output, cells = self.run_script(2, "--heads", "4:3,4:4", "--layouts", "zigzag", "--schedules", "ring")
        bad = [cell for cell in cells if cell["heads"] == "4:3"]
        self.assertTrue(all("heads" in cell["problem"] and not cell["seconds"] for cell in bad), bad)
        self.assertIn(bad[0]["problem"], output)
        self.assertTrue(all(cell["seconds"] for cell in cells if cell["heads"] == "4:4"))

    def test_time_runs_out(self):
        output, cells = self.run_script(2, "--seconds", "1e-6", status=1)
        self.assertTrue(cells and all("out of time" in cell["problem"] for cell in cells))
        self.assertIn("out of time", output)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
